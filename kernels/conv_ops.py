"""What the convolution ops have in common: a geometry that is flat in their schemas and whole in their backends, and a
backward op that gives (dX, dW, db) from the gradients of the rows that the forward computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload

from accel.kernels.checks import check_in_size
from accel.kernels.counting import Work, register_macs
from accel.kernels.dispatch import implementation
from accel.kernels.geometry import FIELDS, CallGeometry


def define_conv(
    op: str, schema: str, fake: Callable, *, writes: str | None = None, backend_of: int | None = None
) -> CustomOpDef:
    """Register `accel::<op>`, which gives a tensor or writes to its first one.

    Args:
        schema: of its arguments, as torch writes them: tensors, the FIELDS of the geometry, with padding_mode or
            without, and what follows.
        fake: as for `accel.kernels.dispatch.define`.
        writes: the name of the first tensor, before x, where it is the output; then `op` ends in an underscore.
        backend_of: the place of the tensor that chooses the backend; x where it is None.
    """
    before, _, behind = schema.partition(FIELDS)
    first, of = before.count(","), int(writes is not None)
    last = first + FIELDS.count(",") + 1 + behind.startswith(", str padding_mode")
    schema = f"({schema}) -> {'()' if writes else 'Tensor'}"

    @torch.library.custom_op(f"accel::{op}", mutates_args=(writes,) if writes else (), schema=schema)
    def run(*arguments):
        x, geometry = arguments[of], CallGeometry.of(arguments[first:last])
        check_in_size(op, x, geometry.in_size)
        chooses = x if backend_of is None else arguments[backend_of]
        out = implementation(op, chooses, op.rstrip("_"))(*arguments[:first], geometry, *arguments[last:])
        return None if writes else out

    run.register_fake(fake)
    return run


def register_conv_backward(op: str, sets: str, fields: str) -> OpOverload:
    """Register `accel::<op>_backward(grad, x, weight, ...) -> (dX, dW, db)`.

    The rest of its schema are `sets`, tensors, and the `fields` of its geometry, which backends get whole.

    `grad` is [rows, K]. dX has the shape of x (channels_last if a map), dW that of the weight. An op of its own, so
    that every backend may have it and the counters see it: dX and dW cost the forward's MACs each.
    """
    name, tensors = f"{op}_backward", sets.count(",") + 1

    @torch.library.custom_op(
        f"accel::{name}",
        mutates_args=(),
        schema=f"(Tensor grad, Tensor x, Tensor weight, {sets}, {fields}) -> (Tensor, Tensor, Tensor)",
    )
    def backward(grad, x, weight, *rest):
        geometry = CallGeometry.of(rest[tensors:])
        d_x, d_weight, d_bias = implementation(name, grad, op)(grad, x, weight, *rest[:tensors], geometry)
        return d_x, d_weight.contiguous(), d_bias

    @backward.register_fake
    def _(grad, x, weight, *rest):
        layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
        d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
        return d_x, weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])

    register_macs(name, _work)
    return getattr(torch.ops.accel, name).default


def _work(args: Sequence, _out: object) -> Work:
    grad, weight = args[0], args[2]
    macs = 2 * grad.shape[0] * weight.numel()
    return Work(None, macs, macs)
