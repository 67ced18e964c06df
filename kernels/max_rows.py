"""max_rows: the largest of several rows, per channel: a max pooling that reads compact rows through the nearest map.

| backward | dtypes          | layouts           | granularity | limits                                      |
|----------|-----------------|-------------------|-------------|---------------------------------------------|
| none     | floating, uint8 | rows in, rows out | position    | rows of an image < 2**31; bytes on CPUs     |

Figurnov et al. 2016, arXiv 1504.08362 (a pooling behind a perforated layer need not see the interpolated map).
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.checks import check_device
from accel.kernels.dispatch import define, implementation, is_direct


def max_rows(rows: Tensor, taps: Tensor, batch: int) -> Tensor:
    """out[n * M + m] = the maximum over t of rows[n * P + taps[t, m]], per channel; NaN wins.

    Args:
        rows: [N * P, C], floating or uint8, image-major.
        taps: int32 [T, M], T at least 1: the rows, within an image, that each of M windows reads. They must not lead
            outside; nothing looks.
        batch: N.

    Returns:
        [N * M, C].

    Raises:
        ValueError: shapes or devices that do not fit; bytes that are not on the CPU. TypeError: taps of another dtype.
    """
    if rows.dim() != 2 or (len(rows) % batch if batch else len(rows)):
        raise ValueError(f"max_rows: rows must be [{batch} * P, C], got shape {tuple(rows.shape)}")
    if taps.dim() != 2 or not len(taps):
        raise ValueError(f"max_rows: taps must be [T, M] with T at least 1, got shape {tuple(taps.shape)}")
    if taps.dtype is not torch.int32:
        raise TypeError(f"max_rows: taps must be int32, got {taps.dtype}: convert them")
    check_device("max_rows", rows, "taps", taps)
    if rows.dtype is torch.uint8 and rows.device.type not in ("cpu", "meta"):
        raise ValueError(f"max_rows: bytes on CPU tensors only, got rows on {rows.device}: move them with .to('cpu')")
    known_by = _FLOATS if rows.dtype is torch.uint8 else rows  # bytes too are the engine's here
    run = implementation("max_rows", known_by) if is_direct(rows) else _MAX_ROWS
    return run(rows, taps, batch)


def _fake(rows, taps, batch):
    return rows.new_empty(batch * taps.shape[1], rows.shape[1])


_FLOATS = torch.empty(0, dtype=torch.float32, device="cpu")
define("max_rows", "(Tensor rows, Tensor taps, SymInt batch) -> Tensor", _fake)
_MAX_ROWS = torch.ops.accel.max_rows.default
