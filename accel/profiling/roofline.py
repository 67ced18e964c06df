"""A lower bound on the time of a matrix kernel, from its compiled code and the card's data sheet.

Never a measurement: caches, latency, bank conflicts, clocks and launches are left out, so that no card reaches it. What
it tells is which unit binds, how many waves of tiles a layer makes, and whether a change of the kernel can pay.
"""

from __future__ import annotations

import dataclasses
import math

from accel.kernels.triton.launch import Tile
from accel.profiling.machine_code import Code

HALF_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Card:
    """Data-sheet numbers (dense, half precision) of the card that a target stands for.

    `flop_per_clock` is of one multiprocessor; the clock follows from it. `l2_bytes_per_clock`, from L2 to one
    multiprocessor, is assumed: vendors do not state it. `issued_per_clock` counts instructions of a warp: one for each
    of four schedulers; on AMD a vector instruction of a wave holds one of the four 16-lane units for four clocks.
    """

    name: str
    processors: int
    half_flops: float
    bandwidth: float
    flop_per_clock: int
    l2_bytes_per_clock: int
    issued_per_clock: int

    @property
    def clock(self) -> float:
        return self.half_flops / (self.processors * self.flop_per_clock)


CARDS = {
    "sm80": Card("A100 SXM 80 GB", 108, 312e12, 2.039e12, 2048, 48, 4),
    "sm90": Card("H100 SXM", 132, 989e12, 3.35e12, 4096, 48, 4),
    "sm100": Card("B200", 148, 2250e12, 8.0e12, 8192, 48, 4),
    "gfx942": Card("MI300X", 304, 1307e12, 5.3e12, 2048, 48, 1),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """One convolution as a matrix product: computed rows, output channels, channels and taps, bytes of its memory."""

    rows: int
    out_channels: int
    in_channels: int
    taps: int
    memory_bytes: int

    @property
    def flop(self) -> int:
        return 2 * self.rows * self.out_channels * self.in_channels * self.taps


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that each unit needs at the least, by name; tiles; and tiles of the fullest multiprocessor."""

    seconds: dict[str, float]
    tiles: int
    tiles_per_processor: int

    @property
    def unit(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def total(self) -> float:
        return self.seconds[self.unit]


def bound(target: str, code: Code, tile: Tile, problem: Problem) -> Bound:
    """The bound of `problem` with one config; `code` is that config's, compiled for `target`."""
    card = CARDS[target]
    tiles = math.ceil(problem.rows / tile.rows) * math.ceil(problem.out_channels / tile.out)
    per_processor = math.ceil(tiles / card.processors)
    steps = per_processor * problem.taps * math.ceil(problem.in_channels / tile.inner)
    operands = HALF_BYTES * tile.inner * (tile.rows + tile.out)
    clocks = {
        "tensor cores": 2 * tile.rows * tile.out * tile.inner / card.flop_per_clock,
        "L2": operands / card.l2_bytes_per_clock,
        "instructions": code.issued * code.warps / card.issued_per_clock,  # 0 where no loop was found
    }
    seconds = {unit: steps * count / card.clock for unit, count in clocks.items()}
    seconds["memory"] = problem.memory_bytes / card.bandwidth
    return Bound(seconds, tiles, per_processor)
