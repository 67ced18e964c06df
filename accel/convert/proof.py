"""The proof of a converted model, on its example inputs, before it is handed out.

Every perforated layer is compared with torch's convolution at the positions that it computes (in eight bits, of the
numbers that its bytes stand for), and every rewritten path (see `accel.nn.inference`), in fp32, with the own forward of
its part of the model: the outputs, and what became of the inputs, given the same random numbers. A layer that differs
is an error; a part whose rewritten path differs runs its own forward from then on, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from accel.errors import ConversionError
from accel.nn.adaptive import dense_execution
from accel.nn.inference import InferencePath, installed
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import floating
from accel.nn.quantized_linear import QuantizedLinear
from accel.profiling.distances import difference
from accel.running import cloned, one_by_one, replaced_forwards, state_kept, undisturbed


def prove(model: nn.Module, run: Callable[[nn.Module], object]) -> None:
    """Compare what conversion made of the model with what it was made from; `run` runs it on its example inputs.

    Raises:
        ConversionError: a perforated layer does not compute what torch's convolution does.
    """
    with undisturbed(model), dense_execution(model):  # stages run module by module on either side
        calls = _record(model, run)
        for name, path in installed(model):
            reason = next((said for call in calls.get(path, ()) if (said := _difference_of(path, call))), None)
            if reason is not None:
                path.refuse(reason)
                warnings.warn(
                    f"{name or 'the network'} runs module by module, nothing fused: its {reason}", stacklevel=4
                )


class _Call(NamedTuple):
    """A call of a part of the model: what it got, the random state, its outputs, and what became of the inputs."""

    inputs: tuple
    random: Tensor
    outputs: object
    left: tuple


def _record(model: nn.Module, run: Callable[[nn.Module], object]) -> dict[InferencePath, list[_Call]]:
    """Run the model module by module, comparing layers on the way; the calls that the rewritten paths would take."""
    calls: dict[InferencePath, list[_Call]] = {}
    forwards = {path.root: _recorder(path, calls.setdefault(path, [])) for _, path in installed(model)}
    for name, layer in model.named_modules():
        if isinstance(layer, PerforatedConv2d):
            forwards[layer] = _compared(name, layer)
        elif isinstance(layer, QuantizedLinear):
            forwards[layer] = _compared_linear(name, layer)
    with replaced_forwards(forwards), one_by_one():
        run(model)
    return calls


def _recorder(path: InferencePath, calls: list[_Call]) -> Callable:
    def forward(*args: object, **kwargs: object) -> object:
        if kwargs or not path.takes(args):
            return path.__wrapped__(*args, **kwargs)
        inputs, random = cloned(args), torch.get_rng_state()
        outputs = path.__wrapped__(*args)
        calls.append(_Call(inputs, random, cloned(outputs), cloned(args)))
        return outputs

    return forward


def _compared(name: str, layer: PerforatedConv2d) -> Callable:
    def forward(input: Tensor) -> Tensor:  # as torch names it
        out, expected = PerforatedConv2d.forward(layer, input), layer.dense_output(input)
        computed = layer.position_set(*out.shape[-2:], out.device).positions.long()
        there = [image.flatten(-2)[..., computed] for image in (expected, out) if out.shape == expected.shape]
        said = difference(*(there or (expected, out)))
        if said is not None:
            raise ConversionError(
                f"layer {name!r} {said} from torch's convolution at the positions that it computes: leave it dense by "
                f"a rule {{{name!r}: None}}"
            )
        if layer.config.in_bytes:
            with floating():
                return PerforatedConv2d.forward(layer, input)
        return out

    return forward


def _compared_linear(name: str, layer: QuantizedLinear) -> Callable:
    def forward(input: Tensor) -> Tensor:  # as torch names it
        said = difference(layer.dense_output(input), QuantizedLinear.forward(layer, input))
        if said is not None:
            raise ConversionError(
                f"layer {name!r} {said} from torch's product of the numbers that its bytes stand for: leave it in fp32 "
                f"by a rule {{{name!r}: None}}"
            )
        return layer.forward_densely(input)

    return forward


def _difference_of(path: InferencePath, call: _Call) -> str | None:
    """How either form of the rewritten path differs from the own forward in this call, or None."""
    torch.set_rng_state(call.random)
    way, _ = path.way(cloned(call.inputs))
    if way is not None:
        return f"forward {way}"
    for code in (path.rewritten.code, path.rewritten.fast):
        inputs = cloned(call.inputs)
        torch.set_rng_state(call.random)
        try:
            with state_kept(path.root), floating():
                outputs = code(path.root, *inputs)
        except Exception as error:  # of whatever kind: the own forward did not raise
            return f"rewritten path raises {type(error).__name__} ({error})"
        if (said := difference((call.outputs, call.left), (outputs, inputs))) is not None:
            return f"rewritten path {said} from its own forward"
    path.accept(call.inputs)
    return None
