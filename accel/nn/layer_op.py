"""perforated_layer: a perforated convolution in one op, on a map of any size; how `accel.nn.captured` calls it.

Position sets are found by code that no compiler can trace, and each size has its own. So the op carries all that the
layer is, in words and tensors, and finds the set when it runs: graphs do not break where none has been built, sizes may
stay symbols, and an exported program runs in any process that has imported this package.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from accel.config import Perforate
from accel.kernels.counting import Work, dense_macs, register_macs, with_gradients
from accel.kernels.positions import output_size
from accel.masks import Pooling
from accel.nn.call_weights import call_weights
from accel.nn.captured import CONFIG, gradients
from accel.nn.folding import Folded
from accel.nn.perforated import PerforatedConv2d
from accel.nn.witness import unwatched

_LAYER = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? impact, Tensor[] fit, Tensor[] quantization, int[] stride, "
    "int[] padding, int[] dilation, int groups, str padding_mode, int[] pooling, bool contiguous, str name, "
    "str[] config"
)
_KEPT = 512  # layers whose position sets are kept: a DenseNet-201 has 200
_FORMATS = (torch.channels_last, torch.contiguous_format, torch.contiguous_format)  # of the gradients


class _StandIn(PerforatedConv2d):
    """A layer with the weights of one call, and what was made from them before."""

    is_one_op = False  # it is what that op does

    def _weights(self, norm: None, positions: object) -> Folded:
        if torch.is_grad_enabled():
            return super()._weights(norm, positions)
        if positions is None and not self.config.in_bytes:
            return Folded(self.weight, self.bias, None, None)
        return self._made.folded(self, None if positions is None else self.fit_for(positions))


def _layer(_x, weight, bias, impact, fit, quantization, *words) -> _StandIn:
    """The layer of a call; its position sets are kept for the next one."""
    made = call_weights(weight, bias, fit, quantization)
    fit = made.fit
    sources = _bytes(impact), None if fit is None else (fit.weights.shape[:2], _bytes(fit.offsets))
    kept = _bare(weight.shape, *sources, *(tuple(word) if isinstance(word, list) else word for word in words))
    layer = _StandIn.__new__(_StandIn)
    tensors = {"_parameters": {"weight": weight, "bias": bias}, "impact": impact, "fit": fit, "_made": made}
    found = {"quantization": made.quantization, "_integers": made.integers}
    layer.__dict__ = {**kept.__dict__, **tensors, **found}
    layer._nearest = fit is not None and bool(fit.nearest.all())
    return layer


def as_module(weight, *rest) -> PerforatedConv2d:
    """The layer of a call as a module of its own; arguments of the op but x."""
    layer = _layer(None, weight, *rest)
    layer.__class__ = PerforatedConv2d
    del layer._made
    layer._sets = {}
    layer.set_fit(layer.fit)
    return layer


@functools.lru_cache(maxsize=_KEPT)
def _bare(shape, _impact, _fit, stride, padding, dilation, groups, padding_mode, pooling, contiguous, name, config):
    """The same without weights; `_impact` and `_fit`: what else its sets come from."""
    top, bottom, left, right = padding
    sides = (top, left) if (top, left) == (bottom, right) else "same"  # the only one that differs
    settings = Perforate(**dict(zip(CONFIG, map(ast.literal_eval, config))))
    channels = (shape[1] * groups, shape[0], tuple(shape[2:]))
    named = {"padding_mode": padding_mode, "device": "meta", "config": settings, "layer_name": name}
    layer = _StandIn(*channels, stride, sides, dilation, groups, **named)
    layer.__class__, layer.contiguous = _StandIn, contiguous
    layer.pooling = Pooling(pooling[:2], pooling[2:4], pooling[4:6], bool(pooling[6])) if pooling else None
    return layer


def _bytes(tensor: Tensor | None) -> tuple | None:
    """What a small tensor says, as something with a hash."""
    return None if tensor is None else (tensor.shape, tensor.cpu().numpy().tobytes())


@torch.library.custom_op("accel::perforated_layer", mutates_args=(), schema=f"({_LAYER}) -> Tensor")
def _run(x, *rest):
    with torch.no_grad(), unwatched():
        return PerforatedConv2d.forward(_layer(x, *rest), x)


@_run.register_fake
def _(
    x, weight, _bias, _impact, _fit, _quantization, stride, padding, dilation, _groups, _mode, _pooling, contiguous, *_
):
    size = output_size(tuple(x.shape[2:]), tuple(weight.shape[2:]), stride, padding, dilation)
    layout = torch.contiguous_format if contiguous else torch.channels_last
    return torch.empty((x.shape[0], weight.shape[0], *size), dtype=x.dtype, device=x.device, memory_format=layout)


@torch.library.custom_op(
    "accel::perforated_layer_backward",
    mutates_args=(),
    schema=f"(Tensor grad, bool[] needs, {_LAYER}) -> Tensor[]",
)
def _run_backward(grad, needs, x, weight, bias, *rest):
    found = gradients(
        lambda *leaves: PerforatedConv2d.forward(_layer(*leaves, *rest), leaves[0]), grad, needs, x, weight, bias
    )
    return [_formatted(each, kind) if needed else each for each, needed, kind in zip(found, needs, _FORMATS)]


@_run_backward.register_fake
def _(grad, needs, *tensors):
    formats = zip(tensors, needs, _FORMATS)
    return [_formatted(torch.empty_like(t), kind) if needed else grad.new_empty(0) for t, needed, kind in formats]


def _formatted(gradient: Tensor, memory_format: torch.memory_format) -> Tensor:
    return gradient.contiguous(memory_format=memory_format)


def _setup(ctx, inputs, output):
    x, weight, bias, impact, fit, quantization, *ctx.words = inputs
    ctx.fitted = len(fit)
    ctx.save_for_backward(x, weight, bias, impact, *fit, *quantization)


def _grad(ctx, grad):
    *tensors, impact = ctx.saved_tensors[:4]
    found = list(ctx.saved_tensors[4:])
    lists = found[: ctx.fitted], found[ctx.fitted :]
    needs = list(ctx.needs_input_grad[:3])
    given = torch.ops.accel.perforated_layer_backward(grad, needs, *tensors, impact, *lists, *ctx.words)
    grads = [gradient if needed else None for gradient, needed in zip(given, needs)]
    return *grads, None, *([None] * len(each) for each in lists), *(word if word == [] else None for word in ctx.words)


_run.register_autograd(_grad, setup_context=_setup)


def _work(args: Sequence, out: Tensor) -> Work:
    weight, images, size = args[1], out.shape[0], out.shape[2:]
    dense = dense_macs(images, size, weight)
    if type(out) is not Tensor or out.is_meta or None in args[6:]:  # shapes alone
        return Work(images, dense, dense)
    layer = _layer(*args)
    computed = len(layer.position_set(*size))
    if not layer.config.masking.is_static:
        computed = max(computed, round(layer.config.keep * size.numel()))
    return Work(images, images * computed * weight.numel(), dense)


register_macs("perforated_layer", _work)
register_macs("perforated_layer_backward", with_gradients(_work))
