"""The nearest map: what is found length by length is what the distance transform finds, ties and draws included."""

import numpy as np
import pytest
import torch

from accel.masks import build_mask, nearest


def by_transform(positions: torch.Tensor, height: int, width: int, seed: int) -> torch.Tensor:
    """All skipped positions by the way that those far from any computed one go."""
    row_of = np.full(height * width, -1, dtype=np.int32)
    row_of[positions.numpy()] = np.arange(len(positions))
    draws = torch.rand(height * width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
    found = row_of.copy()
    nearest._stand_in_far(found, row_of.reshape(height, width), np.flatnonzero(row_of < 0), draws)
    return torch.from_numpy(found)


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (2, 2), (31, 40), (64, 37)], ids=str)
@pytest.mark.parametrize(
    ("mask", "keep"),
    [("lattice", 0.5), ("lattice", 1 / 3), ("grid", 0.5), ("grid", 0.02), ("uniform", 0.5), ("uniform", 0.03)],
)
def test_both_ways_find_the_same(mask, keep, size):
    positions = build_mask(mask, keep, *size, generator=torch.Generator().manual_seed(3)).positions
    if len(positions) == size[0] * size[1]:
        pytest.skip("the mask keeps every position of so small a map")
    found = nearest.nearest_map(positions, *size, torch.Generator().manual_seed(7))
    assert torch.equal(found, by_transform(positions, *size, seed=7))


def test_a_hole_is_filled_from_its_rim():
    """Positions farther than the lengths that are tried one by one."""
    positions = torch.tensor([y * 30 + x for y in range(30) for x in range(30) if y < 2 or x > 27], dtype=torch.int32)
    found = nearest.nearest_map(positions, 30, 30, torch.Generator().manual_seed(7))
    assert torch.equal(found, by_transform(positions, 30, 30, seed=7))
    assert positions[found[29 * 30].long()] in (29 * 30 + 28, 1 * 30)  # 28 to the right, or as far above


def test_memory_is_bounded(monkeypatch):
    """Chunks of a few pixels give what one gives."""
    positions = build_mask("grid", 0.3, 23, 19, generator=torch.Generator().manual_seed(0)).positions
    whole = nearest.nearest_map(positions, 23, 19, torch.Generator().manual_seed(1))
    monkeypatch.setattr(nearest, "_CHUNK", 7)
    assert torch.equal(whole, nearest.nearest_map(positions, 23, 19, torch.Generator().manual_seed(1)))
