"""Which log alpha a robust bound should have, and how to get there: no clean data needed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from accel.errors import ConfigError
from accel.vae.bounds import elbo
from accel.vae.model import VAE

_ROWS = 500  # examples at a time: 10 samples of 784 pixels each take 16 MB


def annealed_log_alpha(step: int, steps: int, log_alpha: float, start: float) -> float:
    """log alpha of a training step: it rises in a straight line from `start` to `log_alpha` in `steps` steps.

    With log alpha above the evidence of every example nothing would be learned, so start below the first bounds; an
    infinite `start`, or no steps, gives `log_alpha` at once.

    Raises:
        ConfigError: `start` above `log_alpha`.
    """
    if steps <= 0 or step >= steps or math.isinf(start) or math.isinf(log_alpha):
        return log_alpha
    if start > log_alpha:
        raise ConfigError(f"log alpha is annealed upwards: start={start:g} lies above log_alpha={log_alpha:g}")
    return start + (log_alpha - start) * step / steps


def trimmed_mean(values: Tensor, keep: float) -> Tensor:
    """The mean of the highest `keep` of the values [N]: of bounds, what the examples are worth that are no noise.

    Raises:
        ConfigError: keep outside (0, 1], or no values.
    """
    if not 0 < keep <= 1 or not len(values):
        raise ConfigError(f"a trimmed mean needs values and keep in (0, 1], got {len(values)} values and keep={keep:g}")
    return values.topk(max(1, round(keep * len(values)))).values.mean()


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: how likely a positive example has a higher score than another one, ties counting half.

    Args:
        scores: [N]. positive: bool [N].

    Raises:
        ConfigError: not both kinds of examples, or NaN among the scores.
    """
    count = int(positive.sum())
    if not 0 < count < len(scores) or scores.isnan().any():
        raise ConfigError(f"an AUROC needs examples of both kinds and no NaN, got {count} positive of {len(scores)}")
    _, index, ties = scores.unique(return_inverse=True, return_counts=True)
    ranks = (ties.cumsum(0).double() - (ties - 1) / 2)[index]  # of equal scores, their mean
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


@torch.no_grad()
def choose_log_alpha(
    fits: Mapping[float, VAE],
    x: Tensor,
    keep: float,
    *,
    num_samples: int = 10,
    generator: torch.Generator | None = None,
) -> tuple[float, dict[float, float]]:
    """(the best log alpha, the trimmed ELBO of each), without clean data.

    The robust bound itself cannot choose: it rises with log alpha. The ELBO of the likeliest examples of a validation
    set that is as noisy as the training set can.

    Args:
        fits: log alpha -> the VAE trained with it.
        x: [N, ...], validation examples, contaminated as the training set is.
        keep: share of them that is surely no noise.

    Raises:
        ConfigError: no fit, or keep outside (0, 1].
    """
    if not fits:
        raise ConfigError("choose_log_alpha needs at least one trained VAE: fits={log_alpha: vae}")
    scores = {}
    for log_alpha, vae in fits.items():
        bounds = [elbo(vae, rows, num_samples, generator=generator) for rows in x.split(_ROWS)]
        scores[log_alpha] = float(trimmed_mean(torch.cat(bounds), keep))
    return max(scores, key=scores.__getitem__), scores
