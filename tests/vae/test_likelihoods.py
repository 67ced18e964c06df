"""Likelihoods: log densities by hand, supports, learned scales."""

import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli

from accel.errors import DataError
from accel.vae import likelihoods


def test_log_densities_are_those_of_the_distributions():
    output, grey = torch.tensor([[[0.3, -1.2]]]), torch.tensor([[[1.0, 0.25]]])
    probability = output.sigmoid()
    by_hand = (grey * probability.log() + (1 - grey) * (1 - probability).log()).sum(-1)
    torch.testing.assert_close(likelihoods.Bernoulli().log_prob(output, grey, 2), by_hand)

    normal = likelihoods.Normal(scale=0.5)
    assert math.isclose(float(normal.scale.detach()), 0.5, rel_tol=1e-5)
    difference = (grey - output) / 0.5
    by_hand = (-0.5 * difference**2 - math.log(0.5) - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(normal.log_prob(output, grey, 2), by_hand)
    assert not list(likelihoods.Normal(learned=False).parameters())

    logits = torch.tensor([[[[0.1, 2.0, -1.0], [0.0, 0.0, 0.0]]]])
    classes = torch.tensor([[[1.0, 2.0]]])
    by_hand = logits.log_softmax(-1)[..., 0, 1] - math.log(3)
    torch.testing.assert_close(likelihoods.Categorical(3).log_prob(logits, classes, 2), by_hand)
    assert likelihoods.Categorical(3).mean(logits).tolist() == [[[1.0, 0.0]]]

    words, counts = torch.tensor([[[0.5, -0.5, 1.0]]]), torch.tensor([[[2.0, 0.0, 1.0]]])
    by_hand = 2 * words.log_softmax(-1)[..., 0] + words.log_softmax(-1)[..., 2]
    torch.testing.assert_close(likelihoods.Multinomial().log_prob(words, counts, 2), by_hand)


def test_the_two_component_likelihood_mixes_value_by_value():
    noise = TorchBernoulli(torch.tensor(0.3))
    mixed = likelihoods.TwoComponent(likelihoods.Bernoulli(), likelihoods.Bernoulli(), noise.logits, share=0.2)
    output, x = torch.tensor([[[4.0, -1.0]]]), torch.tensor([[[0.0, 1.0]]])
    clean = TorchBernoulli(logits=output).log_prob(x).exp()
    by_hand = (0.8 * clean + 0.2 * noise.log_prob(x).exp()).log().sum(-1)
    torch.testing.assert_close(mixed.log_prob(output, x, 2), by_hand)
    mixed.log_prob(output, x, 2).sum().backward()
    assert mixed.raw_share.grad > 0  # the zero where the model is sure of a one speaks for noise


def test_noise_may_be_of_another_family_and_grey():
    wide = likelihoods.Normal(scale=10.0, learned=False)
    mixed = likelihoods.TwoComponent(likelihoods.Normal(scale=1.0), wide, torch.tensor(0.5), share=0.25)
    output, x = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[30.0, 1.0]]])
    clean, noise = (
        torch.distributions.Normal(loc, scale).log_prob(x).exp() for loc, scale in ((output, 1.0), (0.5, 10.0))
    )
    torch.testing.assert_close(mixed.log_prob(output, x, 2), (0.75 * clean + 0.25 * noise).log().sum(-1))
    bits = likelihoods.TwoComponent(likelihoods.Bernoulli(), likelihoods.Bernoulli(), torch.tensor(0.0))
    assert bits.log_prob(output, torch.tensor([[[0.5, 0.25]]]), 2).isfinite()


def test_all_that_a_two_component_likelihood_holds_moves_with_it():
    mixed = likelihoods.TwoComponent(likelihoods.Bernoulli(), likelihoods.Bernoulli(), torch.zeros(2)).to("meta")
    x = torch.zeros(1, 3, 2, device="meta")
    assert mixed.log_prob(x, x, 2).device.type == "meta"  # beside a tensor left on the CPU it would raise
    assert "noise_output" in mixed.state_dict()


@pytest.mark.parametrize(
    ("likelihood", "good", "bad", "support"),
    [
        (likelihoods.Bernoulli(), [0.0, 0.5, 1.0], -0.1, r"\[0, 1\]"),
        (likelihoods.Normal(), [-1e30, 0.0, 3.0], math.inf, "finite numbers"),
        (likelihoods.Categorical(4), [0.0, 3.0], 1.5, "whole numbers from 0 to 3"),
        (likelihoods.Categorical(4), [0.0, 3.0], 4.0, "whole numbers from 0 to 3"),
        (likelihoods.Multinomial(), [0.0, 100.0], -1.0, "whole numbers from 0"),
        (likelihoods.Bernoulli(), [0.0], math.nan, "the first is nan"),
    ],
)
def test_data_outside_the_support_is_refused(likelihood, good, bad, support):
    likelihood.check(torch.tensor(good))
    with pytest.raises(DataError, match=support):
        likelihood.check(torch.tensor([*good, bad]))


def test_samples_follow_the_output():
    generator = torch.Generator().manual_seed(0)
    output = torch.full((20_000,), 1.0)
    assert abs(likelihoods.Bernoulli().sample(output, generator).mean() - 0.7311) < 0.01
    drawn = likelihoods.Normal(scale=2.0).sample(output, generator)
    assert abs(drawn.mean() - 1) < 0.06 and abs(drawn.std() - 2) < 0.05
