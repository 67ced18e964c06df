"""mean_rows: the mean of several rows of bytes, per channel, weighted or not: a bilinear resizing, or an average
pooling, that reads compact rows through the nearest map.

| backward | dtypes         | layouts           | granularity | limits                                |
|----------|----------------|-------------------|-------------|---------------------------------------|
| none     | uint8 to uint8 | rows in, rows out | position    | CPU tensors; rows of an image < 2**31 |

Bytes in and out stand for the same numbers; the sums are exact or, weighted, made in one order, and one order of
rounding holds on every backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.checks import check_device
from accel.kernels.dispatch import define, implementation, is_direct


def mean_rows(rows: Tensor, taps: Tensor, share: Tensor, zero_point: int, batch: int) -> Tensor:
    """out[n * M + m] = zero_point + the nearest integer (halves to even) of share[m] * the sum over t of
    rows[n * P + taps[t, m]] - zero_point, clamped to 0 to 255; sum and product in fp32. Of a weighted mean it is the
    sum, in the order of t, of share[t, m] * (rows[n * P + taps[t, m]] - zero_point), every product and sum rounded to
    fp32.

    Args:
        rows: uint8 [N * P, C], image-major.
        taps: int32 [T, M], T from 1 to 65793 (weighted: 16): the rows, within an image, that each of M windows reads,
            -1: none. They must not lead outside; nothing looks.
        share: float32 [M], 1 over what each sum is divided by; or [T, M], the weight of every row.
        zero_point: the byte that stands for 0.
        batch: N.

    Returns:
        uint8 [N * M, C].

    Raises:
        ValueError: shapes, devices or a zero point that do not fit. TypeError: other dtypes.
    """
    if rows.dim() != 2 or (len(rows) % batch if batch else len(rows)):
        raise ValueError(f"mean_rows: rows must be [{batch} * P, C], got shape {tuple(rows.shape)}")
    most = MOST_BLENDED if share.dim() == 2 else MOST_TAPS
    if taps.dim() != 2 or not 0 < len(taps) <= most:
        raise ValueError(f"mean_rows: taps must be [T, M], T from 1 to {most}, got shape {tuple(taps.shape)}")
    if share.shape not in (taps.shape, taps.shape[1:]):
        raise ValueError(
            f"mean_rows: share must be [{taps.shape[1]}] or {list(taps.shape)}, got shape {tuple(share.shape)}"
        )
    for name, tensor, dtype in (
        ("rows", rows, torch.uint8),
        ("taps", taps, torch.int32),
        ("share", share, torch.float32),
    ):
        if tensor.dtype is not dtype:
            raise TypeError(f"mean_rows: {name} must be {dtype}, got {tensor.dtype}: convert it")
    if not 0 <= zero_point <= 255:
        raise ValueError(f"mean_rows: zero_point must be a byte, got {zero_point}")
    check_device("mean_rows", rows, "taps", taps)
    check_device("mean_rows", rows, "share", share)
    if rows.device.type not in ("cpu", "meta"):
        raise ValueError(f"mean_rows: runs on CPU tensors, got rows on {rows.device}: move them with .to('cpu')")
    run = implementation("mean_rows", share) if is_direct(rows) else _MEAN_ROWS
    return run(rows, taps, share, zero_point, batch)


def _fake(rows, taps, share, zero_point, batch):
    return rows.new_empty(batch * taps.shape[1], rows.shape[1])


MOST_TAPS = 2**24 // 255  # whose sums fp32 holds exactly
MOST_BLENDED = 16  # taps of a weighted mean
define("mean_rows", "(Tensor rows, Tensor taps, Tensor share, int zero_point, SymInt batch) -> Tensor", _fake, of=2)
_MEAN_ROWS = torch.ops.accel.mean_rows.default
