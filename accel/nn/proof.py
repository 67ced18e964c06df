"""The proof of a converted model, on its example inputs, before it is handed out.

Every perforated layer is compared with torch's convolution at the positions that it computes, and every rewritten path
(see `accel.nn.inference`) with the own forward of its part of the model: the outputs, and what became of the inputs,
given the same random numbers. A layer that differs is an error; a part whose rewritten path differs runs its own
forward from then on, with a warning.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from accel.errors import ConversionError
from accel.nn.inference import InferencePath, installed, one_by_one
from accel.nn.perforated import PerforatedConv2d
from accel.nn.running import cloned, replaced_forwards, state_kept, undisturbed

# Relative differences that rounding explains: 1e-6 at most in float32 on the networks of the zoo, and faults start at
# 1e-3, where a border is wrong.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_FLIPPED = 0.01  # share of integers and booleans, such as masks and classes, that rounding may turn over


def prove(model: nn.Module, run: Callable[[nn.Module], object]) -> None:
    """Compare what conversion made of the model with what it was made from; `run` runs it on its example inputs.

    Raises:
        ConversionError: a perforated layer does not compute what torch's convolution does.
    """
    with undisturbed(model):
        calls = _record(model, run)
        for name, path in installed(model):
            reason = next((said for call in calls.get(path, ()) if (said := _difference_of(path, call))), None)
            if reason is not None:
                path.refuse(reason)
                warnings.warn(
                    f"{name or 'the network'} runs module by module, nothing fused: its rewritten path {reason}",
                    stacklevel=4,
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
        return out

    return forward


def _difference_of(path: InferencePath, call: _Call) -> str | None:
    """How either form of the rewritten path differs from the own forward in this call, or None."""
    for code in (path.code, path.fast):
        inputs = cloned(call.inputs)
        torch.set_rng_state(call.random)
        try:
            with state_kept(path.root):
                outputs = code(path.root, *inputs)
        except Exception as error:  # of whatever kind: the own forward did not raise
            return f"raises {type(error).__name__} ({error})"
        if (said := difference((call.outputs, call.left), (outputs, inputs))) is not None:
            return f"{said} from its own forward"
    return None


def difference(expected: object, found: object) -> str | None:
    """How `found` differs from `expected`, nested outputs with tensors in them, beyond rounding; or None."""
    leaves, form = pytree.tree_flatten(expected)
    others, other = pytree.tree_flatten(found)
    if form != other:
        return "returns another structure"
    return next((said for pair in zip(leaves, others) if (said := _leaf_difference(*pair)) is not None), None)


def _leaf_difference(expected: object, found: object) -> str | None:
    if dataclasses.is_dataclass(expected) and type(expected) is type(found):
        return difference(vars(expected), vars(found))
    if not isinstance(expected, Tensor):
        return None if type(expected) is type(found) and (expected is found or expected == found) else "differs"
    if not isinstance(found, Tensor) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return f"differs in shape or dtype ({_form(found)} for {_form(expected)})"
    if expected.is_complex():
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    if not expected.is_floating_point():
        share = (expected != found).float().mean().item() if expected.numel() else 0.0
        return f"differs in {100 * share:.2g} % of the integers" if share > _FLIPPED else None
    if not torch.equal(_odd(expected), _odd(found)):
        return "differs in infinities or NaN"
    share = _relative(expected, found)
    return f"differs by {share:.2g}" if share > _tolerance(expected) else None


def _odd(values: Tensor) -> Tensor:
    """0 where finite; infinities and NaN told apart."""
    return values.isposinf() + 2 * values.isneginf() + 3 * values.isnan()


def _relative(expected: Tensor, found: Tensor) -> float:
    """Norm of the difference of the finite values over that of the expected ones."""
    finite = expected.isfinite()
    wide = torch.promote_types(expected.dtype, torch.float32)
    left, right = (values.masked_fill(~finite, 0).to(wide) for values in (expected, found))
    scale = torch.cat((left.flatten(), right.flatten(), left.new_zeros(1))).abs().max()
    if not scale:
        return 0.0
    left, right = left / scale, right / scale  # squares of large values would overflow
    return ((right - left).norm() / left.norm()).item()


def _tolerance(values: Tensor) -> float:
    if values.dtype is torch.float32 and values.is_cuda:
        return _TOLERANCE[torch.float16]  # torch computes convolutions in tf32 there, which has as many bits
    return _TOLERANCE.get(values.dtype, _TOLERANCE[torch.bfloat16])


def _form(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
