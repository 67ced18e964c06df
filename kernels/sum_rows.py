"""sum_rows: the sum of two maps of bytes, each read through a map of its own: an addition that no convolution does.

| backward | dtypes         | layouts           | granularity | limits                                |
|----------|----------------|-------------------|-------------|---------------------------------------|
| none     | uint8 to uint8 | rows in, rows out | position    | CPU tensors; rows of an image < 2**31 |

Jacob et al. 2017, arXiv 1712.05877, section A.2 (sums of bytes of different scales). One order of rounding holds on
every backend: `accel.kernels.quantization.Rescaling`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.checks import check_device
from accel.kernels.dispatch import define, implementation, is_direct
from accel.kernels.quantization import Rescaling


def sum_rows(
    first: Tensor, second: Tensor, taps: Tensor | None, other_taps: Tensor | None, batch: int, rescaling: Rescaling
) -> Tensor:
    """out[n * M + m] = the bytes of first[n * P + taps[m]] + second[n * Q + other_taps[m]], per channel.

    Args:
        first, second: uint8 [N * P, C] and [N * Q, C], image-major.
        taps, other_taps: int32 [M], the rows, within an image, that are read; None: all, in order. They must not lead
            outside; nothing looks.
        batch: N.
        rescaling: what becomes of the two.

    Returns:
        uint8 [N * M, C].

    Raises:
        ValueError: shapes, devices or a rescaling that do not fit. TypeError: other dtypes.
    """
    counts = []
    for name, rows, tap in (("first", first, taps), ("second", second, other_taps)):
        if rows.dtype is not torch.uint8:
            raise TypeError(f"sum_rows: {name} must be torch.uint8, got {rows.dtype}: quantize it")
        if rows.dim() != 2 or (len(rows) % batch if batch else len(rows)) or rows.shape[1] != first.shape[-1]:
            raise ValueError(f"sum_rows: {name} must be [{batch} * P, C], of one C, got shape {tuple(rows.shape)}")
        if tap is not None and (tap.dtype is not torch.int32 or tap.dim() != 1):
            raise TypeError(f"sum_rows: taps must be int32 [M], got {tap.dtype} of shape {tuple(tap.shape)}")
        check_device("sum_rows", first, name, rows)
        if tap is not None:
            check_device("sum_rows", first, "taps", tap)
        counts.append(_count(rows, tap, batch))
    if batch and counts[0] != counts[1]:
        raise ValueError(f"sum_rows: both must give as many rows of an image, got {counts[0]} and {counts[1]}")
    if len(rescaling.zeros) != 2:
        raise ValueError(f"sum_rows: a rescaling of 2 terms is needed, got {len(rescaling.zeros)}")
    if first.device.type not in ("cpu", "meta"):
        raise ValueError(f"sum_rows: runs on CPU tensors, got first on {first.device}: move it with .to('cpu')")
    run = implementation("sum_rows", _FLOATS) if is_direct(first, second) and not first.is_meta else _SUM_ROWS
    return run(first, second, taps, other_taps, batch, *rescaling.numbers)


def _count(rows: Tensor, tap: Tensor | None, batch: int) -> int:
    return len(rows) // max(batch, 1) if tap is None else len(tap)


def _fake(first, _second, taps, _other_taps, batch, *_):
    return first.new_empty(batch * _count(first, taps, batch), first.shape[1])


_FLOATS = torch.empty(0, dtype=torch.float32, device="cpu")  # by which the engine knows its tensors
_sum_rows = define(
    "sum_rows",
    "(Tensor first, Tensor second, Tensor? taps, Tensor? other_taps, SymInt batch, float[] multipliers, int[] zeros, "
    "int out_zero, int low, int high) -> Tensor",
    _fake,
)
_SUM_ROWS = torch.ops.accel.sum_rows.default
