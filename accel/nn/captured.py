"""What compilers, exporters and torch.fx see of a module that decides when it runs what it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from accel.config import Perforate
from accel.fills import Fit
from accel.kernels.checks import autocast
from accel.nn.geometry import geometry_of

CONFIG = tuple(field.name for field in dataclasses.fields(Perforate))
FIT = tuple(field.name for field in dataclasses.fields(Fit))  # the last of them may be missing


def record(module: nn.Module, *inputs: fx.Proxy) -> fx.Proxy:
    """A call of the module in the graph that torch.fx is tracing."""
    tracer = inputs[0].tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), inputs, {})


def gradients(run: Callable[..., Tensor], grad: Tensor, needs: Sequence[bool], *tensors: Tensor | None) -> list[Tensor]:
    """What the backward of an op gives that runs its forward again: the gradients of `run(*tensors)`, empty where they
    are not needed."""
    with torch.inference_mode(False), torch.enable_grad():  # inside of an op, the former lets autograd in again
        leaves = [t if t is None else t.detach().requires_grad_(needed) for t, needed in zip(tensors, needs)]
        wanted = [leaf for leaf, needed in zip(leaves, needs) if needed]
        found = iter(torch.autograd.grad(run(*leaves), wanted, grad))
    return [next(found) if needed else grad.new_empty(0) for needed in needs]


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a perforated convolution makes of x [N, C, H, W], as the one op of `accel.nn.layer_op`."""
    config, fit, pooling, now = layer.config, layer.fit, layer.pooling, geometry_of(layer)
    x, weight, bias = autocast(x, layer.weight, layer.bias)
    return torch.ops.accel.perforated_layer.default(
        *(x, weight, bias, layer.impact),
        [] if fit is None else [getattr(fit, name) for name in FIT if getattr(fit, name) is not None],
        [] if layer.quantization is None else layer.quantization.flat(),
        *(now.stride, now.padding, now.dilation, now.groups, now.padding_mode),
        [] if pooling is None else [*pooling.kernel, *pooling.stride, *pooling.padding, int(pooling.ceil_mode)],
        *(layer.contiguous, layer.layer_name, [f"{getattr(config, name)!r}" for name in CONFIG]),
    )
