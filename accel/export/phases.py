"""Regular position sets as phases: the positions at every so-many-th row and column, which an ordinary convolution of a
larger stride computes. Every runtime has that one, and has made it fast."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from accel.kernels.positions import PositionSet

_LARGEST_PERIOD = 12  # of the lattices, along both axes
_MOST = 8  # phases of a set; the lattice of two thirds has six


@dataclasses.dataclass(frozen=True)
class Phase:
    """The positions (top + i * down, left + j * across) of a map of `size` (height, width)."""

    top: int
    left: int
    down: int
    across: int
    size: tuple[int, int]

    @property
    def rows(self) -> int:
        return -(-(self.size[0] - self.top) // self.down)

    @property
    def columns(self) -> int:
        return -(-(self.size[1] - self.left) // self.across)

    @property
    def positions(self) -> Tensor:
        """int64 [rows * columns], flat."""
        down = torch.arange(self.top, self.size[0], self.down, device="cpu")
        return (
            down[:, None] * self.size[1] + torch.arange(self.left, self.size[1], self.across, device="cpu")
        ).flatten()

    def towards(self, other: Phase, offset: tuple[int, int]) -> tuple[int, int] | None:
        """(i, j) such that row r and column c of this phase, moved by `offset` (dy, dx), are row r + i and column c + j
        of another one with the same steps; None where they are none of its positions."""
        dy, dx = self.top + offset[0] - other.top, self.left + offset[1] - other.left
        return None if dy % self.down or dx % self.across else (dy // self.down, dx // self.across)


def phases(positions: PositionSet) -> tuple[list[Phase], list[Phase]] | None:
    """(those that make up the set, those of the positions that it skips), of one period; None: it has no small one."""
    kept = torch.zeros(positions.size, dtype=torch.bool, device="cpu")
    kept.view(-1)[positions.positions.long()] = True
    down, across = _period(kept), _period(kept.T)
    if down is None or across is None:
        return None
    found: tuple[list[Phase], list[Phase]] = [], []
    for top in range(down):
        for left in range(across):
            found[not kept[top, left]].append(Phase(top, left, down, across, positions.size))
    return found if len(found[0]) <= _MOST else None


def _period(kept: Tensor) -> int | None:
    """The smallest number of rows after which a pattern, bool [H, W], repeats itself to its end."""
    for rows in range(1, min(len(kept), _LARGEST_PERIOD) + 1):
        if torch.equal(kept[rows:], kept[:-rows]):
            return rows
    return None
