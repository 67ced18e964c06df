"""Multiply-accumulates of the ops, told to torch's FLOP counter and to fvcore from one formula each.

FLOPs are 2 x MACs. fvcore counts MACs: `FlopCountAnalysis(model, x).set_op_handle(**FVCORE_HANDLES)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

FVCORE_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {}


def conv_macs(rows: int, weight_shape: Sequence[int]) -> int:
    """MACs of `rows` computed positions of a convolution with weight [K, C / groups, kh, kw]."""
    return rows * math.prod(weight_shape)


def register_macs(op: str, formula: Callable[..., int]) -> None:
    """Count `accel::<op>` by `formula(arguments, output)`.

    Tensors come as shapes, the arguments in the order of the schema; other arguments may come as None.
    """

    @register_flop_formula(getattr(torch.ops.accel, op))
    def flops(*arguments: Any, out_shape: Any = None, **_: Any) -> int:
        return 2 * formula(arguments, out_shape)

    def macs(inputs: list[Any], outputs: list[Any]) -> int:
        return formula([_shape(value) for value in inputs], _shape(outputs[0]) if outputs else None)

    FVCORE_HANDLES[f"accel::{op}"] = macs


def _shape(value: Any) -> list[int] | None:
    """The shape of a traced value (torch._C.Value), None for anything but a tensor."""
    return value.type().sizes() if value.isCompleteTensor() else None
