"""The ledger of multiply-accumulates: an op tells its formula once, and every counter reads it.

Counters are `accel.count_macs` (by `LEDGER`), torch's FLOP counter, whose FLOPs are 2 x MACs, and fvcore's, which
counts MACs: `FlopCountAnalysis(model, x).set_op_handle(**FVCORE_HANDLES)`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@dataclasses.dataclass(frozen=True)
class Work:
    """MACs of one op. Attributes: images it covers, None where the op does not tell; executed, int64 [images], or the
    total where every image takes the same; dense, the total; capacity, what it executes as far as shapes tell, where
    `executed` is data."""

    images: int | None
    executed: Tensor | int
    dense: int
    capacity: int | None = None

    @property
    def total(self) -> int:
        return int(self.executed.sum()) if isinstance(self.executed, Tensor) else self.executed

    @property
    def by_shapes(self) -> int:
        return self.executed if self.capacity is None else self.capacity


# The arguments of an op, in the order of its schema, and its output -> its work. A counter that sees shapes alone gives
# tensors on the device "meta", and None for all that is no tensor: `executed` or `capacity` must be right for these.
Formula = Callable[[Sequence, object], Work]

LEDGER: dict[str, Formula] = {}  # by name, such as "accel.perforated_conv2d"
FVCORE_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {}


def register_macs(op: str, formula: Formula) -> None:
    """Count `accel::<op>` by the formula."""

    @register_flop_formula(getattr(torch.ops.accel, op), get_raw=True)
    def flops(*arguments: Any, out_val: Any = None, **_: Any) -> int:
        return 2 * formula(arguments, out_val).by_shapes

    def macs(inputs: list[Any], outputs: list[Any]) -> int:
        return formula([_shaped(value) for value in inputs], _shaped(outputs[0]) if outputs else None).by_shapes

    LEDGER[f"accel.{op}"] = formula
    FVCORE_HANDLES[f"accel::{op}"] = macs


def _shaped(value: Any) -> Tensor | None:
    """An empty tensor with the shape of a traced value (torch._C.Value), None for anything but a tensor."""
    return torch.empty(value.type().sizes(), dtype=torch.float32, device="meta") if value.isCompleteTensor() else None


def with_gradients(forward: Formula) -> Formula:
    """The formula of a backward with the arguments (grad, needs, *those of the forward): the forward once more, and as
    much for the gradients of x and of the weight each."""

    def work(args: Sequence, _out: object) -> Work:
        grad, needs, *given = args
        once = forward(given, grad)
        times = 1 + sum(needs[:2] if needs else (1, 1))
        return Work(once.images, times * once.executed, times * once.dense)

    return work


def dense_macs(images: int, out_size: Sequence[int], weight: Tensor) -> int:
    """MACs of a convolution with weight [K, C / groups, kh, kw] at every position of an output [H, W]."""
    return images * math.prod(out_size) * weight.numel()
