"""Numbers rounded to bf16, which convolutions of that precision multiply; they add the products up in fp32.

Kalamkar et al. 2019, arXiv 1905.12322: eight bits of exponent as fp32 has, seven of mantissa.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.dispatch import active_backend, find

PRECISIONS = ("fp32", "bf16")  # of the convolutions of numbers


class _Rounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.to(torch.bfloat16).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


def round_bf16(x: Tensor) -> Tensor:
    """The nearest bf16 (halves to even) of a floating tensor of any shape, in its dtype and memory format. Gradients
    pass as if nothing had been rounded."""
    return _Rounded.apply(x)


def is_told(op: str, precision: str, weight: Tensor, direct: bool) -> bool:
    """Whether the backend that an op calls directly is told of a precision other than fp32: the C engine rounds what it
    multiplies, for others it has to be rounded.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return direct and active_backend(weight) == "cpu"


def to_precision(
    op: str, precision: str, x: Tensor, weight: Tensor, direct: bool
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """(x, weight, what to tell the backend), rounded here where that cannot be told; ValueError as of `is_told`."""
    if precision == PRECISIONS[0]:
        return x, weight, {}
    if is_told(op, precision, weight, direct):
        return x, weight, {"precision": precision}
    return round_bf16(x), round_bf16(weight), {}


def multiplies_bf16(device: torch.device) -> bool:
    """Whether convolutions on a device multiply bf16 by instructions of its own (on CPUs AVX512_BF16); else numbers are
    rounded to it in software, and multiplied no faster than others."""
    found = find("cpu", "has_bf16", "bf16") if device.type == "cpu" else None
    return found is not None and found()
