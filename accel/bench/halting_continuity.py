"""Cases of kind `halting_continuity`: the objectives of the policies along a line in their heads' parameters.

The network of `accel.bench.halting_gradients`, under each policy, the bias of every halting head going from `low` to
`high` together, the noise of relaxed decisions held. A row, one a policy: `objective` at `points` biases; `jump`, what
is left of its largest step when one looks ever closer, and `at`, where. A row is wrong where PACT jumps or another
policy does not: that ACT's objective is discontinuous, and PACT's not, is what the paper says (arXiv 1712.00386).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel.bench.halting_gradients import picture, small_network
from accel.bench.runner import Row, Settings
from accel.config import ACT, PACT, SACT, Halting
from accel.nn.adaptive import adaptive_stages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("policy", "jump", "at", "points")
JUMP, SMOOTH = 1e-3, 1e-7  # ACT's jumps are of the order of tau, the rest of a step halved thirty times is rounding
_HALVINGS = 30


def policies(tau: float) -> dict[str, Halting]:
    return {
        "PACT, pictures": PACT(tau=tau, spatial=False),
        "PACT, positions": PACT(tau=tau),
        "ACT": ACT(tau=tau),
        "SACT": SACT(tau=tau),
    }


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    points = 33 if settings.quick else case["points"]
    for name, config in policies(case["tau"]).items():
        value = objective(config, settings.seed)
        biases = torch.linspace(case["low"], case["high"], points, dtype=torch.float64).tolist()
        values = [value(bias) for bias in biases]
        jump, place = largest_jump(value, biases, values)
        right = jump < SMOOTH if isinstance(config, PACT) else jump > JUMP
        yield {
            "policy": name,
            "points": points,
            "jump": jump,
            "at": round(place, 6),
            "biases": [round(bias, 6) for bias in biases],
            "objective": [round(value, 7) for value in values],
            "error": jump,
            "correct": right,
        }


def objective(config: Halting, seed: int) -> Callable[[float], float]:
    """The loss of three pictures as a function of the bias of all halting heads."""
    net, x = small_network(config, seed), torch.cat([picture(1, seed + k) for k in range(3)])
    heads = [unit.halting.conv for stage in adaptive_stages(net) for unit in list(stage)[:-1]]
    labels = torch.arange(3, device="cpu")

    def value(bias: float) -> float:
        with torch.no_grad():
            for head in heads:
                nn.init.constant_(head.bias, bias)
            torch.manual_seed(seed)
            with accel.evaluate_as(net, "relaxed") if isinstance(config, PACT) else contextlib.nullcontext():
                out = net(x)
            return float(F.cross_entropy(out.logits, labels) + accel.ponder_loss(out))

    return value


def largest_jump(f: Callable[[float], float], where: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """(what is left of the largest step of f on a line when one looks ever closer, where that is)."""
    steps = [abs(b - a) for a, b in itertools.pairwise(values)]
    start = max(range(len(steps)), key=steps.__getitem__)
    (a, fa), (b, fb) = ((where[k], values[k]) for k in (start, start + 1))
    for _ in range(_HALVINGS):
        middle = (a + b) / 2
        value = f(middle)
        if abs(value - fa) > abs(fb - value):
            b, fb = middle, value
        else:
            a, fa = middle, value
    return abs(fb - fa), a


def draw(rows: Sequence[Row]) -> Figure:
    """The objectives over the bias, PACT's in one panel and those that jump in the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for panel, smooth in zip(figure.subplots(1, 2), (True, False)):
        for row in rows:
            if row["policy"].startswith("PACT") == smooth:
                label = f"{row['policy']}: largest jump {row['jump']:.1e}"
                panel.plot(row["biases"], row["objective"], ".", markersize=2.5, label=label)
        panel.set(title="relaxed PACT" if smooth else "ACT and SACT", xlabel="bias of the halting heads", ylabel="loss")
        panel.grid(alpha=0.3)
        panel.legend()
    return figure
