"""d t / d df of t ~ StudentT(df) at a fixed quantile: the readable reference.

The implicit gradient -(dF/d df) / p (Figurnov, Mohamed, Mnih 2018, arXiv 1805.08498). Below 100 degrees of freedom it
follows from the Beta's: t^2 = df e^-y, y the logit of Beta(df / 2, 1 / 2). Above, that difference loses digits like
df^2, so the score is integrated directly, from 0 to t or from t outwards, whichever keeps its sign.

Largest relative error over df in [1e-1, 1e6], quantiles 1e-6 to 1 - 1e-6, against multiprecision: 2e-11.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.reference.beta_gradient import NODES, beta_gradient
from accel.kernels.reference.special import TAIL_DROP, tail_nodes

MANY = 100.0


def student_t_gradient(df: Tensor, t: Tensor) -> Tensor:
    """dt/d df, elementwise; one shape and dtype (float32 or float64). NaN for df <= 0 or a NaN."""
    dtype, df, t = t.dtype, df.double(), t.double()
    valid = (df > 0) & ~t.isnan()
    df, t = torch.where(valid, df, 1.0), torch.where(valid, t, 1.0)
    absolute = torch.where(t < 0, -t, t).clamp(1e-300, 1e300)
    few = torch.where(df < MANY, df, 1.0)
    slope = beta_gradient(few / 2, torch.full_like(few, 0.5), few.log() - 2 * absolute.log())
    start = torch.where(df < MANY, 1.0, absolute.clamp(max=1e150))
    direct = _quadrature(torch.where(df < MANY, MANY, df), start)
    value = torch.where(df < MANY, 0.5 * absolute * (1 / few - 0.5 * slope), direct)
    return torch.where(valid, torch.where(t < 0, -value, value), torch.nan).to(dtype)


def _quadrature(df: Tensor, start: Tensor) -> Tensor:
    """The integral of the score against the density over that at `start` > 0."""
    log_start = (start * start / df).log1p()
    end = (df * torch.expm1(2 * TAIL_DROP / (df + 1) + log_start)).sqrt().detach()  # where e^-36 is left
    length = torch.where(_score(df, start) > 0, 0.0, end) - start
    total = torch.zeros_like(start)
    for node, weight in zip(*tail_nodes(NODES)):
        s = start + length * node
        fall = 0.5 * (df + 1) * ((s * s / df).log1p() - log_start)
        total = total + weight * _score(df, s) * (-fall).exp()
    return total * length


def _score(df: Tensor, s: Tensor) -> Tensor:
    """d log p(s) / d df for df >= 100; its parts are of order df^-2 and computed without their larger terms."""
    r = 4 / (df * df)
    # (psi((df + 1) / 2) - psi(df / 2) - 1 / df) / 2, from DLMF 5.11.2
    centre = 0.5 * r * (1 / 8 - r * (1 / 64 - r * (1 / 128 - r * (17 / 2048 - r * (31 / 2048)))))
    q = s * s / df
    small = torch.where(q < 0.03, q, 0.0)
    series = torch.zeros_like(q)  # of q / (1 + q) - log(1 + q) = -q^2 (1/2 - 2/3 q + 3/4 q^2 - ...)
    for n in range(13, 1, -1):
        series = series * -small + (n - 1) / n
    bend = torch.where(q < 0.03, -series * small * small, q / (1 + q) - q.log1p())
    return centre + 0.5 * (bend + q / (df * (1 + q)))
