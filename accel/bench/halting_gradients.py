"""Cases of kind `halting_gradients`: the gradient of PACT's objective by every estimator, against enumeration.

A network of three stages of three units of the CIFAR ResNets, four channels wide, on one drawn picture: 27 ways to
halt. A case: `tau`, and maybe `kl`; `samples` of the decisions, drawn as copies of the picture in batches. The whole
gradient is compared, task loss included, along 16 random directions: `worst_z` is the largest difference in standard
errors, `bias` the length of the mean difference relative to that of the gradient, `variance` that of one sample, summed
over the parameters. A row is wrong where an estimator that is unbiased lies Z_LIMIT standard errors off, or the planted
one, a score function whose baseline contains the sample, does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.bench.runner import Row, Settings
from accel.config import PACT, Halting
from accel.mc import REBAR, Concrete, DisARM, Enumerate, Estimator, LeaveOneOut, MeasureValued, ScoreFunction
from accel.nn.adaptive import make_adaptive
from accel.nn.expected import expected_loss
from accel.zoo.cifar import BasicBlock

SHOWN = ("case", "estimator", "samples", "worst_z", "bias", "variance", "seconds")
Z_LIMIT = 4.0  # of 16 directions and four unbiased estimators: one in 250 by chance
_DIRECTIONS = 16
_COPIES = 250  # of the picture in a batch
_LEADING = 2  # forwards that lead, which leave-one-out needs and the others are given as well
_CHANNELS, _SIDE, _CLASSES = 4, 4, 4
_PLANTED = ScoreFunction(lambda costs: costs.mean(0, keepdim=True))
ESTIMATORS: dict[str, tuple[Estimator, bool]] = {  # and whether it is unbiased
    "leave one out": (ScoreFunction(LeaveOneOut()), True),
    "DisARM": (DisARM(), True),
    "REBAR": (REBAR(), True),
    "measure-valued": (MeasureValued(), True),
    "Concrete 2/3": (Concrete(2 / 3), False),
    "Concrete 0.2": (Concrete(0.2), False),
    "Concrete 0.05": (Concrete(0.05), False),
    "planted": (_PLANTED, False),
}


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    samples = case["samples"] // (10 if settings.quick else 1)
    exact = _gradient(_network(case, Enumerate(), settings.seed), picture(1, settings.seed), None)
    generator = torch.Generator().manual_seed(settings.seed)
    directions = torch.randn(_DIRECTIONS, len(exact), generator=generator, dtype=torch.float64)
    for name, (estimator, unbiased) in ESTIMATORS.items():
        start = time.perf_counter()
        projected, mean, variance, taken = _moments(case, estimator, samples, directions, settings.seed)
        error = projected.std(0) / len(projected) ** 0.5
        z = float(((projected.mean(0) - directions @ exact) / error).abs().max())
        right = z < Z_LIMIT if unbiased else z >= Z_LIMIT if name == "planted" else True
        yield {
            "estimator": name,
            "samples": taken,
            "worst_z": round(z, 2),
            "bias": round(float((mean - exact).norm() / exact.norm()), 4),
            "variance": variance,
            "seconds": round(time.perf_counter() - start, 1),
            "correct": right,
            "error": z,
        }


def _network(case: Mapping[str, Any], estimator: Estimator, seed: int) -> nn.Module:
    return small_network(PACT(tau=case["tau"], kl=case.get("kl"), estimator=estimator, spatial=False), seed)


def small_network(config: Halting, seed: int) -> nn.Module:
    """Three stages of three units, in double precision and evaluation, with heads that hesitate."""
    torch.manual_seed(seed)
    stages = [nn.Sequential(*(BasicBlock(_CHANNELS, _CHANNELS, 1) for _ in range(3))) for _ in range(3)]
    model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_CHANNELS, _CLASSES)).double()
    net = make_adaptive(model, {str(k): config for k in range(3)}).eval()
    set_heads(net, bias=-0.5, times=3)
    return net


@torch.no_grad()
def set_heads(net: nn.Module, bias: float, times: float) -> None:
    """Give all halting heads this bias, and so many times their weights."""
    for name, parameter in net.named_parameters():
        if name.endswith("halting.conv.bias"):
            parameter.fill_(bias)
        if name.endswith("halting.conv.weight"):
            parameter.mul_(times)


def picture(copies: int, seed: int) -> Tensor:
    """One drawn picture, so many times."""
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(1, _CHANNELS, _SIDE, _SIDE, generator=generator, dtype=torch.float64)
    return one.expand(copies, -1, -1, -1).contiguous()


def _gradient(net: nn.Module, x: Tensor, generator: torch.Generator | None) -> Tensor:
    labels = torch.zeros(len(x), dtype=torch.int64)
    loss = expected_loss(
        net, x, lambda y: F.cross_entropy(3 * y, labels, reduction="none"), num_samples=_LEADING, generator=generator
    )
    parameters = [parameter for _, parameter in net.named_parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in found])


def _moments(
    case: Mapping[str, Any], estimator: Estimator, samples: int, directions: Tensor, seed: int
) -> tuple[Tensor, Tensor, float, int]:
    """(means of batches along the directions, mean gradient, variance of a sample, samples taken)."""
    net, x = _network(case, estimator, seed), picture(_COPIES, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    each = _COPIES * _LEADING
    batches = max(2, -(-samples // each))
    found = torch.stack([_gradient(net, x, generator) for _ in range(batches)])
    return found @ directions.T, found.mean(0), float(found.var(0).sum()) * each, batches * each
