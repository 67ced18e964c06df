"""Rows of a static set grouped by footprint: what the depthwise kernels read instead of a table of taps.

The base of a row is the pixel of its first tap; rows whose taps lie at the same offsets from their bases have one
footprint. With a dense input that is every row away from the border; a row at the border has a footprint without the
taps that lie outside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 256  # rows that one thread takes at a time; those of one footprint follow each other within a band
OUTSIDE = 2**31  # no offset between two pixels


class Footprints:
    """int32 tables of one static set, with their addresses in the order of DepthwiseJob in engine.h.

    Args:
        table: [taps, P] pixel that each tap of a row reads, -1: none.
        segments: CSR of the positions that each row stands for; None for compact output.

    Attributes:
        few: whether tiles of rows with one footprint can be expected.
        bands: their number.
    """

    def __init__(self, table: Tensor, segments: tuple[Tensor, Tensor] | None) -> None:
        table = table.t().long()
        inside = table >= 0
        bases = table.gather(1, inside.to(torch.int8).argmax(1, keepdim=True)).clamp_min(0)
        prints, kinds = torch.unique((table - bases).masked_fill(~inside, OUTSIDE), dim=0, return_inverse=True)
        self.few = 2 * len(prints) <= len(table)
        bands = torch.arange(len(table)) // BAND
        group, order = torch.sort(bands * len(prints) + kinds, stable=True)
        runs, rows = torch.unique_consecutive(group, return_counts=True)
        self.bands = len(table[::BAND])
        band_runs = torch.bincount(runs // len(prints), minlength=self.bands)
        taken = prints < OUTSIDE
        if segments is None:
            starts, targets = None, order
        else:
            starts, targets = _reordered(*segments, order)
        tables = (
            bases[order, 0], starts, targets, torch.stack((_starts(rows)[:-1], rows, runs % len(prints)), 1),
            _starts(band_runs), _starts(taken.sum(1)), torch.stack((prints[taken], taken.nonzero()[:, 1]), 1),
        )  # fmt: skip
        self._tables = [None if t is None else t.to(torch.int32).contiguous() for t in tables]
        self.addresses = tuple(0 if t is None else t.data_ptr() for t in self._tables)


def _starts(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0))


def _reordered(starts: Tensor, targets: Tensor, order: Tensor) -> tuple[Tensor | None, Tensor]:
    """CSR lists in another order of rows; no starts where every row has one target."""
    counts = starts.diff().long()[order]
    if bool((counts == 1).all()):
        return None, targets[order]
    first = _starts(counts)
    entry = torch.arange(len(targets)) - first[:-1].repeat_interleave(counts)
    return first, targets[starts.long()[order].repeat_interleave(counts) + entry]
