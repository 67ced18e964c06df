"""Numbers to bf16 on the engine."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import empty
from accel.kernels.cpu.replay import tape


def rounded(x: Tensor, pitch: int) -> Tensor:
    """bf16 [pixels, pitch] of x [N, C, H, W], pixels first, or [pixels, C]; zeros behind the C channels."""
    width = x.shape[1]
    count = x.numel() // width
    out = empty((count, pitch), dtype=torch.bfloat16)
    given = {"count": count, "width": width, "pitch": pitch}
    _engine.round_bf16(x=x.data_ptr(), out=out.data_ptr(), threads=torch.get_num_threads(), **given)
    recorded = tape()
    if recorded is not None:
        recorded.append("round_bf16", x, None, out, None, given)
    return out


def pitch_of(channels: int, groups: int) -> int:
    """From pixel to pixel of an input in bf16: of few channels an even number, since the engine multiplies pairs."""
    odd = groups == 1 and channels < record.MOST_PITCH and channels % 2
    return channels + 1 if odd else channels


def has_bf16() -> bool:
    """Whether the CPU multiplies bf16 by instructions of its own (AVX512_BF16); else the engine imitates them."""
    return _engine.has_bf16()
