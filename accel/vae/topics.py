"""Topics of texts by amortised inference: shares of topics as the latent, a mixture of word distributions as decoder.

With the latent `dirichlet` it is latent Dirichlet allocation (Blei et al. 2003) whose posterior an encoder gives,
trained through implicit gradients (Figurnov et al. 2018, arXiv 1805.08498); with `logistic_normal` its usual rival
(Srivastava and Sutton 2017, arXiv 1703.01488).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from accel.errors import ConfigError, DataError
from accel.mc.sampling import draw
from accel.vae import likelihoods
from accel.vae.latents import Latent
from accel.vae.model import VAE


class LogCounts(nn.Module):
    """Counts [N, words] -> log(1 + counts): frequent words do not drown the others."""

    def forward(self, counts: Tensor) -> Tensor:
        return counts.log1p()


class TopicDecoder(nn.Module):
    """Shares of topics [M, topics] -> log probabilities of words [M, words].

    Args:
        smoothing: the share of `background` in every topic: words that a topic's few texts do not hold may occur.

    Attributes:
        weight: [topics, words], a logit per word.
        background: [words], probabilities; uniform before `start_from`.
    """

    def __init__(self, topics: int, words: int, smoothing: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(topics, words, dtype=torch.float32, device="cpu"))  # topics that differ
        self.smoothing = smoothing
        self.register_buffer("background", torch.full((words,), 1 / words, dtype=torch.float32, device="cpu"))

    @torch.no_grad()
    def start_from(self, counts: Tensor) -> None:
        """Let every topic begin near the frequencies of words in counts [N, words]: training learns what differs."""
        seen = counts.sum(0) + 1
        self.weight.add_(seen.log())
        self.background.copy_(seen / seen.sum())

    def topics(self) -> Tensor:
        """[topics, words], the probabilities of words in each."""
        own = self.weight.softmax(-1)
        return (1 - self.smoothing) * own + self.smoothing * self.background if self.smoothing else own

    def forward(self, shares: Tensor) -> Tensor:
        return (shares @ self.topics()).clamp_min(torch.finfo(shares.dtype).tiny).log()


def topic_model(words: int, latent: Latent, hidden: Sequence[int] = (300, 300, 300), smoothing: float = 0.0) -> VAE:
    """The VAE of counts [N, words] whose latent's features are shares of topics; smoothing as in `TopicDecoder`.

    Raises:
        ConfigError: no word, or a smoothing outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ConfigError(f"the smoothing of topics is a share from 0 to below 1, got {smoothing:g}")
    if words < 1:
        raise ConfigError(f"a topic model needs words, got {words}")
    sizes = [words, *hidden]
    layers: list[nn.Module] = [LogCounts()]
    for width, following in itertools.pairwise(sizes):
        layers += [nn.Linear(width, following), nn.ReLU()]
    encoder = nn.Sequential(*layers, nn.Linear(sizes[-1], latent.num_parameters))
    return VAE(encoder, TopicDecoder(latent.num_features, words, smoothing), latent, likelihoods.Multinomial())


def perplexity(log_probabilities: Tensor, counts: Tensor) -> float:
    """exp(- nats per word) of all texts together; from a bound, in expectation, an upper bound of the perplexity.

    Args:
        log_probabilities: [N], `elbo` or `log_likelihood` of each text.
        counts: [N, words].

    Raises:
        DataError: the texts hold no word.
    """
    words = counts.double().sum()
    if not words > 0:
        raise DataError("a perplexity is per word, and these texts hold none: give counts of words")
    return float((-log_probabilities.double().sum() / words).exp())


def halves(counts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(seen, rest) of counts [N, words]: each text's words fall into two halves at random, which add up to it."""
    seen = torch.zeros_like(counts)
    for half, text in zip(seen, counts):
        words = torch.repeat_interleave(text.long())
        chosen = words[torch.randperm(len(words), generator=generator, device="cpu")[: len(words) // 2]]
        half += torch.bincount(chosen, minlength=len(text)).to(half)
    return seen, counts - seen


@torch.no_grad()
def mean_shares(vae: VAE, counts: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """[N, topics], the means of the posteriors of texts' shares of topics, by samples."""
    return (
        sum(vae.features([draw(q, generator) for q in vae.posterior(counts)]) for _ in range(num_samples)) / num_samples
    )


def completed(shares: Tensor, topics: Tensor, rest: Tensor) -> float:
    """The perplexity of what is left of texts, each word being drawn from a mixture of topics (Rosen-Zvi et al. 2004):
    of any model that gives shares after reading the first half, and exact.

    Args:
        shares: [N, topics], of each text's. topics: [topics, words], their probabilities. rest: counts [N, words].

    Raises:
        DataError: no word is left.
    """
    log_probabilities = (shares.double() @ topics.double()).clamp_min(torch.finfo(torch.float64).tiny).log()
    return perplexity((rest * log_probabilities).sum(-1), rest)


def top_words(vae: VAE, words: Sequence[str], count: int = 8) -> list[list[str]]:
    """Of every topic, its likeliest words.

    Raises:
        ConfigError: another number of words than the model has, or a VAE of something else.
    """
    if not isinstance(vae.decoder, TopicDecoder) or vae.decoder.weight.shape[1] != len(words):
        raise ConfigError(f"these {len(words)} words are not those of the topic model: give its own vocabulary")
    best = vae.decoder.weight.topk(min(count, len(words)), dim=1).indices.tolist()
    return [[words[index] for index in topic] for topic in best]
