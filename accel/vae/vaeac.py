"""VAE with arbitrary conditioning: one model of p(hidden cells | seen cells), whichever are hidden.

Ivanov, Figurnov and Vetrov, ICLR 2019, arXiv 1806.02382. Bounds are nats per example of the hidden cells that have a
value; cells that have none are hidden always and judged never, so that whatever stands in them changes nothing.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.errors import ConfigError, DataError

LEAST_SCALE = 1e-3  # of a latent
SIGMA_MEAN, SIGMA_SCALE = (
    1e4,
    1e-4,
)  # the paper's regulariser of the prior network: weak, it only stops a drift to infinity

LatentNormal = tuple[Tensor, Tensor]  # means and deviations [N, Z]


class CellLikelihood(Protocol):
    """What VAEAC asks of a likelihood, such as `accel.vae.table_likelihood.TableLikelihood`."""

    def features(self, cells: Tensor, hidden: Tensor) -> Tensor: ...

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor: ...


class VAEAC(nn.Module):
    """p(x_hidden | x_seen) = E p(x_hidden | z, x_seen) over z ~ p(z | x_seen), trained with q(z | x).

    Args:
        prior: features of the seen cells and mask [N, F + D] -> (raw latent parameters [N, 2 Z], what the decoder may
            read of the prior network's layers).
        proposal: features of all cells that have a value, mask, and which have none [N, F + 2 D] -> [N, 2 Z].
        decoder: (z [N, Z], the prior network's layers) -> the likelihood's outputs of all cells.
        likelihood: of cells [N, D].
    """

    def __init__(self, prior: nn.Module, proposal: nn.Module, decoder: nn.Module, likelihood: CellLikelihood) -> None:
        super().__init__()
        self.prior, self.proposal, self.decoder, self.likelihood = prior, proposal, decoder, likelihood

    def seen(self, cells: Tensor, hidden: Tensor) -> tuple[LatentNormal, list[Tensor]]:
        """(p(z | seen cells), the prior network's layers) for cells and bool hidden [N, D]; NaN counts as hidden."""
        clean, hidden, _ = _prepare(cells, hidden, None)
        return self._prior(clean, hidden)

    def _prior(self, clean: Tensor, hidden: Tensor) -> tuple[LatentNormal, list[Tensor]]:
        raw, layers = self.prior(torch.cat([self.likelihood.features(clean, hidden), hidden.to(clean.dtype)], 1))
        return _latent(raw), layers

    def _proposal(self, clean: Tensor, hidden: Tensor, missing: Tensor) -> LatentNormal:
        features = self.likelihood.features(clean, missing)
        return _latent(self.proposal(torch.cat([features, hidden.to(clean.dtype), missing.to(clean.dtype)], 1)))

    def bound(
        self, cells: Tensor, hidden: Tensor, missing: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """E log p(hidden | z, seen) - KL(q || prior), [N], by one sample, in nats.

        Args:
            cells: [N, D].
            hidden: bool [N, D], what is to be generated.
            missing: bool [N, D], cells without a value, hidden always; None: those that are NaN.
        """
        fit, divergences, _ = self._terms(cells, hidden, missing, generator)
        return fit - divergences

    def loss(
        self, cells: Tensor, hidden: Tensor, missing: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """-(bound + regulariser of the prior network), mean over the batch, over the number of cells a row has."""
        fit, divergences, prior = self._terms(cells, hidden, missing, generator)
        return (divergences - fit - regulariser(prior)).mean() / cells[0].numel()

    def _terms(
        self, cells: Tensor, hidden: Tensor, missing: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, LatentNormal]:
        """(log p(hidden | z, seen) of one z [N], KL(q || prior) [N], the prior)."""
        clean, hidden, missing = _prepare(cells, hidden, missing)
        prior, layers = self._prior(clean, hidden)
        proposal = self._proposal(clean, hidden, missing)
        z = proposal[0] + proposal[1] * _noise(proposal[0], generator)
        return self._judged(z, layers, clean, hidden & ~missing), divergence(proposal, prior).sum(-1), prior

    def iwae(
        self,
        cells: Tensor,
        hidden: Tensor,
        num_samples: int,
        missing: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log 1/K sum_k p(hidden | z_k, seen) p(z_k | seen) / q(z_k | all), [N]: tighter than `bound` with every
        sample.

        Arguments as in `bound`.
        """
        if num_samples < 1:
            raise ConfigError(f"iwae needs at least one sample, got num_samples={num_samples}")
        clean, hidden, missing = _prepare(cells, hidden, missing)
        prior, layers = self._prior(clean, hidden)
        proposal = self._proposal(clean, hidden, missing)
        total = torch.full((len(cells),), -math.inf, dtype=clean.dtype, device=clean.device)
        for _ in range(num_samples):
            noise = _noise(proposal[0], generator)
            z = proposal[0] + proposal[1] * noise
            log_q = (-0.5 * noise**2 - proposal[1].log()).sum(-1)
            log_prior = (-0.5 * ((z - prior[0]) / prior[1]) ** 2 - prior[1].log()).sum(-1)
            weight = self._judged(z, layers, clean, hidden & ~missing) + log_prior - log_q
            total = torch.logaddexp(total, weight)
        return total - math.log(num_samples)

    def _judged(self, z: Tensor, layers: list[Tensor], clean: Tensor, judged: Tensor) -> Tensor:
        log_p = self.likelihood.log_prob(self.decoder(z, layers), clean)
        return torch.where(judged, log_p, 0.0).flatten(1).sum(1)


def divergence(q: LatentNormal, p: LatentNormal) -> Tensor:
    """KL(q || p) of each latent, [N, Z]."""
    ratio = q[1] / p[1]
    return 0.5 * (ratio**2 + ((q[0] - p[0]) / p[1]) ** 2 - 1) - ratio.log()


def regulariser(prior: LatentNormal) -> Tensor:
    """log density of the prior network's outputs under a wide Normal-Gamma, [N]; stationary at mean 0, scale 1."""
    mean, scale = prior
    return (-(mean**2) / (2 * SIGMA_MEAN**2) + SIGMA_SCALE * (scale.log() - scale)).sum(-1)


def _latent(raw: Tensor) -> LatentNormal:
    mean, raw_scale = raw.chunk(2, -1)
    return mean, F.softplus(raw_scale) + LEAST_SCALE


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def _prepare(cells: Tensor, hidden: Tensor, missing: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(cells with 0 for what is missing, hidden or missing, missing)."""
    missing = cells.isnan() if missing is None else missing
    for name, mask in (("hidden", hidden), ("missing", missing)):
        if mask.shape != cells.shape or mask.dtype != torch.bool:
            raise DataError(
                f"the mask {name!r} must be bool of the shape of the data, {tuple(cells.shape)}: got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )
    return torch.where(missing, 0.0, cells), hidden | missing, missing


class PriorNetwork(nn.Module):
    """Residual layers that hand everything they computed, and their input, to the decoder."""

    def __init__(self, inputs: int, width: int, depth: int, latent: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, 2 * latent)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen = [x]
        h = self.first(x)
        for layer in self.layers:
            seen.append(h)
            h = h + F.leaky_relu(layer(h))
        seen.append(h)
        return self.last(h), seen


class ProposalNetwork(PriorNetwork):
    """The same, keeping its layers to itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class Decoder(nn.Module):
    """Residual layers, each of which reads one of the prior network's as well, the deepest first."""

    def __init__(self, inputs: int, width: int, depth: int, latent: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent, width)
        self.layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth + 1))
        self.last = nn.Linear(width + inputs, outputs)

    def forward(self, z: Tensor, seen: list[Tensor]) -> Tensor:
        """Outputs [N, P] for z [N, Z], or [N, S, P] for S of each row [N, S, Z]."""
        h = self.first(z)
        for layer, skip in zip(self.layers, reversed(seen[1:])):
            h = h + F.leaky_relu(_of_both(layer, h, skip))
        return _of_both(self.last, h, seen[0])


def _of_both(layer: nn.Linear, h: Tensor, skip: Tensor) -> Tensor:
    """layer(cat([h, skip])); of a row's several h the part of skip is computed once."""
    if h.dim() == skip.dim():
        return layer(torch.cat([h, skip], 1))
    own, rest = layer.weight.split([h.shape[-1], skip.shape[-1]], 1)
    return F.linear(h, own) + F.linear(skip, rest, layer.bias)[:, None]


def table_vaeac(likelihood: nn.Module, width: int, depth: int, latent: int) -> VAEAC:
    """A VAEAC of residual layers for a `TableLikelihood`."""
    features, cells = likelihood.num_features, len(likelihood.columns)
    prior = PriorNetwork(features + cells, width, depth, latent)
    proposal = ProposalNetwork(features + 2 * cells, width, depth, latent)
    decoder = Decoder(features + cells, width, depth, latent, likelihood.num_outputs)
    return VAEAC(prior, proposal, decoder, likelihood)
