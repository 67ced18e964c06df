"""Cases of kind `sizes`: one converted network on inputs of many sizes, in batches, by several numbers of threads.

A case: `model` (a name of the zoo, or "unet"), `sizes` (how many), drawn between `smallest` and `largest` pixels a
side, `batch` and `threads` (lists), `keep`, `mask`. The row: `calls`; `error`, the worst relative norm against the
readable reference; `ran`, the share of the calls in which every perforated layer ran in a rewritten path; `growth_mb`,
what the process grew by in a second round over the same sizes (10**6 bytes of resident memory). A warning is an error:
nothing falls back in silence, and nothing at all.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-4  # relative norm, engine against readable reference; errors of the layers add up along the network


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    import accel
    from accel.profiling.memory import resident_bytes
    from accel.zoo.registry import default_rules, get_model

    generator = torch.Generator().manual_seed(settings.seed)
    torch.manual_seed(settings.seed)
    config = accel.Perforate(keep=case["keep"], mask=case["mask"], seed=settings.seed)
    if case["model"] == "unet":
        model, rules = unet().eval(), accel.Rules({"last": None, "*": config})
    else:
        model, rules = get_model(case["model"], weights="none"), default_rules(case["model"], config)
    sides = torch.randint(case["smallest"], case["largest"] + 1, (case["sizes"], 2), generator=generator).tolist()
    fast = accel.convert_model(model, rules, example_inputs=torch.randn(1, 3, *sides[0], generator=generator))
    calls = list(itertools.product(sides, case["batch"], case["threads"]))
    row = {"model": case["model"], "keep": case["keep"], "sizes": len(sides), "calls": len(calls)}
    worst, whole, threads = 0.0, 0, torch.get_num_threads()
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("error")
            for size, batch, team in calls:
                torch.set_num_threads(team)
                x = torch.randn(batch, 3, *size, generator=generator)
                error, ran = _check(fast, x)
                worst, whole = max(worst, error), whole + ran
            before = resident_bytes()
            for size, batch, team in calls:
                torch.set_num_threads(team)
                fast(torch.randn(batch, 3, *size, generator=generator))
    finally:
        torch.set_num_threads(threads)
    growth = (resident_bytes() - before) / 1e6
    row |= {"error": worst, "ran": whole / len(calls), "growth_mb": round(growth, 1)}
    yield {**row, "correct": worst <= TOLERANCE and whole == len(calls)}


def _check(fast: nn.Module, x: Tensor) -> tuple[float, bool]:
    """(how far a call is from the reference, whether all perforated layers ran in a rewritten path)."""
    from accel import ops
    from accel.bench.foreign_checks import rewritten
    from accel.profiling.distances import relative_norm
    from accel.running import one_by_one

    outputs: list[Tensor] = []
    share, _ = rewritten(fast, lambda: outputs.append(fast(x)))
    with one_by_one(), ops.use_backend("reference"):
        expected = fast(x)
    return max(relative_norm(out, expected) for out in outputs), share == 1


def unet() -> nn.Module:
    """Two levels down and up again, the skips concatenated; any size of input, one map of its size out."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    def block(inner: int, outer: int) -> nn.Sequential:
        convs = [nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)]
        return nn.Sequential(*(layer for conv in convs for layer in (conv, nn.BatchNorm2d(outer), nn.ReLU())))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([block(3, 16), block(16, 32), block(32, 64)])
            self.up = nn.ModuleList([block(64 + 32, 32), block(32 + 16, 16)])
            self.last = nn.Conv2d(16, 1, 1)

        def forward(self, x):
            first = self.down[0](x)
            second = self.down[1](F.max_pool2d(first, 2))
            x = self.down[2](F.max_pool2d(second, 2))
            x = self.up[0](torch.cat([F.interpolate(x, second.shape[2:]), second], 1))
            x = self.up[1](torch.cat([F.interpolate(x, first.shape[2:]), first], 1))
            return self.last(x)

    return UNet()
