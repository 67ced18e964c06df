"""The variational autoencoder: an encoder, latents, a decoder, a likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent

from accel.errors import ConfigError, DataError
from accel.mc import DisARM, Estimator, LeaveOneOut, Pathwise, ScoreFunction
from accel.mc.sampling import draw
from accel.nn.stage_outputs import AdaptiveOutput
from accel.vae.latents import Latent
from accel.vae.likelihoods import Likelihood

Samples = Sequence[Tensor]


class VAE(nn.Module):
    """p(x | z) p(z) with an amortised posterior q(z | x) (Kingma and Welling 2014, arXiv 1312.6114).

    Args:
        encoder: x [N, ...] -> [N, P], P the latents' `num_parameters` in all.
        decoder: [M, F] -> the likelihood's outputs [M, ...], F the latents' `num_features` in all; one with PACT stages
            is trained by `halting_elbo`.
        latent: one latent variable, or several independent ones, whose parameters and features follow each other.
        likelihood: of x.
        estimator: of `accel.mc`, for every latent or one each; None: Pathwise where samples have a gradient, DisARM for
            bits, else the score function with leave-one-out baselines, which needs two samples or more.

    Attributes:
        log_alpha: a buffer, the log of the evidence below which an example counts as noise: what `robust_elbo` was
            trained with, for `outlier_score`. Minus infinity: never.

    Raises:
        ConfigError: no latent, or not one estimator for each.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent: Latent | Sequence[Latent],
        likelihood: Likelihood,
        estimator: Estimator | Sequence[Estimator | None] | None = None,
    ) -> None:
        super().__init__()
        latents = [latent] if isinstance(latent, Latent) else list(latent)
        estimators = list(estimator) if isinstance(estimator, Sequence) else [estimator] * len(latents)
        if not latents or len(estimators) != len(latents):
            raise ConfigError(
                f"a VAE needs a latent, and one estimator or one for each: got {len(latents)} latents and "
                f"{len(estimators)} estimators"
            )
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latents = nn.ModuleList(latents)
        self.given_estimators = estimators
        self.register_buffer("log_alpha", torch.tensor(-math.inf, dtype=torch.float32, device="cpu"))

    def posterior(self, x: Tensor, repeat: int | None = None) -> list[Distribution]:
        """q(z | x) of every latent, of batch shape [N], or [N, repeat]: copies that share their parameters."""
        return self.distributions(self.encode(x), repeat)

    def encode(self, x: Tensor) -> Tensor:
        """[N, P], the parameters of all posteriors, unconstrained.

        Raises:
            DataError: data outside the likelihood's support.
            ConfigError: the encoder's output has another shape.
        """
        self.likelihood.check(x)
        parameters = self.encoder(x)
        wanted = (len(x), sum(latent.num_parameters for latent in self.latents))
        if tuple(parameters.shape) != wanted:
            raise ConfigError(
                f"the encoder gave {tuple(parameters.shape)} for {len(x)} examples, its latents take {wanted}: "
                "let its last layer have as many outputs"
            )
        if not parameters.isfinite().all():
            raise DataError("the encoder's outputs are not finite: lower the learning rate, or scale the data")
        return parameters

    def distributions(self, parameters: Tensor, repeat: int | None = None) -> list[Distribution]:
        """The posteriors that `encode` gave parameters for."""
        if repeat is not None:
            parameters = parameters[:, None].expand(-1, repeat, -1)
        parts = parameters.split([latent.num_parameters for latent in self.latents], -1)
        return [latent.posterior(part) for latent, part in zip(self.latents, parts)]

    def estimators(self, posteriors: Sequence[Distribution]) -> list[Estimator]:
        """How the gradient of an expectation over each latent is estimated."""
        pairs = zip(self.given_estimators, posteriors)
        return [_default_estimator(q) if given is None else given for given, q in pairs]

    def features(self, samples: Samples) -> Tensor:
        """[*batch, F], what the decoder reads of samples [*batch, *event] of every latent."""
        parts = [latent.features(z) for latent, z in zip(self.latents, samples)]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def decode(self, samples: Samples) -> Tensor:
        """Decoder outputs [*batch, ...] for samples [*batch, *event] of every latent."""
        features = self.features(samples)
        outputs = self.decoder(features.flatten(0, -2))
        if isinstance(outputs, AdaptiveOutput):  # of a decoder that decides how long it computes
            outputs = outputs.logits
        return outputs.unflatten(0, features.shape[:-1])

    def log_weights(self, x: Tensor, samples: Samples, posteriors: Sequence[Distribution], batch_dims: int) -> Tensor:
        """T = log p(x, z) - log q(z | x), of shape [*batch].

        Args:
            x: [*batch, ...], expanded to the samples' batch.
            samples: of every latent, [*batch, *event]; `batch_dims` says how many dimensions the batch has.
        """
        total = self.log_conditional(x, samples, batch_dims)
        for latent, z, q in zip(self.latents, samples, posteriors):
            total = total + latent.prior().log_prob(z) - q.log_prob(z)
        return total

    def log_conditional(self, x: Tensor, samples: Samples, batch_dims: int) -> Tensor:
        """log p(x | z) [*batch]; arguments as in `log_weights`."""
        return self.likelihood.log_prob(self.decode(samples), x, batch_dims)

    @torch.no_grad()
    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Means of x [num_samples, ...] for latents drawn from the prior."""
        drawn = [draw(latent.prior().expand((num_samples,)), generator) for latent in self.latents]
        return self.likelihood.mean(self.decode(drawn))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Means of x [N, ...] for one draw from each example's posterior."""
        return self.likelihood.mean(self.decode([draw(q, generator) for q in self.posterior(x)]))

    @torch.no_grad()
    def outlier_score(self, x: Tensor, num_samples: int = 50, generator: torch.Generator | None = None) -> Tensor:
        """float64 [N] in [0, 1], 1 for what the model takes for noise: 1 - sigmoid(T - log_alpha).

        T is the importance-weighted bound of `num_samples`; sigmoid(T - log_alpha) is the weight that the robust bound
        gives an example (arXiv 1611.09226). Far from log_alpha scores round to 0 and 1: to rank examples, rank T.

        Raises:
            ConfigError: `log_alpha` was never set.
        """
        from accel.vae.importance import log_likelihood

        if self.log_alpha == -math.inf:
            raise ConfigError("outlier_score needs vae.log_alpha: train with robust_elbo and set it to that log alpha")
        evidence = log_likelihood(self, x, num_samples, generator=generator).double()
        return torch.sigmoid(self.log_alpha.double() - evidence)


def _default_estimator(q: Distribution) -> Estimator:
    if q.has_rsample:
        return Pathwise()
    bare = q.base_dist if isinstance(q, Independent) else q
    return DisARM() if isinstance(bare, Bernoulli) else ScoreFunction(LeaveOneOut())
