"""ACT, SACT and PACT stages: residual units that run until a policy halts them, per image or per position.

Figurnov et al. 2017, arXiv 1612.02297, and arXiv 1712.00386; see `accel.halting`. A stage keeps the units and their
parameter names; unit k gains a submodule `halting` (the score h of section 3.1), which its own forward does not call.
The state of a position that has halted is frozen: it goes on feeding the windows of its neighbours.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from accel.config import FP32, INT8, PACT, Halting
from accel.errors import ConfigError, ConversionError
from accel.halting import Halted, Policy, Steps, run_stage
from accel.halting.budget import control_tau
from accel.halting.policies import refuse_nan
from accel.halting.stage import whole_budgets
from accel.kernels.dispatch import active_backend, is_direct
from accel.kernels.stage import StageHead, runs_on_engine
from accel.nn import captured, stage_op
from accel.nn.byte_unit import EngineHead, precision_of, run_in_bytes
from accel.nn.folding import affine
from accel.nn.fused_stage import FusedStage
from accel.nn.inference import install, uninstall
from accel.nn.modes import chosen, evaluation_policy, policy_of
from accel.nn.residual_units import describe_unit, is_unit
from accel.nn.sparse_unit import SparseUnit
from accel.nn.stage_outputs import AdaptiveOutput, StageOutput, add, close_list, open_list, ponder_loss
from accel.nn.stamp import is_watched
from accel.nn.unit_proof import DEFAULT_SIZE, ProvedUnit, prove_unit
from accel.profiling.flops import SelfAccounting
from accel.running import is_exporting

__all__ = ["AdaptiveOutput", "AdaptiveStage", "HaltingHead", "StageOutput", "dense_execution", "ponder_loss"]

# Share of active positions from which a unit runs densely, where only the readable reference can mask: its gathers take
# 1.1 to 2.4 times a dense unit's time at 0.1 to 0.2 already. The C engine never falls back: at every position active it
# takes 0.56 to 0.92 of torch's time (units of ResNet-32 and ResNet-50, two cores).
DENSE_ABOVE = 0.1
INITIAL_BIAS = -3.0  # sigmoid(-3) = 0.05: at first every unit runs (the official code's constant)


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
        return torch.sigmoid(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """The log odds of h, shaped like it."""
        mean = F.avg_pool2d(x, x.shape[2:])
        if self.spatial:
            score = (self.conv(self.bn(x)) + self.pooled(self.pooled_bn(mean)))[:, 0]
        else:
            score = self.conv(self.bn(mean)).flatten()
        return score.to(torch.promote_types(score.dtype, torch.float32))  # narrower under autocast

    @torch.no_grad()
    def folded(self, size: tuple[int, int]) -> StageHead:
        """The head in evaluation for a map of `size`, its batch norms folded in."""
        pooled_bn, pooled = (self.pooled_bn, self.pooled) if self.spatial else (self.bn, self.conv)
        gain, offset = affine(pooled_bn, pooled.weight.dtype)
        share = pooled.weight.flatten()
        constant = share @ offset
        if not self.spatial:
            return StageHead(None, self.conv.bias + constant, share * gain)
        local_gain, local_offset = affine(self.bn, pooled.weight.dtype)
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
    """The units of a stage under one ACT, SACT or PACT instance; input and output are those of the plain sequence.

    In training, under autograd and in `dense_execution`, every unit runs everywhere and the mask is applied after it;
    otherwise units run at the active positions only, or where whole images halt on the images still active. What a call
    did goes to the list that the model's call has opened, see `accel.nn.stage_outputs`.

    Attributes:
        config: the configuration.
        name: full module name.
    """

    is_whole = True  # what its units run on is decided at every call
    _OWN = ("config", "name", "spatial", "_was", "_dense", "_sparse", "_macs", "_fused")

    @staticmethod
    def adopt(units: nn.Sequential, config: Halting, name: str = "") -> AdaptiveStage:
        """Turn the sequence itself into a stage, so that its names, hooks and every reference to it stay valid."""
        was, stage = type(units), units
        stage.__class__ = AdaptiveStage
        stage._was, stage.config, stage.name = was, config, name
        stage.spatial = config.spatial
        stage._dense = set()  # a mark for every block of `dense_execution` that is open, in any thread
        for unit in stage._halting_units():
            conv = describe_unit(unit).steps[-1].conv
            unit.halting = HaltingHead(conv.out_channels, stage.spatial).to(conv.weight).train(unit.training)
        proved = [ProvedUnit(unit, f"{name}.{key}") for key, unit in stage._modules.items()]
        stage._sparse = [SparseUnit(unit) for unit in proved]
        stage._macs = {}  # by size of the input: counting takes 0.1 ms
        stage._fused = FusedStage(proved, spatial=stage.spatial, policy=evaluation_policy(config))
        stage_op.know(stage)
        return stage

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        stage_op.know(self)

    def release(self) -> nn.Sequential:
        """Turn this very module back into the sequence it was adopted from, the halting heads gone."""
        for unit in self._halting_units():
            del unit.halting
        was = self._was
        for name in self._OWN:
            del self.__dict__[name]
        self.__class__ = was
        return self

    def _halting_units(self) -> list[nn.Module]:
        """The units that have a halting head, each once: all but the last; one that is used twice has one head."""
        return list(dict.fromkeys(list(self)[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return captured.record(self, x)
        densely = self._dense or self.training or torch.is_grad_enabled() or is_exporting()
        if torch.compiler.is_compiling() and not densely:
            return stage_op.run_stage(self, x)
        policy = policy_of(self)
        densely = densely or policy.plans
        fused = None if densely or policy != self._fused.policy else self._fused.run(x)
        if fused is not None:
            if policy.sticks:
                refuse_nan(fused.ponder)
            did = StageOutput(fused.ponder, fused.units, fused.distribution, fused.macs, self._dense_macs(x), self.name)
            output = fused.output
        else:
            halted = self._run_densely(x, policy) if densely else self._run_sparsely(x, policy)
            macs, weights = self._executed_macs(halted.units, x), halted.distribution.movedim(0, 1)
            logits = None if halted.logits is None else halted.logits.movedim(0, 1)
            did = StageOutput(halted.ponder, halted.units, weights, macs, self._dense_macs(x), self.name, logits)
            output = halted.output
        add(did)
        self.account(did.executed_macs, did.dense_macs)
        return output

    @property
    def in_bytes(self) -> bool:
        """Whether its units compute in eight bits."""
        return all(precision_of(unit.description) == INT8 for unit in self._sparse)

    def facts(self) -> dict[str, str | None]:
        return {"precision": INT8, "note": f"in {INT8}"} if self.config.in_bytes else {}

    def _heads(self, policy: Policy, x: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """How the halting heads speak to the policy."""
        heads = [unit.halting for unit in list(self)[:-1]]
        if self._is_evaluation() and self.in_bytes and runs_on_engine(x) and is_direct(x):
            heads = [head if is_watched(head) or head.bn.training else EngineHead(head) for head in heads]
        return [policy.said_by(head) for head in heads]

    def _is_evaluation(self) -> bool:
        """Whether what runs is what evaluation computes, and nobody wants gradients or a graph of it."""
        plain = not (self.training or torch.is_grad_enabled())
        return plain and not (torch.compiler.is_compiling() or is_exporting())

    def _run_densely(self, x: Tensor, policy: Policy) -> Halted:
        units: list[Callable[[Tensor], Tensor]] = list(self)
        if self._is_evaluation():
            units = [functools.partial(self._run_everywhere, k) for k in range(len(self))]
        return run_stage(units, self._heads(policy, x), x, spatial=self.spatial, policy=policy)

    def _run_everywhere(self, k: int, state: Tensor) -> Tensor:
        """Unit k as evaluation computes it."""
        in_bytes = self._precision(k) == INT8
        return run_in_bytes(self._sparse[k].description, state) if in_bytes else self[k](state)

    def _precision(self, k: int) -> str | None:
        """In which unit k runs by its description; None where only its own forward can do it."""
        proved = self._sparse[k].proved
        return None if is_watched(self[k]) or not proved.holds() else precision_of(proved.description)

    def _run_sparsely(self, x: Tensor, policy: Policy) -> Halted:
        """The same values, computing a unit only where something still runs."""
        state = self._run_everywhere(0, x)
        in_place = not policy.sums  # the state is the output, and the only map that is kept
        if in_place:
            seen = is_watched(self[0]) or not self._sparse[0].proved.holds()
            state = _own_map(state, copied=seen)
        steps = Steps(policy, state, whole_budgets(state, self.spatial), in_place=True)
        for k, head in enumerate([*self._heads(policy, x), None]):
            if k:
                state = self._run_unit(k, state, steps.running, in_place)
            steps.take(head, state)
        return steps.halted(state)

    def _run_unit(self, k: int, state: Tensor, running: Tensor, in_place: bool = False) -> Tensor:
        if not self.spatial:
            return _run_images(functools.partial(self._run_everywhere, k), state, running, in_place)
        full = active_backend(state) == "reference" and running.float().mean() > DENSE_ABOVE
        if full or self._precision(k) != FP32:
            return torch.where(running[:, None], self._run_everywhere(k, state), state)
        return self._sparse[k](state, running, in_place)

    def output_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the output for an input of this size."""
        first = self._sparse[0].description
        return first.steps[-1].conv.out_channels, *first.output_size((height, width))

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


def _run_images(unit: Callable[[Tensor], Tensor], state: Tensor, running: Tensor, in_place: bool) -> Tensor:
    """Early stopping of whole images: the unit on those that still run, regrouped into a smaller batch."""
    images = running.nonzero()[:, 0]
    if len(images) in (0, len(state)):
        return unit(state) if len(images) else state
    copy = Tensor.index_copy_ if in_place else Tensor.index_copy
    return copy(state, 0, images, unit(state[images]))


def _own_map(state: Tensor, copied: bool) -> Tensor:
    """The map in channels_last, to write to; copied where others may hold it."""
    own = state.contiguous(memory_format=torch.channels_last)
    return own.clone(memory_format=torch.channels_last) if copied and own is state else own


def make_adaptive(model: nn.Module, assigned: Mapping[str, Halting]) -> nn.Module:
    """Turn the named sequences of residual units into adaptive stages, in place; the model returns AdaptiveOutput.

    Args:
        assigned: configurations by full module name.

    Raises:
        ConversionError: see `check_stages`; all is checked before a change.
        ConfigError: a stage in eight bits, which a calibration makes.
    """
    check_stages(model, assigned)
    name = next((name for name, config in assigned.items() if config.in_bytes), None)
    if name is not None:
        raise ConfigError(
            f"precision {assigned[name].precision!r} of stage {name!r} needs data: convert the network by "
            "accel.convert_model, with calibration= a loader or list of inputs"
        )
    return install_stages(model, assigned)


def install_stages(model: nn.Module, assigned: Mapping[str, Halting]) -> nn.Module:
    """`adopt_stages`, and the inference path."""
    adopt_stages(model, assigned)
    install(model)
    return model


def adopt_stages(model: nn.Module, assigned: Mapping[str, Halting]) -> None:
    """`make_adaptive` after `check_stages`, but for the inference path."""
    for name, config in assigned.items():
        AdaptiveStage.adopt(model.get_submodule(name), config, name)
    first = adaptive_stages(model)[0]
    if first.config.target is not None:
        first.register_buffer("tau", torch.tensor(float(first.config.tau), dtype=torch.float32, device="cpu"))
    if isinstance(first.config, PACT):  # by their weights alone PACT's heads could not be told from SACT's or ACT's
        first.register_buffer("sticks", torch.ones((), dtype=torch.float32, device="cpu"))
    model.register_forward_pre_hook(open_list, prepend=True)
    model.register_forward_hook(_collect_results, always_call=True)


def check_stages(
    model: nn.Module, assigned: Mapping[str, Halting], inputs: Mapping[str, Sequence[tuple[int, ...]]] | None = None
) -> None:
    """Refuse what cannot become stages; the model is left as it is.

    Args:
        inputs: shapes [N, C, H, W] of the inputs of units by full module name, where they are known: the proof that a
            unit is what its description says runs at them.

    Raises:
        ConversionError: a name that is no sequence of two or more residual units, a unit that is not what its
            description says or that cannot be masked, or values of tau, target, kl or estimator that differ.
    """
    shared = [
        (config.tau, config.target, getattr(config, "kl", None), getattr(config, "estimator", None))
        for config in assigned.values()
    ]
    if any(values != shared[0] for values in shared):
        raise ConversionError(
            "the stages of a network share tau and target, and those of PACT kl and the estimator: give every rule "
            "the same"
        )
    if adaptive_stages(model):
        raise ConversionError(f"{type(model).__name__} is adaptive already: revert it first")
    owners: dict[nn.Module, str] = {}
    for name in assigned:
        units = model.get_submodule(name)
        if not is_stage(units):
            raise ConversionError(f"{name} is not a sequence of two or more residual units: {type(units).__name__}")
        taken = [own for own in AdaptiveStage._OWN if hasattr(units, own)]
        if taken:
            raise ConversionError(f"{name} has attributes of its own that a stage needs: rename {', '.join(taken)}")
        for key, unit in units.named_children():
            if owners.setdefault(unit, name) != name:
                raise ConversionError(f"unit {name}.{key} belongs to stage {owners[unit]} too: give each its own")
            if hasattr(unit, "halting"):
                raise ConversionError(f"unit {name}.{key} has an attribute 'halting' of its own: rename it")
        for key, unit in units.named_children():
            shapes = (inputs or {}).get(f"{name}.{key}", ())
            for size in {tuple(shape[-2:]) for shape in shapes} or {DEFAULT_SIZE}:
                prove_unit(f"{name}.{key}", unit, size)
        for key, unit in list(units._modules.items())[1:]:
            if not describe_unit(unit).maskable:
                raise ConversionError(f"unit {name}.{key} changes size or width: only the first of a stage may")


def make_plain(model: nn.Module) -> nn.Module:
    """The inverse of `make_adaptive`, in place: plain sequences of units, the halting heads gone."""
    uninstall(model)
    for stage in adaptive_stages(model):
        for name in ("tau", "sticks"):
            stage._buffers.pop(name, None)
        stage.release()
    for hooks, ours in ((model._forward_pre_hooks, open_list), (model._forward_hooks, _collect_results)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)
    return model


def is_stage(module: nn.Module) -> bool:
    """Whether a module is a sequence of two or more residual units, run one after the other."""
    if not isinstance(module, nn.Sequential) or "forward" in module.__dict__:
        return False
    return type(module).forward is nn.Sequential.forward and len(module) > 1 and all(is_unit(unit) for unit in module)


def _collect_results(model: nn.Module, _inputs: tuple, output: object) -> AdaptiveOutput | None:
    did, stages = close_list(model), adaptive_stages(model)
    if output is None or is_exporting():  # the forward raised, or who runs it does not know records
        return None
    config, choice = stages[0].config, chosen(stages[0])
    collected = AdaptiveOutput(output, did, config.tau, getattr(config, "kl", None))
    target = config.target
    if target is None:
        return collected
    trains = model.training and torch.is_grad_enabled() and (choice is None or choice.leads)
    share = collected.executed_share if trains else math.nan
    collected.tau = float(stages[0].tau) if math.isnan(share) else control_tau(stages[0].tau, share, target)
    return collected


def adaptive_stages(model: nn.Module) -> list[AdaptiveStage]:
    """The adaptive stages of a model, in the order of its modules."""
    if isinstance(model, AdaptiveStage):
        return [model]  # it holds no others, and every call of a network looks for them: 0.35 ms through all modules
    return [stage for child in model.children() for stage in adaptive_stages(child)]


def adaptive_configs(model: nn.Module) -> dict[str, Halting]:
    """The configuration of every adaptive stage, by its full name."""
    return {name: module.config for name, module in model.named_modules() if isinstance(module, AdaptiveStage)}


@contextlib.contextmanager
def dense_execution(model: nn.Module) -> Iterator[None]:
    """Run the stages densely under their masks: what sparse execution is compared with."""
    stages, mark = adaptive_stages(model), object()
    for stage in stages:
        stage._dense.add(mark)
    try:
        yield
    finally:
        for stage in stages:
            stage._dense.discard(mark)
