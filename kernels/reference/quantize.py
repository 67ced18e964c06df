"""Reference of `accel::quantize`."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.quantize import bytes_like, refuse_odd


def quantize(x: Tensor, inverse: float, zero_point: int) -> Tensor:
    """x float32 -> uint8, in the same memory format."""
    if not x.isfinite().all():
        refuse_odd()
    steps = x * torch.tensor(inverse, dtype=torch.float32, device=x.device)
    return bytes_like(x).copy_(steps.clamp(-zero_point, 255 - zero_point).round() + zero_point)
