"""A residual unit in eight bits: its convolutions multiply bytes by signed bytes, what they give each other are bytes,
and what the unit adds to, its input, stays in fp32.

So the state of a stage, which halting heads read and of which outputs are summed, holds what fp32 units would make of
the convolutions; a unit's first convolution makes bytes of it. The sums are exact, and what is made of them has one
order: a position gets the same bits wherever else the unit runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from accel.config import FP32, INT8
from accel.kernels.stage import StageBytes, StageConv, head_scores
from accel.nn.compact import Compact
from accel.nn.geometry import geometry_of
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import BYTE_ACTIVATIONS, Meaning, is_floating
from accel.nn.residual_units import BranchStep, UnitDescription

if TYPE_CHECKING:
    from accel.nn.adaptive import HaltingHead


def precision_of(unit: UnitDescription) -> str | None:
    """What all convolutions of a unit compute in; None where they differ, or where one was never calibrated."""
    convs = [step.conv for step in (*unit.steps, *filter(None, [unit.shortcut_step]))]
    in_bytes = [isinstance(conv, PerforatedConv2d) and conv.config.in_bytes for conv in convs]
    if is_floating() or not any(in_bytes):
        return FP32
    return INT8 if all(in_bytes) and all(conv.quantization is not None for conv in convs) else None


def run_in_bytes(unit: UnitDescription, x: Tensor) -> Tensor:
    """What a unit of precision "int8" makes of x [N, C, H, W] in evaluation, without gradients: fp32, channels_last."""
    step, residual = unit.shortcut_step, x
    if step is not None:
        residual = PerforatedConv2d.forward(step.conv, x, step.bn)
    elif unit.shortcut is not None:
        residual = unit.shortcut(x)
    rows: Tensor | Compact = x
    for step, reader in zip(unit.steps, unit.steps[1:]):
        meaning = Meaning(given=reader.conv)
        rows = PerforatedConv2d.forward(step.conv, rows, step.bn, step.activation, compact=True, meaning=meaning)
    last = unit.steps[-1]
    return PerforatedConv2d.forward(last.conv, rows, last.bn, unit.activation, residual=residual)


class EngineHead:
    """A halting head in evaluation, on the engine. What follows makes bytes of the sums that scores weigh, and a byte
    that rounds the other way is a hundred times as much as a last bit: scores must not depend on how a stage runs."""

    def __init__(self, head: HaltingHead) -> None:
        self._head = head

    def __call__(self, state: Tensor) -> Tensor:
        return head_scores(state, self._head.folded(tuple(state.shape[2:])), logits=False)

    def logits(self, state: Tensor) -> Tensor:
        return head_scores(state, self._head.folded(tuple(state.shape[2:])), logits=True)


def stage_conv(step: BranchStep, activation: str, reader: BranchStep | None) -> StageConv | None:
    """A step of such a unit for `accel.kernels.stage`; None where it gives a `reader` what bytes cannot be.

    Args:
        activation: of the step, or of its unit.
        reader: the step that reads what it gives; None: it gives fp32.
    """
    if reader is not None and activation not in BYTE_ACTIVATIONS:
        return None
    conv, now = step.conv, geometry_of(step.conv)
    given = None if reader is None else reader.conv.quantization.input
    weights, input = conv._folded.get(conv, step.bn), conv.quantization.input
    made = conv._integers.get(conv.quantization, weights, input, None, given, activation=activation)
    top, _, left, _ = now.padding
    return StageConv(
        made.weight, made.requantization.offset, now.stride, (top, left), now.dilation, now.groups,
        activation if reader is None else "none", StageBytes(input, made.requantization),
    )  # fmt: skip
