"""Every op that has a Triton kernel, on small drawn problems against the reference, for cases of kind `gpu_short`.

A check gives the largest relative norm of the difference, and the largest that rounding explains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from accel.bench import gpu, gpu_ops
from accel.bench.gpu_ops import TOLERANCE, against_reference

if TYPE_CHECKING:
    from torch import Tensor

    from accel.bench.gpu import Layer

KEEP, ACTIVE = 0.5, 0.4
# Odd sizes: every kernel has a tail. The channels are those of tensor cores, as most layers have them.
PROBLEM = {"channels": [32, 48], "size": [13, 11], "kernel": 3, "batch": 2}


def checks() -> dict[str, Callable[[Layer], tuple[float, float]]]:
    """Name of the op -> its check, the convolutions first."""
    return {
        "perforated_conv2d": lambda layer: judged(gpu.static(layer, KEEP)),
        "masked_conv2d": lambda layer: judged(gpu.dynamic(layer, ACTIVE)),
        "interpolate": lambda layer: judged(gpu_ops.nearest(layer, KEEP)),
        "interpolate_fitted": lambda layer: judged(gpu_ops.fitted(layer, KEEP)),
        "halting_step": lambda layer: judged(gpu_ops.halting(layer)),
        "halting_step_": halting_in_place,
        "active_positions": lambda layer: judged(gpu_ops.activity(layer, ACTIVE)),
        "select_positions": lambda layer: judged(gpu_ops.selection(layer, KEEP)),
        "ponder_cost": lambda layer: judged(gpu_ops.ponder(layer)),
        "max_rows": max_rows,
        "local_deviation": local_deviation,
        "perforated_conv2d_backward": lambda layer: judged(gpu.backward(layer, KEEP)),
        "masked_conv2d_backward": masked_backward,
        "interpolate_backward": interpolate_backward,
        "interpolate_fitted_backward": fitted_backward,
        "halting_step_backward": halting_backward,
        "gamma_gradient": lambda layer: elementwise(layer, "gamma_gradient"),
        "von_mises_gradient": lambda layer: elementwise(layer, "von_mises_gradient"),
    }


def judged(measurement: gpu_ops.Measurement) -> tuple[float, float]:
    return measurement.error, measurement.tolerance


def gradients(layer: Layer, call: Callable[..., Tensor], tensors: Sequence[Tensor]) -> tuple[float, float]:
    """The gradients of a call with respect to the tensors, of a cotangent that is drawn."""
    import torch

    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    with torch.inference_mode(False), torch.enable_grad():
        shape = call(*leaves).shape
        cotangent = layer.draw(*shape)

        def pulled(*given: Tensor) -> tuple[Tensor, ...]:
            out = call(*given)
            return torch.autograd.grad(out, given, cotangent.to(out.dtype))

        return against_reference(pulled, leaves), layer.tolerance


def masked_backward(layer: Layer) -> tuple[float, float]:
    from accel import ops

    active = ops.active_positions(layer.scores < ACTIVE)

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return ops.masked_conv2d(x, weight, bias, active, **layer.geometry, residual=residual)

    return gradients(layer, call, (layer.x, layer.weight, layer.bias, layer.values))


def interpolate_backward(layer: Layer) -> tuple[float, float]:
    from accel import ops

    kept = gpu_ops.position_set(layer, KEEP)
    return gradients(layer, lambda rows: ops.interpolate(rows, kept), (layer.rows(kept),))


def fitted_backward(layer: Layer) -> tuple[float, float]:
    call, given = gpu_ops.fitted_call(layer, KEEP)[:2]
    return gradients(layer, call, given)


def halting_state(layer: Layer) -> tuple[Tensor, ...]:
    """(h, remainder, ponder, units) of a step in the middle: some positions halt in it."""
    import torch

    h = layer.scores * 0.9
    return h, 0.5 * torch.ones_like(h), torch.ones_like(h), torch.ones_like(h, dtype=torch.int32)


def halting_in_place(layer: Layer) -> tuple[float, float]:
    import torch

    from accel.ops import halting_step_

    h, *state = halting_state(layer)

    def call(x: Tensor) -> tuple[Tensor, ...]:
        written = [tensor.clone() for tensor in (*state, torch.zeros_like(x))]
        return halting_step_(h, x, *written), *written

    return against_reference(call, (layer.values,)), layer.tolerance


def halting_backward(layer: Layer) -> tuple[float, float]:
    import torch

    from accel.ops import halting_step

    h, remainder, ponder, units = halting_state(layer)

    def call(h: Tensor, x: Tensor) -> Tensor:
        found = halting_step(h.float(), x, remainder, ponder, units, torch.zeros_like(x))
        return sum(part.float().flatten(1).sum(1) for part in found if part.is_floating_point())

    return gradients(layer, call, (h.to(layer.dtype), layer.values))


def max_rows(layer: Layer) -> tuple[float, float]:
    import torch

    from accel.kernels.max_rows import max_rows as op

    kept = gpu_ops.position_set(layer, KEEP)
    taps = torch.randint(len(kept), (9, 20), generator=layer.generator, dtype=torch.int32).to(layer.device)
    return against_reference(lambda rows: op(rows, taps, layer.batch), (layer.rows(kept),)), 0.0


def local_deviation(layer: Layer) -> tuple[float, float]:
    from accel.kernels.local_deviation import local_deviation as op

    return against_reference(lambda x: op(x, 16), (layer.x,)), layer.tolerance


def elementwise(layer: Layer, name: str) -> tuple[float, float]:
    """In float32, whatever the layer's dtype."""
    import importlib

    import torch

    op = getattr(importlib.import_module(f"accel.kernels.{name}"), name)
    values = 0.1 + 3 * torch.rand(2, layer.scores.numel(), generator=layer.generator)
    return against_reference(lambda *given: op(*given), tuple(values.to(layer.device))), TOLERANCE["float32"]
