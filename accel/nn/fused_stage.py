"""An adaptive stage on the C engine: its units folded and prepared once, and again when a parameter changes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from accel.config import FP32
from accel.halting import Policy
from accel.kernels.caches import keep_newest_sizes
from accel.kernels.dispatch import is_direct
from accel.kernels.stage import StageConv, StagePlan, StageResult, StageUnit, plan_stage, runs_on_engine
from accel.nn.byte_unit import precision_of, stage_conv
from accel.nn.folding import fold
from accel.nn.geometry import geometry_of
from accel.nn.quantized import is_floating
from accel.nn.residual_units import BranchStep, UnitDescription
from accel.nn.stamp import BUSY, OBSERVED, Stamp
from accel.nn.unit_proof import ProvedUnit
from accel.running import is_globally_watched

if TYPE_CHECKING:
    from accel.nn.adaptive import HaltingHead


class FusedStage:
    """Runs the units of a stage as `accel.kernels.stage` does, where it can. Holds no parameters of its own.

    Attributes:
        policy: that of evaluation.
    """

    def __init__(self, units: Sequence[ProvedUnit], *, spatial: bool, policy: Policy):
        self._units, self._spatial, self.policy = list(units), spatial, policy
        self._lock = threading.Lock()
        self._describe()

    def _describe(self) -> None:
        """Read what the units are made of, anew after a change."""
        self._modules = list(dict.fromkeys(module for proved in self._units for module in proved.unit.modules()))
        self._stamp = Stamp(None, self._modules, None, self._modules)
        self._plans: dict[tuple[int, int], StagePlan | None] = {}
        self._floating_plans: dict[tuple[int, int], StagePlan | None] = {}  # of a stage in eight bits, in fp32
        self._holds = all(proved.holds() for proved in self._units)
        self._descriptions = [proved.description for proved in self._units]
        shortcut = self._descriptions[0].shortcut
        self._shortcut_step = self._descriptions[0].shortcut_step
        self._shortcut = shortcut if self._shortcut_step is None else None

    def __getstate__(self) -> dict:
        """Copies prepare their own plans, for units of their own."""
        return {"units": self._units, "spatial": self._spatial, "policy": self.policy}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["units"], spatial=state["spatial"], policy=state["policy"])

    def run(self, x: Tensor) -> StageResult | None:
        """The stage on x [N, C, H, W]; None where only the units one by one can do it."""
        if not (x.dtype is torch.float32 and runs_on_engine(x) and is_direct(x)) or is_globally_watched():
            return None
        size = (x.shape[2], x.shape[3])
        plan = self._plan(size)
        if plan is None or self._shortcut_step is not None:
            return None if plan is None else plan.run(x, None)
        if self._shortcut is None:
            return plan.run(x, x)
        first = self._descriptions[0]
        return plan.run(x, self._shortcut(x), first.shortcut_macs(first.output_size(size)))

    def _plan(self, size: tuple[int, int]) -> StagePlan | None:
        """The plan for an input of `size`; of one thread at a time, as another one may be making it anew."""
        with self._lock:
            if (state := self._stamp.check()) == BUSY:
                return None
            if state > OBSERVED:
                self._describe()
            plans = self._floating_plans if is_floating() else self._plans
            if size not in plans:
                plans[size] = self._prepare(size)
                keep_newest_sizes(plans)
            return plans[size]

    def _prepare(self, size: tuple[int, int]) -> StagePlan | None:
        first = self._descriptions[0]
        sides = [step.padding for description in self._descriptions for step in description.steps]
        if not (self._holds and self._is_float32()):
            return None
        if any(side[::2] != side[1::2] for side in sides):
            return None  # the engine pads both sides alike
        if len({precision_of(description) for description in self._descriptions}) > 1:
            return None
        convs = [_convolutions(description) for description in self._descriptions]
        if None in convs:
            return None
        in_bytes = precision_of(first) != FP32
        made = functools.partial(stage_conv, reader=None) if in_bytes else _folded
        shortcut = None if self._shortcut_step is None else made(self._shortcut_step, "none")
        out = first.output_size(size)
        heads: list[HaltingHead | None] = [*(proved.unit.halting for proved in self._units[:-1]), None]
        units = [StageUnit(c, None if head is None else head.folded(out)) for c, head in zip(convs, heads)]
        return plan_stage(units, shortcut, size, spatial=self._spatial, eps=self.policy.eps, sticks=self.policy.sticks)

    def _is_float32(self) -> bool:
        tensors = [t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        counted = all(t.is_cpu and not t.is_inference() for t in tensors)
        return counted and all(t.dtype is torch.float32 or not t.is_floating_point() for t in tensors)


def _convolutions(unit: UnitDescription) -> tuple[StageConv, ...] | None:
    """Of the unit's branch, in order; None where the engine has none that do what they do."""
    precision, last = precision_of(unit), unit.steps[-1]
    activations = [unit.activation if step is last else step.activation for step in unit.steps]
    if precision is None:
        return None
    if precision == FP32:
        return tuple(map(_folded, unit.steps, activations))
    convs = tuple(map(stage_conv, unit.steps, activations, [*unit.steps[1:], None]))
    return None if None in convs else convs


def _folded(step: BranchStep, activation: str) -> StageConv:
    conv = step.conv
    weight, bias = (conv.weight, conv.bias) if step.bn is None else fold(conv, step.bn)[:2]
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    now = geometry_of(conv)
    top, _, left, _ = now.padding
    return StageConv(weight, bias, now.stride, (top, left), now.dilation, now.groups, activation)
