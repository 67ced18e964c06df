"""ACT and SACT stages: residual units that run until their halting scores add up to one, per image or per position.

Figurnov et al. 2017, arXiv 1612.02297. A stage keeps the units and their parameter names; unit k gains a submodule
`halting` (the score h of section 3.1), which its own forward does not call. The state of a position that has halted is
frozen: it goes on feeding the windows of its neighbours.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.config import ACT, SACT
from accel.errors import ConversionError
from accel.halting import Halted, run_stage
from accel.kernels.dispatch import active_backend
from accel.kernels.stage import StageHead
from accel.nn.budget import control_tau
from accel.nn.fused_stage import FusedStage
from accel.nn.inference import install, uninstall
from accel.nn.residual_units import describe_unit, is_unit
from accel.nn.sparse_unit import SparseUnit
from accel.ops import halting_step_
from accel.profiling.flops import SelfAccounting

# Share of active positions from which a unit runs densely, where only the readable reference can mask: its gathers take
# 1.1 to 2.4 times a dense unit's time at 0.1 to 0.2 already. The C engine never falls back: at every position active it
# takes 0.56 to 0.92 of torch's time (units of ResNet-32 and ResNet-50, two cores).
DENSE_ABOVE = 0.1
INITIAL_BIAS = -3.0  # sigmoid(-3) = 0.05: at first every unit runs (the official code's constant)


@dataclasses.dataclass
class StageOutput:
    """What one stage did. Shapes for SACT; ACT has no H and W.

    Attributes:
        ponder_cost: [N, H, W], rho = N + R of section 3.1, between 2 and L + 1; differentiable.
        num_units: int32 [N, H, W], units that ran.
        halting_distribution: [N, L, H, W], weight of each unit's output; sums to 1 over L.
        executed_macs: int64 [N], convolutions of units and halting heads at the positions where they ran.
        dense_macs: those of all units at all positions, without heads, per image.
    """

    ponder_cost: Tensor
    num_units: Tensor
    halting_distribution: Tensor
    executed_macs: Tensor
    dense_macs: int


@dataclasses.dataclass
class AdaptiveOutput:
    """Output of an adaptive network: what the network returned before, what each stage did, and the weight of that."""

    logits: Tensor
    stages: list[StageOutput]
    tau: float

    @property
    def executed_share(self) -> float:
        """MACs the stages executed over those of the plain units, in the whole batch; above 1 when nothing halts."""
        executed = sum(int(stage.executed_macs.sum()) for stage in self.stages)
        return executed / sum(stage.dense_macs * len(stage.executed_macs) for stage in self.stages)


def ponder_loss(output: AdaptiveOutput) -> Tensor:
    """tau times the sum over stages of the mean ponder cost (arXiv 1612.02297, eq. 7); add it to the task's loss."""
    return output.tau * sum(stage.ponder_cost.mean() for stage in output.stages)


class HaltingHead(nn.Module):
    """h = sigmoid(conv(BN(x)) + pooled(BN(mean of x)) + bias): [N, C, H, W] -> [N, H, W], or [N] for ACT.

    SACT's `conv` is 3x3 and sees the neighbourhood, `pooled` sees the whole map; ACT has the latter alone, as a 1x1
    convolution of the mean, under the name `conv`.
    """

    def __init__(self, channels: int, spatial: bool):
        super().__init__()
        self.spatial = spatial
        made = {"dtype": torch.float32, "device": "cpu"}  # the same draw everywhere; then it follows its unit
        self.bn = nn.BatchNorm2d(channels, **made)
        self.conv = nn.Conv2d(channels, 1, 3 if spatial else 1, padding=1 if spatial else 0, **made)
        nn.init.constant_(self.conv.bias, INITIAL_BIAS)
        if spatial:
            self.pooled_bn = nn.BatchNorm2d(channels, **made)
            self.pooled = nn.Conv2d(channels, 1, 1, bias=False, **made)

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, x.shape[2:])
        if self.spatial:
            score = (self.conv(self.bn(x)) + self.pooled(self.pooled_bn(mean)))[:, 0]
        else:
            score = self.conv(self.bn(mean)).flatten()
        return torch.sigmoid(score.to(torch.promote_types(score.dtype, torch.float32)))  # narrower under autocast

    @torch.no_grad()
    def folded(self, size: tuple[int, int]) -> StageHead:
        """The head in evaluation for a map of `size`, its batch norms folded in."""
        pooled_bn, pooled = (self.pooled_bn, self.pooled) if self.spatial else (self.bn, self.conv)
        gain, offset = _affine(pooled_bn)
        share = pooled.weight.flatten()
        constant = share @ offset
        if not self.spatial:
            return StageHead(None, self.conv.bias + constant, share * gain)
        local_gain, local_offset = _affine(self.bn)
        weight = self.conv.weight.contiguous()  # the same bits whatever the memory format
        shift = local_offset[None, :, None, None].expand(1, -1, *size)
        bias = F.conv2d(shift.contiguous(), weight, self.conv.bias, padding=1)[0, 0] + constant
        taps = (weight[0] * local_gain[:, None, None]).flatten(1).t()
        return StageHead(taps, bias, share * gain)

    def executed_macs(self, ran: Tensor) -> Tensor:
        """int64 [N], where `ran`, bool [N, H, W] or [N], says where the unit ran; the mean's convolution runs once."""
        positions = ran.flatten(1).sum(1) if self.spatial else ran.long()
        pooled = self.pooled.weight.numel() if self.spatial else 0
        return positions * self.conv.weight.numel() + (positions > 0) * pooled


class AdaptiveStage(SelfAccounting, nn.Sequential):
    """The units of a stage under one ACT or SACT instance; input and output are those of the plain sequence.

    In training, under autograd and in `dense_execution`, every unit runs everywhere and the mask is applied after it;
    otherwise units run at the active positions only (SACT), or on the images still active (ACT).

    Attributes:
        result: what the stage did in its last call; the model's output takes it.
    """

    is_whole = True  # what its units run on is decided at every call

    def __init__(self, units: nn.Sequential, config: ACT):
        super().__init__(*units)
        self.config = config
        self.spatial = isinstance(config, SACT)
        self.dense = False
        self.result: StageOutput | None = None
        for unit in list(self)[:-1]:
            channels = describe_unit(unit).steps[-1].conv.out_channels
            unit.halting = HaltingHead(channels, self.spatial).to(next(unit.parameters()))
        self._sparse = [SparseUnit(unit) for unit in self]
        self._macs: dict[tuple[int, int], int] = {}  # by size of the input: counting takes 0.1 ms
        self._fused = FusedStage(self, spatial=self.spatial, eps=config.eps)
        self.train(units.training)

    def forward(self, x: Tensor) -> Tensor:
        densely = self.dense or self.training or torch.is_grad_enabled()
        first = self._sparse[0].description
        size = first.output_size(tuple(x.shape[2:]))
        fused = None if densely else self._fused.run(x, first.shortcut_macs(size))
        if fused is not None:
            self.result = StageOutput(fused.ponder, fused.units, fused.distribution, fused.macs, self._dense_macs(x))
            self.account(fused.macs, self._dense_macs(x))
            return fused.output
        halted = self._run_densely(x) if densely else self._run_sparsely(x)
        macs = self._executed_macs(halted.units, x)
        weights = halted.distribution.movedim(0, 1)
        self.result = StageOutput(halted.ponder, halted.units, weights, macs, self._dense_macs(x))
        self.account(macs, self._dense_macs(x))
        return halted.output

    def _run_densely(self, x: Tensor) -> Halted:
        heads = [unit.halting for unit in list(self)[:-1]]
        return run_stage(list(self), heads, x, spatial=self.spatial, eps=self.config.eps)

    def _run_sparsely(self, x: Tensor) -> Halted:
        """The same values, computing a unit only where something still runs."""
        state = self[0](x)
        remainder = state.new_ones((state.shape[0], *state.shape[2:]) if self.spatial else state.shape[:1])
        ponder, output = torch.ones_like(remainder), torch.zeros_like(state)
        count, weights = torch.zeros_like(remainder, dtype=torch.int32), []
        running = remainder > 0
        for k, unit in enumerate(self):
            if k:
                state = self._run_unit(k, state, running)
            last = k == len(self) - 1
            before = remainder.clone()
            h = None if last else unit.halting(state)
            running = halting_step_(h, state, remainder, ponder, count, output, self.config.eps, last)
            weights.append(before - remainder)
        return Halted(output, ponder, count, torch.stack(weights))

    def _run_unit(self, k: int, state: Tensor, running: Tensor) -> Tensor:
        unit = self[k]
        if not self.spatial:
            return _run_images(unit, state, running)
        if active_backend(state) == "reference" and running.float().mean() > DENSE_ABOVE:
            return torch.where(running[:, None], unit(state), state)
        return self._sparse[k](state, running)

    def _dense_macs(self, x: Tensor) -> int:
        size = tuple(x.shape[2:])
        if size not in self._macs:
            first, *others = (unit.description for unit in self._sparse)
            rest = sum(unit.dense_macs(first.output_size(size)) for unit in others)
            self._macs[size] = first.dense_macs(size) + rest
        return self._macs[size]

    def _executed_macs(self, units: Tensor, x: Tensor) -> Tensor:
        """int64 [N]: unit k, and its halting head, ran where `units` > k; the first ran everywhere."""
        first, size = self._sparse[0].description, tuple(x.shape[2:])
        total = torch.full((x.shape[0],), first.dense_macs(size), dtype=torch.int64, device=units.device)
        for k, unit in enumerate(self):
            ran = units > k
            if k and self.spatial:
                total += self._sparse[k].executed_macs(ran)
            elif k:
                total += ran * self._sparse[k].description.dense_macs(first.output_size(size))
            if k < len(self) - 1:
                total += unit.halting.executed_macs(ran)
        return total


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(gain [C], offset [C]) of a batch norm in evaluation."""
    gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return gain, norm.bias - norm.running_mean * gain


def _run_images(unit: nn.Module, state: Tensor, running: Tensor) -> Tensor:
    """Early stopping of ACT: the unit on the images that still run, regrouped into a smaller batch."""
    images = running.nonzero()[:, 0]
    if len(images) in (0, len(state)):
        return unit(state) if len(images) else state
    return state.index_copy(0, images, unit(state[images]))


def make_adaptive(model: nn.Module, assigned: Mapping[str, ACT]) -> nn.Module:
    """Turn the named sequences of residual units into ACT or SACT stages, in place; the model returns AdaptiveOutput.

    Raises:
        ConversionError: a name that is no sequence of two or more residual units, a unit that SACT cannot mask, or
            values of tau or target that differ.
    """
    if len({(config.tau, config.target) for config in assigned.values()}) > 1:
        raise ConversionError("the stages of a network share tau and target: give every ACT and SACT rule the same")
    for name, config in assigned.items():
        units = model.get_submodule(name)
        if not is_stage(units):
            raise ConversionError(f"{name} is not a sequence of two or more residual units: {type(units).__name__}")
        for index, unit in list(enumerate(units))[1:]:
            if not describe_unit(unit).maskable:
                raise ConversionError(f"unit {name}.{index} changes size or width: only the first of a stage may")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, AdaptiveStage(units, config))
    first = adaptive_stages(model)[0]
    if first.config.target is not None:
        first.register_buffer("tau", torch.tensor(float(first.config.tau), dtype=torch.float32, device="cpu"))
    model.register_forward_hook(_collect_results)
    install(model)
    return model


def make_plain(model: nn.Module) -> nn.Module:
    """The inverse of `make_adaptive`, in place: plain sequences of units, the halting heads gone."""
    uninstall(model)
    for name, stage in [(n, m) for n, m in model.named_modules() if isinstance(m, AdaptiveStage)]:
        for unit in list(stage)[:-1]:
            del unit.halting
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Sequential(*stage).train(stage.training))
    for key, hook in list(model._forward_hooks.items()):
        if hook is _collect_results:
            del model._forward_hooks[key]
    return model


def is_stage(module: nn.Module) -> bool:
    """Whether a module is a sequence of two or more residual units."""
    return isinstance(module, nn.Sequential) and len(module) > 1 and all(is_unit(unit) for unit in module)


def _collect_results(model: nn.Module, _inputs: tuple, output: Tensor) -> AdaptiveOutput:
    stages = adaptive_stages(model)
    results = [stage.result for stage in stages]
    for stage in stages:
        stage.result = None
    collected = AdaptiveOutput(output, results, stages[0].config.tau)
    target = stages[0].config.target
    if target is not None and model.training and torch.is_grad_enabled():
        collected.tau = control_tau(stages[0].tau, collected.executed_share, target)
    elif target is not None:
        collected.tau = float(stages[0].tau)
    return collected


def adaptive_stages(model: nn.Module) -> list[AdaptiveStage]:
    """The ACT and SACT stages of a model, in the order of its modules."""
    if isinstance(model, AdaptiveStage):
        return [model]  # it holds no others, and every call of a network looks for them: 0.35 ms through all modules
    return [stage for child in model.children() for stage in adaptive_stages(child)]


def adaptive_configs(model: nn.Module) -> dict[str, ACT]:
    """The configuration of every adaptive stage, by its full name."""
    return {name: module.config for name, module in model.named_modules() if isinstance(module, AdaptiveStage)}


@contextlib.contextmanager
def dense_execution(model: nn.Module) -> Iterator[None]:
    """Run the stages densely under their masks: what sparse execution is compared with."""
    stages = adaptive_stages(model)
    before = [stage.dense for stage in stages]
    for stage in stages:
        stage.dense = True
    try:
        yield
    finally:
        for stage, dense in zip(stages, before):
            stage.dense = dense
