"""Bernoulli and categorical latents up to the ends of their range: infinite logits, probabilities of 0 and 1.

torch moves probabilities off 0 and 1 by the eps of the dtype, which stops their gradient, and infinite logits make NaN
of 0 * inf. Here a probability is taken as it is, and infinite logits as 1e4, from where on every derivative is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Categorical, Distribution, OneHotCategorical
from torch.nn import functional as F

from .rows import parameter_names

LARGEST_LOGIT = 1e4  # exp(-1e4) is 0 in every dtype, and the logit itself a number in each


def finite_logits(q: Distribution, estimator: str) -> Tensor:
    """Logits of a Bernoulli or OneHotCategorical, differentiable in what q was built from.

    Raises:
        ValueError: see `refuse_certain`.
    """
    if "probs" not in parameter_names(q):
        return q.logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    refuse_certain(q, estimator)
    log_probs = q.probs.log()
    logits = log_probs - (-q.probs).log1p() if isinstance(q, Bernoulli) else log_probs
    return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


def log_prob(q: Distribution, x: Tensor, estimator: str) -> Tensor:
    """Log probability of a sample x of q, with its score.

    Raises:
        ValueError: see `refuse_certain`.
    """
    refuse_certain(q, estimator)
    if isinstance(q, Bernoulli) and "probs" not in parameter_names(q):
        return F.logsigmoid((2 * x - 1) * q.logits)
    if isinstance(q, (Bernoulli, Categorical, OneHotCategorical)) and "probs" in parameter_names(q):
        return probability(q, x).log()
    return q.log_prob(x)


def probability(q: Distribution, x: Tensor) -> Tensor:
    """q(x) of a discrete q, differentiable also where it is 0.

    Raises:
        ValueError: a Binomial whose probability is 0 or 1 and requires a gradient.
    """
    if isinstance(q, Bernoulli):
        return torch.where(x > 0, q.probs, 1 - q.probs)
    if isinstance(q, Categorical):
        probs = q.probs.expand(*x.shape, q.probs.shape[-1])
        return probs.gather(-1, x.long().unsqueeze(-1)).squeeze(-1)
    if isinstance(q, OneHotCategorical):
        return (q.probs * x).sum(-1)
    if isinstance(q, Binomial):
        refuse_certain(q, "Enumerate")
    return q.log_prob(x).exp()


def refuse_certain(q: Distribution, estimator: str) -> None:
    """Raise where a given probability with a gradient is so near to 0 or 1 that its other outcome is not sampled.

    There the derivative in the probability is that of an outcome which never comes.
    """
    if not isinstance(q, (Bernoulli, Binomial, Categorical, OneHotCategorical)) or "probs" not in parameter_names(q):
        return
    probs = q.probs
    if not probs.requires_grad:
        return
    binary = isinstance(q, (Bernoulli, Binomial))
    least = torch.finfo(probs.dtype).eps if binary else torch.finfo(probs.dtype).tiny
    certain = (probs < least) | (binary & (probs > 1 - least))
    if certain.any():
        raise ValueError(
            f"{estimator} has no derivative in probabilities of {type(q).__name__} that are 0 or 1 to the accuracy of "
            f"{probs.dtype}, as {probs[certain][0]:g}: the other outcome is never drawn; "
            "build q from logits, or use MeasureValued (of a Bernoulli or Categorical, Enumerate too), exact there"
        )
