"""Prepared plans: what the engine needs to know of a geometry and its position sets, built once and kept.

A plan is found by the identity of the tensors that make the sets, not by their values: hashing a map on every call
would cost more than a small convolution. Sets are frozen, so their tensors must not be changed in place.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from accel.kernels.cpu.footprints import Footprints
from accel.kernels.positions import PositionSet, tap_map

Pair = tuple[int, int]
RUN_CHANNELS = 8  # below this many channels a tap is one whole kernel row of a padded frame, kw * C floats


class IdentityCache:
    """Values computed from tensors, kept while these tensors live."""

    def __init__(self) -> None:
        self._values: dict[Hashable, tuple] = {}

    def get(self, tensors: tuple[Tensor | None, ...], key: Hashable, build: Callable[[tuple], object]) -> object:
        """The value built from `tensors` and `key`. An id is not reused before its entry is gone: see `forget`."""
        full = (*map(id, tensors), key)
        found = self._values.get(full)
        if found is not None:
            return found[0]
        with torch.inference_mode(False):  # a cached inference tensor could not be used by a later training step
            value = build(tensors)

        def forget(_: object, full: Hashable = full, values: dict = self._values) -> None:
            values.pop(full, None)

        self._values[full] = (value, *(weakref.ref(t, forget) for t in tensors if t is not None))
        return value


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


@functools.lru_cache(maxsize=256)
def full_table(geometry: Geometry) -> Tensor:
    """int32 [taps, H_out * W_out]: the taps of every output position, for dynamic sets."""
    with torch.inference_mode(False):
        return geometry.taps().t().contiguous()


class Plan:
    """int32 tables of one geometry at one static position set, with their addresses.

    Attributes:
        table: [taps, P] pixel of the input (row of a compact input, corner in a padded frame) that each tap reads.
        segments: CSR of the positions that each row stands for; None where the plan was made without a nearest map.
        in_pixels: pixels of one image of what the table points into.
        frame: with `as_runs`, for every pixel of the padded frame its input pixel or -1.
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
        self.in_pixels = in_pixels
        self.frame: Tensor | None = None
        if as_runs:
            table = self._run_table(geometry, positions, out_size)
        else:
            table = geometry.taps()[positions.long()]
            if source_nearest is not None:
                table = torch.where(table < 0, table, source_nearest[table.long()])
        self.table = table.t().contiguous().to(torch.int32)
        self.positions = positions.contiguous()
        self.segments = None if nearest is None else PositionSet(self.positions, nearest, *out_size).segments
        self.taps, self.count = self.table.shape
        self._footprints: dict[bool, Footprints] = {}
        self.addresses = tuple(t.data_ptr() for t in (self.table, self.positions, *(self.segments or ())))

    def footprints(self, compact: bool) -> Footprints:
        """The rows by footprint, for depthwise convolutions with compact or with dense output; made once."""
        if compact not in self._footprints:
            with torch.inference_mode(False):
                segments = None if compact else self.segments
                self._footprints[compact] = Footprints(self.table, segments)
        return self._footprints[compact]

    def _run_table(self, geometry: Geometry, positions: Tensor, out_size: Pair) -> Tensor:
        """Taps are kernel rows of a padded copy of the input, so that no run ever leaves it."""
        (height, width), (top, bottom, left, right) = geometry.in_size, geometry.padding
        rows, cols = height + top + bottom, width + left + right
        frame = tap_map((height, width), (1, 1), (1, 1), geometry.padding, (1, 1), geometry.padding_mode)
        self.frame = frame.flatten().contiguous()
        self.in_pixels = rows * cols
        y, x = positions.long() // out_size[1], positions.long() % out_size[1]
        corner = y * geometry.stride[0] * cols + x * geometry.stride[1]
        return corner[:, None] + torch.arange(geometry.kernel[0]) * (geometry.dilation[0] * cols)


_plans = IdentityCache()


def static_plan(
    geometry: Geometry,
    positions: Tensor,
    nearest: Tensor | None,
    source_nearest: Tensor | None,
    out_size: Pair,
    in_pixels: int,
    as_runs: bool,
) -> Plan:
    """The plan of a static set, made now or found; `in_pixels`: pixels (or compact rows) of one image of the input."""
    sets = (positions, nearest, source_nearest)
    return _plans.get(
        sets,
        (geometry, out_size, in_pixels, as_runs),
        lambda sets: Plan(geometry, *sets, out_size, in_pixels, as_runs),
    )
