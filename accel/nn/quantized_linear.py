"""A linear layer in eight bits: `accel.nn.quantized`, for `nn.Linear`."""

from __future__ import annotations

import types
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from accel.kernels.checks import autocast
from accel.kernels.counting import Work, register_macs, with_gradients
from accel.kernels.positions import every_position
from accel.nn import captured
from accel.nn.call_weights import call_weights
from accel.nn.folding import Folded, FoldedWeights
from accel.nn.quantized import KeptIntegers, Quantization, convolve_bytes, is_floating, known
from accel.nn.witness import unwatched
from accel.profiling.flops import SavesMacs

_STATE = ("quantization", "layer_name", "_folded", "_integers", "_aside")
_GEOMETRY = {
    "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros",
    "residual": None, "compact": False, "source": None,
}  # fmt: skip


class QuantizedLinear(SavesMacs, nn.Linear):
    """A linear layer that multiplies bytes by signed bytes in inference on CPUs, with the parameters and names of an
    `nn.Linear`; training goes through fake quantization.

    Input [..., C], floating; output [..., K], float32.

    Attributes:
        quantization: what a calibration found.
        layer_name: full module name, for messages.
    """

    is_whole = True  # for graphs: a call of it is all they say

    @staticmethod
    def adopt(linear: nn.Linear, layer_name: str, quantization: Quantization | None = None) -> QuantizedLinear:
        """Turn `linear` itself into one in eight bits; its attributes of the same names are kept aside."""
        linear._aside = {name: linear.__dict__[name] for name in _STATE if name in linear.__dict__}
        linear.__class__ = QuantizedLinear
        linear.layer_name, linear.quantization = layer_name, quantization
        linear._folded, linear._integers = FoldedWeights(), KeptIntegers()
        return linear

    def release(self) -> nn.Linear:
        """Turn this very module back into the `nn.Linear` it was adopted from."""
        aside = self._aside
        for name in _STATE:
            del self.__dict__[name]
        self.__dict__.update(aside)
        self.__class__ = nn.Linear
        return self

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_folded": FoldedWeights(), "_integers": KeptIntegers()}  # caches of its own

    def facts(self) -> dict[str, str | None]:
        return {"precision": "int8", "note": "in int8"}

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, fx.Proxy):
            return captured.record(self, input)
        if torch.compiler.is_compiling():
            x, weight, bias = autocast(input, self.weight, self.bias)
            return torch.ops.accel.quantized_linear.default(x, weight, bias, self._known().flat())
        if is_floating():
            return self.forward_densely(input)
        if torch.is_grad_enabled():
            return self.dense_output(input)
        return _multiply(input, self._folded.get(self, None), self._known(), self._integers)

    def forward_densely(self, input: Tensor) -> Tensor:
        """As torch computes it."""
        return nn.Linear.forward(self, input)

    def dense_output(self, input: Tensor) -> Tensor:
        """What torch makes of the numbers that the bytes stand for."""
        x, weight, bias = autocast(input, self.weight, self.bias)
        return _imitated(self._known(), x, weight, bias)

    def _known(self) -> Quantization:
        return known(self.quantization, self.layer_name)


def _imitated(quantization: Quantization, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, weights = quantization.imitate(x, Folded(weight, bias, None, None))
    return F.linear(x, weights.weight, weights.bias)


def _multiply(x: Tensor, weights: Folded, quantization: Quantization, kept: KeptIntegers) -> Tensor:
    """The layer as a convolution of maps of one position."""
    maps = x.reshape(-1, x.shape[-1])[:, :, None, None]
    given = (every_position(1, 1), quantization, kept, None, None, None, "none")
    return convolve_bytes(maps, weights, *given, **_GEOMETRY).view(*x.shape[:-1], len(weights.weight))


_LAYER = "Tensor x, Tensor weight, Tensor? bias, Tensor[] quantization"


@torch.library.custom_op("accel::quantized_linear", mutates_args=(), schema=f"({_LAYER}) -> Tensor")
def _run(x, weight, bias, quantization):
    with torch.no_grad(), unwatched():
        if is_floating():
            return F.linear(x, weight, bias)
        made, layer = call_weights(weight, bias, [], quantization), types.SimpleNamespace(weight=weight, bias=bias)
        return _multiply(x, made.folded(layer), made.quantization, made.integers)


@_run.register_fake
def _(x, weight, _bias, _quantization):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op(
    "accel::quantized_linear_backward", mutates_args=(), schema=f"(Tensor grad, bool[] needs, {_LAYER}) -> Tensor[]"
)
def _run_backward(grad, needs, x, weight, bias, quantization):
    known = Quantization.from_flat(quantization)
    found = captured.gradients(lambda *leaves: _imitated(known, *leaves), grad, needs, x, weight, bias)
    return [each.contiguous() for each in found]


@_run_backward.register_fake
def _(grad, needs, *tensors):
    return [t.new_empty(t.shape) if needed else grad.new_empty(0) for t, needed in zip(tensors, needs)]


def _setup(ctx, inputs, output):
    *tensors, quantization = inputs
    ctx.save_for_backward(*tensors, *quantization)


def _grad(ctx, grad):
    x, weight, bias, *quantization = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    given = torch.ops.accel.quantized_linear_backward(grad, needs, x, weight, bias, quantization)
    return *(found if needed else None for found, needed in zip(given, needs)), [None] * len(quantization)


_run.register_autograd(_grad, setup_context=_setup)


def _work(args: Sequence, out: Tensor) -> Work:
    macs = out.numel() * args[1].shape[1]
    return Work(len(out), macs, macs)


register_macs("quantized_linear", _work)
register_macs("quantized_linear_backward", with_gradients(_work))
