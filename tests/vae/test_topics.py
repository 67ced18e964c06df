"""Topics: counts drawn from known topics, which the model finds again; perplexity by hand."""

import math

import pytest
import torch

from accel.errors import ConfigError, DataError
from accel.tests.vae.models import one_layer, seeded
from accel.vae import elbo, latents, log_likelihood
from accel.vae.topics import completed, halves, mean_shares, perplexity, top_words, topic_model

TOPICS = torch.tensor([[0.45, 0.45, 0.04, 0.02, 0.02, 0.02], [0.02, 0.02, 0.04, 0.02, 0.45, 0.45]])


def texts(count, generator):
    """Counts [count, 6] of 40 words each, and the best perplexity: that of the shares they were drawn with."""
    share = torch.rand(count, 1, generator=generator)
    words = torch.cat([share, 1 - share], 1) @ TOPICS
    drawn = torch.multinomial(words, 40, replacement=True, generator=generator)
    counts = torch.zeros(count, 6).scatter_add_(1, drawn, torch.ones(count, 40))
    return counts, math.exp(-float((counts * words.log()).sum() / counts.sum()))


def test_a_perplexity_is_that_of_all_words_together():
    counts = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    nats = (counts * torch.tensor([0.25, 0.75]).log()).sum(1)
    assert math.isclose(perplexity(nats, counts), (0.25**3 * 0.75) ** (-1 / 4), rel_tol=1e-6)
    assert math.isclose(perplexity((counts * math.log(0.5)).sum(1), counts), 2.0, rel_tol=1e-6)
    with pytest.raises(DataError, match="per word"):
        perplexity(nats, torch.zeros(2, 2))


def test_halves_of_texts_add_up_and_share_no_word():
    counts, _ = texts(50, seeded(1))
    counts[0, 0] += 1
    seen, rest = halves(counts, seeded())
    assert torch.equal(seen + rest, counts) and seen.min() >= 0 and rest.min() >= 0
    assert torch.equal(seen.sum(1), torch.full((50,), 20.0)) and rest.sum(1)[0] == 21
    assert not torch.equal(seen, halves(counts, seeded(1))[0])
    assert abs(float(seen[:, 0].sum() / counts[:, 0].sum()) - 0.5) < 0.1


def test_what_is_left_of_texts_is_predicted_by_their_shares():
    shares = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    rest = torch.tensor([[1.0, 0, 0, 0, 0, 1], [0, 2.0, 0, 0, 0, 0]])
    by_hand = (0.45 * 0.02 * 0.235**2) ** (-1 / 4)
    assert math.isclose(completed(shares, TOPICS, rest), by_hand, rel_tol=1e-6)
    with pytest.raises(DataError, match="per word"):
        completed(shares, TOPICS, 0 * rest)


def test_mean_shares_are_those_of_the_posterior():
    torch.manual_seed(0)
    vae = topic_model(6, latents.dirichlet(2), hidden=(4,))
    counts, _ = texts(5, seeded(1))
    exact = vae.posterior(counts)[0].base_dist.concentration.detach().squeeze(1)
    exact = exact / exact.sum(-1, keepdim=True)
    torch.testing.assert_close(mean_shares(vae, counts, 4000, seeded()), exact, rtol=0, atol=0.02)


def test_log_likelihoods_of_topics_are_those_of_a_sum_over_shares():
    torch.manual_seed(0)
    vae = topic_model(3, latents.dirichlet(2), hidden=(4,))
    counts = torch.tensor([[1.0, 2.0, 0.0]])
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000  # the prior of the first share is uniform
    shares = torch.stack([grid, 1 - grid], 1)
    exact = ((shares @ vae.decoder.topics().detach().double()).log() @ counts[0].double()).exp().mean().log()
    found = log_likelihood(vae, counts, 20_000, generator=seeded())
    assert abs(float(found) - float(exact)) < 5e-3


@pytest.mark.parametrize("kind", ["dirichlet", "logistic_normal"])
def test_the_topics_that_texts_were_drawn_from_are_found(kind):
    torch.manual_seed(0)
    vae = topic_model(6, latents.LATENTS[kind](2), hidden=(20,))
    counts, _ = texts(400, seeded(1))
    held_out, best = texts(200, seeded(2))
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.03)
    for step in range(250):
        optimizer.zero_grad()
        (-elbo(vae, counts[step % 4 :: 4], generator=seeded(step)).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        reached = perplexity(elbo(vae, held_out, 20, generator=seeded(3)), held_out)
    unigram = counts.sum(0) / counts.sum()
    apart = perplexity((held_out * unigram.log()).sum(1), held_out)
    assert best < reached < best + 0.4 * (apart - best)
    assert sorted(sorted(topic) for topic in top_words(vae, "abcdef", 2)) == [["a", "b"], ["e", "f"]]


def test_smoothed_topics_hold_a_share_of_all_words():
    torch.manual_seed(0)
    vae = topic_model(6, latents.dirichlet(2), hidden=(4,), smoothing=0.2)
    counts, _ = texts(30, seeded(1))
    vae.decoder.start_from(counts)
    frequencies = (counts.sum(0) + 1) / (counts.sum() + 6)
    expected = 0.8 * vae.decoder.weight.softmax(-1) + 0.2 * frequencies
    torch.testing.assert_close(vae.decoder.topics(), expected)
    torch.testing.assert_close(vae.decoder(torch.eye(2)).exp(), expected)
    with pytest.raises(ConfigError, match="smoothing of topics is a share"):
        topic_model(6, latents.dirichlet(2), smoothing=1.0)


def test_what_are_no_topics_is_refused():
    vae = topic_model(3, latents.dirichlet(2), hidden=())
    with pytest.raises(ConfigError, match="these 2 words are not those"):
        top_words(vae, ["a", "b"])
    with pytest.raises(ConfigError, match="not those of the topic model"):
        top_words(one_layer(), ["a", "b", "c"])
    with pytest.raises(ConfigError, match="needs words, got 0"):
        topic_model(0, latents.dirichlet(2))
    with pytest.raises(DataError, match="likelihood Multinomial"):
        elbo(vae, torch.tensor([[1.0, 0.5, 0.0]]))
