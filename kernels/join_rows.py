"""join_rows: rows of several maps side by side, each read through a map of its own: a concatenation, or a resizing to
the nearest position.

| backward | dtypes          | layouts           | granularity | limits                                      |
|----------|-----------------|-------------------|-------------|---------------------------------------------|
| none     | floating, uint8 | rows in, rows out | position    | rows of an image < 2**31; bytes on CPUs     |

Both commute with the nearest map (Figurnov et al. 2016, arXiv 1504.08362), and move bytes as they are, or give those of
every part another meaning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.checks import check_device
from accel.kernels.dispatch import define, implementation, is_direct
from accel.kernels.quantization import Rescaling


def join_rows(
    parts: Sequence[Tensor], taps: Sequence[Tensor | None], batch: int, rescaling: Rescaling | None = None
) -> Tensor:
    """out[n * M + m] = parts[i][n * P_i + taps[i][m]] of every part i, one behind the other.

    Args:
        parts: [N * P_i, C_i] of one dtype, floating or uint8, image-major.
        taps: of every part int32 [M], the rows, within an image, that are read; None: all, in order. They must not lead
            outside; nothing looks.
        batch: N.
        rescaling: of bytes, what becomes of those of every part, each by itself; None: they stay as they are.

    Returns:
        [N * M, the sum of all C_i].

    Raises:
        ValueError: shapes, devices or a rescaling that do not fit; bytes that are not on the CPU. TypeError: dtypes
            that do not.
    """
    if not parts or len(parts) != len(taps):
        raise ValueError(f"join_rows: as many taps as parts, and one at least, got {len(taps)} and {len(parts)}")
    first = parts[0]
    for part, tap in zip(parts, taps):
        if part.dim() != 2 or (len(part) % batch if batch else len(part)):
            raise ValueError(f"join_rows: parts must be [{batch} * P, C], got shape {tuple(part.shape)}")
        if part.dtype is not first.dtype:
            raise TypeError(f"join_rows: parts must have one dtype, got {first.dtype} and {part.dtype}")
        if tap is not None and (tap.dtype is not torch.int32 or tap.dim() != 1):
            raise TypeError(f"join_rows: taps must be int32 [M], got {tap.dtype} of shape {tuple(tap.shape)}")
        check_device("join_rows", first, "parts", part)
        if tap is not None:
            check_device("join_rows", first, "taps", tap)
    counts = {_count(part, tap, batch) for part, tap in zip(parts, taps)}
    if batch and len(counts) > 1:
        raise ValueError(f"join_rows: every part must give as many rows of an image, got {sorted(counts)}")
    if first.dtype is torch.uint8 and first.device.type not in ("cpu", "meta"):
        raise ValueError(f"join_rows: bytes on CPU tensors only, got {first.device}: move them with .to('cpu')")
    if rescaling is not None and (first.dtype is not torch.uint8 or len(rescaling.zeros) != len(parts)):
        raise ValueError(f"join_rows: a rescaling is of {len(parts)} parts in bytes, got {len(rescaling.zeros)} terms")
    numbers = _AS_THEY_ARE if rescaling is None else rescaling.numbers
    known_by = _FLOATS if first.dtype is torch.uint8 else first  # bytes too are the engine's here
    run = implementation("join_rows", known_by) if is_direct(*parts) else _JOIN_ROWS
    return run(parts, taps, batch, *numbers)


def _count(part: Tensor, tap: Tensor | None, batch: int) -> int:
    return len(part) // max(batch, 1) if tap is None else len(tap)


def _fake(parts, taps, batch, *_):
    return parts[0].new_empty(batch * _count(parts[0], taps[0], batch), sum(part.shape[1] for part in parts))


_FLOATS = torch.empty(0, dtype=torch.float32, device="cpu")
_AS_THEY_ARE = ([], [], 0, 0, 255)
define(
    "join_rows",
    "(Tensor[] parts, Tensor?[] taps, SymInt batch, float[] multipliers, int[] zeros, int out_zero, int low, int high) "
    "-> Tensor",
    _fake,
)
_JOIN_ROWS = torch.ops.accel.join_rows.default
