"""Rows grouped by footprint: what the depthwise and the narrow kernels read instead of a table of taps.

The base of a row is the pixel of its first tap; rows whose taps lie at the same offsets from their bases, and take the
same weights, have one footprint. With a dense input that is every row away from the border; a row at the border has a
footprint without the taps that lie outside. Fitted interpolation is such a convolution too: its input are the computed
rows, and the weights are those of a position's class.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.kernels.cpu.arguments import CPU
from accel.kernels.cpu.record import FOOTPRINT_RUN, STEP

# One thread takes the rows of 32 x 32 positions at a time, those of one footprint after each other: what they read
# stays in its caches. Filling 64 channels at 240x320 took 1.4 ms by bands of 256 positions, 1.1 ms by 16 x 16, so 1.0.
TILE = 32
OUTSIDE = 2**31  # no offset between two pixels
# Rows that a run needs on average where the choice is between these and pointers: 16 -> 16 channels that read compact
# rows of a checkerboard, whose ties were drawn, took 1.2 ms in runs of one or two rows, 0.6 ms through pointers.
FEW_CHAINED = 8
COPY = -1  # the class of rows that are read from x as they are, without taps


class Grouped(NamedTuple):
    """Rows by footprint.

    Attributes:
        bases: int64 [R], the pixel of the first tap of each row that has one; 0 where it has none.
        which: int64 [R], the footprint of each row.
        prints: int64 [footprints, 1 + taps]: the class of the weights, or COPY; then the offset of every tap from the
            base, or OUTSIDE.
    """

    bases: Tensor
    which: Tensor
    prints: Tensor

    def repeated(self, images: int, pixels: int) -> Grouped:
        """The same rows in so many images of `pixels` each, which count as one."""
        first = torch.arange(images, device=CPU) * pixels
        return Grouped((self.bases + first[:, None]).flatten(), self.which.repeat(images), self.prints)


def by_axes(rows: Tensor, columns: Tensor, positions: Tensor, out_width: int, in_width: int) -> Grouped:
    """Of a convolution of a dense map, whose taps are the crossings of those of both axes: int64 [H_out, kh] and
    [W_out, kw]. A few numbers for each position, where its taps would be many."""
    (row_bases, row_which, row_prints), (column_bases, column_which, column_prints) = map(by_table, (rows, columns))
    row_steps, column_steps = row_prints[:, 1:], column_prints[:, 1:]
    outside = (row_steps == OUTSIDE)[:, None, :, None] | (column_steps == OUTSIDE)[None, :, None, :]
    offsets = row_steps[:, None, :, None] * in_width + column_steps[None, :, None, :]
    offsets = offsets.masked_fill(outside, OUTSIDE).flatten(0, 1).flatten(1)
    y, x = positions // out_width, positions % out_width
    which = row_which[y] * len(column_steps) + column_which[x]
    used = torch.bincount(which, minlength=len(offsets)) > 0
    return Grouped(row_bases[y] * in_width + column_bases[x], (used.cumsum(0) - 1)[which], F.pad(offsets[used], (1, 0)))


def by_table(table: Tensor, kind: Tensor | None = None) -> Grouped:
    """Of rows with any taps: table int [R, taps], the pixel that each reads, -1: none; kind [R], the class of the
    row's weights, or COPY."""
    table = table.long()
    kind = torch.zeros(len(table), dtype=torch.int64, device=CPU) if kind is None else kind.long()
    inside = table >= 0
    first = F.pad(inside.to(torch.int8), (0, 1), value=1).argmax(1, keepdim=True)
    bases = F.pad(table, (0, 1)).gather(1, first)
    offsets = (table - bases).masked_fill(~inside, OUTSIDE)
    prints, which = torch.unique(torch.cat((kind[:, None], offsets), 1), dim=0, return_inverse=True)
    return Grouped(bases[:, 0], which, prints)


class Footprints:
    """int32 tables of one static set, with their addresses by the names of FootprintJob in record.py.

    Args:
        segments: CSR lists (starts [R + 1], targets): the pixels of the output that a row goes to.
        band: [R], the part of the map that a row is done with, 0 and up.
        chained: whether taps at pixels that follow each other make one step.

    Attributes:
        few: whether tiles of rows with one footprint can be expected.
        bands: their number.
    """

    def __init__(self, grouped: Grouped, segments: tuple[Tensor, Tensor], band: Tensor, chained: bool = False) -> None:
        bases, which, prints = grouped
        group, order = torch.sort(band * len(prints) + which, stable=True)
        runs, rows = torch.unique_consecutive(group, return_counts=True)
        band_runs = torch.bincount(runs // len(prints))
        self.bands = len(band_runs)
        self.few = (FEW_CHAINED * len(runs) if chained else 2 * len(prints)) <= len(bases)
        kinds, offsets = prints[:, 0], prints[:, 1:]
        taken = offsets < OUTSIDE
        begins = taken.clone()
        if chained:
            begins[:, 1:] &= offsets[:, 1:] != offsets[:, :-1] + 1
        taps = begins.nonzero()[:, 1] + (kinds * offsets.shape[1]).repeat_interleave(begins.sum(1))
        lengths = torch.bincount(begins[taken].cumsum(0) - 1, minlength=len(taps))
        starts, targets = _reordered(*segments, order)
        footprint = runs % len(prints)
        tables = {
            "bases": bases[order], "starts": starts, "targets": targets, "bands": _starts(band_runs),
            "runs": FOOTPRINT_RUN.table(
                first=_starts(rows)[:-1], rows=rows, footprint=footprint, kind=kinds[footprint]
            ),
            "footprints": _starts(begins.sum(1)), "steps": STEP.table(offset=offsets[begins], tap=taps, taps=lengths),
        }  # fmt: skip
        self._tables = {n: None if t is None else t.to(torch.int32).contiguous() for n, t in tables.items()}
        self.addresses = {name: 0 if t is None else t.data_ptr() for name, t in self._tables.items()}


def of_convolution(
    grouped: Grouped,
    positions: Tensor,
    segments: tuple[Tensor, Tensor] | None,
    width: int,
    images: int,
    pixels: tuple[int, int],
    chained: bool,
) -> Footprints:
    """Of a static set, whose rows are `grouped`, in `images` images that count as one.

    Args:
        segments: of dense output, None where a row goes to the pixel of its own number.
        pixels: of one image, of the input and of the output.
    """
    rows, image = torch.arange(len(positions), device=CPU), torch.arange(images, device=CPU)[:, None]
    starts, targets = segments or (torch.arange(len(rows) + 1, device=CPU), rows)
    return Footprints(
        grouped.repeated(images, pixels[0]),
        (_starts(starts.diff().repeat(images)), (targets + image * pixels[1]).flatten()),
        _tile(positions.long(), width).repeat(images),
        chained,
    )


def chain(offsets: Tensor) -> Tensor:
    """Steps: one footprint with a tap at each of these offsets [taps]."""
    first = F.pad(offsets.diff() != 1, (1, 0), value=True).nonzero()[:, 0]
    return STEP.table(offset=offsets[first], tap=first, taps=F.pad(first, (0, 1), value=len(offsets)).diff())


def images_together(batch: int, count: int, most: int = TILE**2) -> int:
    """How many images of `count` rows to take as one, a divisor of `batch`: in a small map few rows share a footprint.

    At batch 8, 5x5 on 960 channels at 7x7 takes 0.10 ms so, one by one 0.19 ms.
    """
    return max((n for n in range(1, batch + 1) if batch % n == 0 and n * count <= most), default=1)


def of_interpolation(
    positions: Tensor, skipped: Tensor, neighbors: Tensor, starts: Tensor, width: int, images: int
) -> Footprints:
    """Of a fitted interpolation: computed rows are copied, skipped positions read their neighbours' rows.

    Args:
        images: so many count as one.
    """
    count, filled = len(positions), len(skipped)
    neighbors = neighbors if neighbors.shape[1] else F.pad(neighbors, (0, 1), value=-1)
    kind = torch.repeat_interleave(torch.arange(len(starts) - 1, device=CPU), starts.diff().long())
    own = torch.arange(count, dtype=neighbors.dtype, device=CPU)[:, None]
    copied = F.pad(own, (0, neighbors.shape[1] - 1), value=-1)
    targets = torch.cat((positions, skipped)).long()
    grouped = by_table(
        torch.cat((copied, neighbors)), torch.cat((torch.full((count,), COPY, dtype=torch.int64, device=CPU), kind))
    )
    image = torch.arange(images, device=CPU)[:, None]
    targets = (targets + image * (count + filled)).flatten()
    return Footprints(
        grouped.repeated(images, count),
        (torch.arange(len(targets) + 1, device=CPU), targets),
        _tile(torch.cat((positions, skipped)).long(), width).repeat(images),
    )


def _tile(positions: Tensor, width: int) -> Tensor:
    """The square of TILE x TILE positions that each lies in, on a map of this width."""
    return positions // width // TILE * -(-width // TILE) + positions % width // TILE


def _starts(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0))


def _reordered(starts: Tensor, targets: Tensor, order: Tensor) -> tuple[Tensor | None, Tensor]:
    """CSR lists in another order of rows; no starts where every row has one target."""
    counts = starts.diff().long()[order]
    if bool((counts == 1).all()):
        return None, targets[order]
    first = _starts(counts)
    entry = torch.arange(len(targets), device=CPU) - first[:-1].repeat_interleave(counts)
    return first, targets[starts.long()[order].repeat_interleave(counts) + entry]
