"""Cases of kind `nearest`: the nearest map of large position sets; `height`, `width`, `keep`, `mask`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from accel.bench.runner import Row, Settings

SAMPLE = 100  # positions whose nearest one is found by brute force over all kept ones


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    from accel.masks import build_mask, nearest_map
    from accel.profiling.latency import compare

    height, width = case["height"], case["width"]
    generator = torch.Generator().manual_seed(settings.seed)
    positions = build_mask(case["mask"], case["keep"], height, width, generator=generator).positions
    nearest = nearest_map(positions, height, width, generator)
    where = torch.randint(height * width, (SAMPLE,), generator=generator)
    squared = _squared_distances(where, positions.long(), width)
    chosen = squared.gather(1, nearest[where].long()[:, None])[:, 0]
    wrong = int((chosen != squared.amin(dim=1)).sum())
    row = {"height": height, "width": width, "mask": case["mask"], "kept": len(positions), "error": wrong / SAMPLE}
    if wrong:
        yield {**row, "correct": False}
        return
    timing = compare(
        {"nearest_map": lambda: nearest_map(positions, height, width, generator)}, repeats=settings.repeats
    )
    yield {**row, "correct": True, "seconds": timing["nearest_map"].median_ms / 1000}


def _squared_distances(where, positions, width: int):
    """int64 [len(where), len(positions)] squared Euclidean distances between flat indices."""
    dy = where[:, None] // width - positions[None, :] // width
    dx = where[:, None] % width - positions[None, :] % width
    return dy * dy + dx * dx
