"""Reference of `accel::soft_threshold`."""

from __future__ import annotations

from torch import Tensor


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    return x.sign() * (x.abs() - threshold).clamp_min(0)
