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
from accel.kernels.cpu.arguments import CPU, address
from accel.kernels.cpu.footprints import Footprints, Grouped, by_axes, by_table, of_convolution
from accel.kernels.cpu.record import FRAME_PIECE
from accel.kernels.positions import PositionSet, axis_taps, tap_map

Pair = tuple[int, int]
MOST_FOOTPRINTS = 8  # of a plan: the numbers of images that count as one, and dense or compact
# Rows of an image that lists are made for; more of them are read through pointers. Of compact inputs fewer: they are
# grouped by all their taps.
MOST_GROUPED, MOST_GROUPED_COMPACT = 1 << 18, 1 << 17
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
        return tap_map(*self)


@functools.lru_cache(maxsize=64)
def full_table(geometry: Geometry) -> Tensor:
    """int32 [taps, H_out * W_out]: the taps of every output position, for gradients at dynamic sets."""
    with torch.inference_mode(False):
        return geometry.taps().t().contiguous()


class Axes(NamedTuple):
    """The taps of a geometry along both axes, as JOB in record.py has them; they grow with the map's sides only.

    Attributes:
        rows, columns: int32 [H_out, 1 + kh] and [W_out, 1 + kw], or as runs [W_out, 2]; None where every position
            reads its own pixel.
        taps, tap_columns: their numbers.
        edge_columns: edges of an input row; edge_pixels, pixels of all edges and the zeros before them; pieces, what
            fills these in, None where taps are no runs.
    """

    rows: Tensor | None
    columns: Tensor | None
    taps: int
    tap_columns: int
    edge_columns: int = 0
    edge_pixels: int = 0
    pieces: Tensor | None = None

    @property
    def addresses(self) -> dict[str, int]:
        return {"row_taps": address(self.rows), "column_taps": address(self.columns)}


@functools.lru_cache(maxsize=256)
def axes(geometry: Geometry, as_runs: bool) -> Axes:
    """`as_runs`: a tap is a row of the kernel; rows across the border are copied to a buffer before, as edges."""
    with torch.inference_mode(False):
        rows, columns = axis_taps(*geometry)
        (kh, kw), height = geometry.kernel, geometry.in_size[0]
        row_taps = _with_start(rows, geometry.dilation[0])
        if as_runs:
            run_taps, edges = _runs(columns)
            inside = edges + torch.arange(height, device=CPU)[:, None, None] * geometry.in_size[1]
            pixel_of = inside.masked_fill(edges < 0, -1).flatten()
            pixel_of = torch.cat((pixel_of.new_full((kw,), -1), pixel_of))  # the zeros come first
            return Axes(row_taps, run_taps, kh, 1, len(edges), len(pixel_of), frame_pieces(pixel_of, kw))
        if kh == kw == 1 and geometry.in_size[1] == len(columns) and _is_identity(rows) and _is_identity(columns):
            return Axes(None, None, 1, 1)
        return Axes(row_taps, _with_start(columns, geometry.dilation[1]), kh * kw, kw)


def _with_start(taps: Tensor, step: int) -> Tensor:
    """int32 [size, 1 + kernel]: before the taps the first of them where all lie inside, `step` apart; else -1."""
    even = (taps >= 0).all(1) & (taps.diff(dim=1) == step).all(1)
    return torch.cat((taps[:, :1].masked_fill(~even[:, None], -1), taps), 1).to(torch.int32)


def _runs(columns: Tensor) -> tuple[Tensor, Tensor]:
    """(int32 [W_out, 2]: where the run of each output column starts if it is read where it is, else -1; the same, or
    -1 - e for edge e. int64 [edges, kw]: the input columns of each edge)."""
    direct = (columns >= 0).all(1) & (columns.diff(dim=1) == 1).all(1)
    edges, which = torch.unique(columns[~direct], dim=0, return_inverse=True)
    start, run = columns[:, 0].masked_fill(~direct, -1), columns[:, 0].clone()
    run[~direct] = -1 - which
    return torch.stack((start, run), 1).to(torch.int32), edges


def _is_identity(taps: Tensor) -> bool:
    flat = taps.flatten()
    return torch.equal(flat, torch.arange(len(flat), dtype=flat.dtype, device=CPU))


class Plan:
    """What the engine reads of one geometry at one static position set, with the addresses.

    Attributes:
        axes: the taps.
        in_pixels: pixels (or compact rows) of one image of the input.
        count: positions of one image; positions, None where they are all, in order.
        source: of a compact input, the row of every pixel.
    """

    def __init__(
        self,
        geometry: Geometry,
        positions: Tensor,
        nearest: Tensor,
        source_nearest: Tensor | None,
        out_size: Pair,
        in_pixels: int,
        as_runs: bool,
    ) -> None:
        self.axes, self.in_pixels, self.out_size = axes(geometry, as_runs), in_pixels, out_size
        self.count, total = len(positions), out_size[0] * out_size[1]
        every = self.count == total and _is_identity(positions)
        self._all_positions, self._nearest, self._geometry = positions, nearest, geometry
        self._for_itself = every and _is_identity(nearest)
        self.positions = None if every else positions.contiguous()
        self.source = None if source_nearest is None else source_nearest.contiguous()
        self._footprints: dict[tuple[bool, int, bool], Footprints] = {}

    @functools.cached_property
    def segments(self) -> tuple[Tensor, Tensor] | None:
        """CSR of the positions that each row stands for; None where each stands for its own."""
        if self._for_itself:
            return None
        with torch.inference_mode(False):
            return PositionSet(self._all_positions, self._nearest, *self.out_size).segments

    def addresses(self, compact: bool) -> dict[str, int]:
        """By the names of JOB in record.py."""
        starts, targets = (None, None) if compact or self.segments is None else self.segments
        tables = {"positions": self.positions, "starts": starts, "targets": targets, "source": self.source}
        return self.axes.addresses | {name: address(table) for name, table in tables.items()}

    def footprints(self, compact: bool, images: int, chained: bool) -> Footprints:
        """The rows of so many images by footprint, chained for narrow convolutions; made once."""
        key = compact, images, chained
        if key not in self._footprints:
            pixels = self.in_pixels, self.count if compact else self.out_size[0] * self.out_size[1]
            with torch.inference_mode(False):
                segments = None if compact else self.segments
                made = of_convolution(
                    self._group(), self._all_positions, segments, self.out_size[1], images, pixels, chained
                )
            self._footprints[key] = made
            keep_newest(self._footprints, MOST_FOOTPRINTS)
            return made
        return self._footprints[key]

    def _group(self) -> Grouped:
        if self.source is not None:
            return by_table(tap_table(self._geometry, self._all_positions, self.source).t())
        taps = axis_taps(*self._geometry)
        return by_axes(*taps, self._all_positions.long(), self.out_size[1], self._geometry.in_size[1])


def tap_table(geometry: Geometry, positions: Tensor, source_nearest: Tensor | None) -> Tensor:
    """int32 [taps, P], the pixel of the input (row of a compact input) that each tap of a position reads, -1: none."""
    table = geometry.taps()[positions.long()]
    if source_nearest is not None:
        table = torch.where(table < 0, table, source_nearest[table.long()])
    return table.t().contiguous().to(torch.int32)


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
_tables = IdentityCache()


def static_plan(geometry, positions, nearest, source_nearest, out_size, in_pixels, as_runs) -> Plan:
    """The plan of a static set, made now or found; arguments as of `Plan`."""
    sets = (positions, nearest, source_nearest)
    return _plans.get(
        sets,
        (geometry, out_size, in_pixels, as_runs),
        lambda sets: Plan(geometry, *sets, out_size, in_pixels, as_runs),
    )


def static_table(geometry: Geometry, positions: Tensor, source_nearest: Tensor | None) -> Tensor:
    """`tap_table` of a static set, made now or found; for gradients."""
    return _tables.get((positions, source_nearest), geometry, lambda sets: tap_table(geometry, *sets))
