"""Cases of kind `leaks`: a small network is converted, run and dropped, again and again.

A case: `cycles`, of which the first `warm` are not counted, and `size`. The row: `growth_mb`, what the process grew by
afterwards (10**6 bytes of resident memory); `left`, how many entries more the caches of the engine hold then; `error`,
the worst relative norm of an output against the readable reference.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-5  # relative norm, engine against readable reference
FORMS = (
    {"keep": 0.5, "mask": "lattice"},
    {"keep": 1.0, "mask": "grid"},
    {"keep": 0.3, "mask": "uniform", "interpolate": "weighted", "neighbors": 4},
    {"keep": 0.5, "mask": "adaptive"},
)


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    from accel.kernels.caches import entries
    from accel.profiling.memory import resident_bytes

    x = torch.randn(2, 3, *case["size"], generator=torch.Generator().manual_seed(settings.seed))
    error = max(cycle(number, x, check=True) for number in range(case["warm"]))
    gc.collect()
    before, held = resident_bytes(), entries()
    for number in range(case["warm"], case["cycles"]):
        cycle(number, x)
    gc.collect()
    growth, left = (resident_bytes() - before) / 1e6, entries() - held
    row = {"cycles": case["cycles"], "growth_mb": round(growth, 1), "left": left, "error": error}
    yield {**row, "correct": error <= TOLERANCE and left <= 0}


def cycle(number: int, x: Tensor, check: bool = False) -> float:
    """Convert a network and run it; with `check`, the relative norm of its output against the reference."""
    import torch
    from torch import nn

    import accel
    from accel import ops
    from accel.profiling.distances import relative_norm

    torch.manual_seed(number)
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 4, 1),
    ).eval()  # fmt: skip
    config = accel.Perforate(**FORMS[number % len(FORMS)], seed=number)
    fast = accel.convert_model(net, accel.Rules({"8": None, "*": config}), example_inputs=x)
    with torch.no_grad():
        fast(x)
        found = fast(x)
        if not check:
            return 0.0
        with ops.use_backend("reference"):
            return relative_norm(found, fast(x))
