"""Prepared plans: what the engine needs to know of a geometry and its position sets, built once and kept.

A plan is found by the identity of the tensors that make the sets, not by their values: hashing a map on every call
would cost more than a small convolution. Sets are frozen, so their tensors must not be changed in place.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.kernels.caches import IdentityCache, keep_newest
from accel.kernels.cpu.arguments import CPU
from accel.kernels.cpu.footprints import Footprints, of_convolution
from accel.kernels.cpu.record import FRAME_PIECE
from accel.kernels.positions import PositionSet, tap_map

Pair = tuple[int, int]
MOST_FOOTPRINTS = 8  # of a plan: the numbers of images that count as one, and dense or compact
RUN_CHANNELS = 8  # below this many channels a tap is one whole row of the kernel, kw * C floats


class Geometry(NamedTuple):
    """One convolution's sizes: everything a table of taps depends on, except the position sets."""

    in_size: Pair
    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    padding_mode: str

    def taps(self) -> Tensor:
        return tap_map(self.in_size, self.kernel, self.stride, self.padding, self.dilation, self.padding_mode)


@functools.lru_cache(maxsize=64)
def full_table(geometry: Geometry) -> Tensor:
    """int32 [taps, H_out * W_out]: the taps of every output position, for dynamic sets."""
    with torch.inference_mode(False):
        return geometry.taps().t().contiguous()


class Plan:
    """int32 tables of one geometry at one static position set, with their addresses by the names of Job in record.py.

    Attributes:
        table: [taps, P] pixel of the input (row of a compact input) that each tap reads, -1: zeros. With `as_runs` a
            tap is a row of the kernel, and -1 - e is edge e: a row across the border, copied to a buffer before.
        segments: CSR of the positions that each row stands for; None where the plan was made without a nearest map.
        in_pixels: pixels (or compact rows) of one image of what the table points into.
        edges: with `as_runs`, the pieces that fill this buffer, and the pixels that it has per image.
    """

    def __init__(
        self,
        geometry: Geometry,
        positions: Tensor,
        nearest: Tensor | None,
        source_nearest: Tensor | None,
        out_size: Pair,
        in_pixels: int,
        as_runs: bool,
    ) -> None:
        self.in_pixels, self.out_size = in_pixels, out_size
        self.edges: tuple[Tensor, int] | None = None
        if as_runs:
            table, self.edges = _run_table(geometry, positions)
        else:
            table = geometry.taps()[positions.long()]
            if source_nearest is not None:
                table = torch.where(table < 0, table, source_nearest[table.long()])
        self.table = table.t().contiguous().to(torch.int32)
        self.positions = positions.contiguous()
        self.segments = None if nearest is None else PositionSet(self.positions, nearest, *out_size).segments
        self.taps, self.count = self.table.shape
        self._footprints: dict[tuple[bool, int, bool], Footprints] = {}
        starts, targets = (0, 0) if self.segments is None else (t.data_ptr() for t in self.segments)
        table, positions = self.table.data_ptr(), self.positions.data_ptr()
        self.addresses = {"table": table, "positions": positions, "starts": starts, "targets": targets}

    def footprints(self, compact: bool, images: int, chained: bool) -> Footprints:
        """The rows of so many images by footprint, chained for narrow convolutions; made once."""
        key = compact, images, chained
        if key not in self._footprints:
            pixels = self.in_pixels, self.count if compact else self.out_size[0] * self.out_size[1]
            with torch.inference_mode(False):
                made = of_convolution(
                    self.table, self.positions, None if compact else self.segments, self.out_size[1], images, pixels,
                    chained,
                )  # fmt: skip
            self._footprints[key] = made
            keep_newest(self._footprints, MOST_FOOTPRINTS)
            return made
        return self._footprints[key]


def _run_table(geometry: Geometry, positions: Tensor) -> tuple[Tensor, tuple[Tensor, int]]:
    """([P, kh] table of whole kernel rows, Plan.edges): rows whose pixels follow each other are read where they are."""
    kw = geometry.kernel[1]
    runs = geometry.taps()[positions.long()].unflatten(1, geometry.kernel)
    first, inside = runs[..., 0], runs >= 0
    direct = inside.all(-1) & (runs == first[..., None] + torch.arange(kw, dtype=torch.int32, device=CPU)).all(-1)
    copied = inside.any(-1) & ~direct
    edges, which = torch.unique(runs[copied], dim=0, return_inverse=True)
    table = first.masked_fill(~direct, -1)
    table[copied] = -2 - which.to(torch.int32)
    pixel_of = torch.cat((edges.new_full((kw,), -1), edges.flatten()))
    return table, (frame_pieces(pixel_of, kw), len(pixel_of))


def frame_pieces(pixel_of: Tensor, cols: int) -> Tensor:
    """FramePieces: the runs of neighbouring input pixels, or of zeros, within the rows of a frame of `cols` columns,
    whose pixels hold the input pixels `pixel_of`, -1: none."""
    here, before = pixel_of[1:], pixel_of[:-1]
    starts = torch.ones_like(pixel_of, dtype=torch.bool)
    starts[1:] = torch.where((here < 0) | (before < 0), (here < 0) != (before < 0), here != before + 1)
    starts[::cols] = True  # rows are shared out among threads
    first = starts.nonzero()[:, 0]
    count = F.pad(first[1:], (0, 1), value=len(pixel_of)) - first
    return FRAME_PIECE.table(to=first, first=pixel_of[first], count=count)


_plans = IdentityCache()


def static_plan(geometry, positions, nearest, source_nearest, out_size, in_pixels, as_runs) -> Plan:
    """The plan of a static set, made now or found; arguments as of `Plan`."""
    sets = (positions, nearest, source_nearest)
    return _plans.get(
        sets,
        (geometry, out_size, in_pixels, as_runs),
        lambda sets: Plan(geometry, *sets, out_size, in_pixels, as_runs),
    )
