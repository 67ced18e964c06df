"""Which way a converted model runs: its own forward, or in inference the rewritten one of `accel.nn.pipeline`.

The rewritten path says what the model's own forward said when it was traced. Before every run it is checked that this
still holds: no module was replaced, hooked, switched to training or given another setting.
"""

from __future__ import annotations

import dataclasses
import threading
import types
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from accel.inputs import Inputs
from accel.kernels.dispatch import is_direct
from accel.nn.graph import modules_of
from accel.nn.perforated import PerforatedConv2d
from accel.nn.pipeline import Chains, Rewritten, build
from accel.nn.quantized import floating, is_floating
from accel.nn.quantized_linear import QuantizedLinear
from accel.nn.stage_outputs import close_list, open_list, recorded_stages
from accel.nn.stamp import CHANGED, OBSERVED, SAME, WEIGHTS, Stamp
from accel.nn.tracing import Traced, retrace, trace, traced_parts
from accel.nn.witness import Steps
from accel.profiling.distances import difference
from accel.running import ONE_BY_ONE, cloned, copied, is_globally_watched, one_by_one, record_calls, state_kept


def install(model: nn.Module, refused: Mapping[str, str] = types.MappingProxyType({})) -> None:
    """Give the parts of a converted model that trace their inference path; anew, where they had one.

    `refused`: parts, by name, that were found to run right by their own forward only, and why; see
    `accel.convert.proof`.
    """
    uninstall(model)
    for name, part, traced in list(traced_parts(model)):
        part.forward = path = InferencePath(part)
        path.refused = refused.get(name)
        path.build(traced)
        if path.rewritten is None and path.refused is None:
            del part.forward


def uninstall(model: nn.Module) -> None:
    """Leave every part of the model its own forward only."""
    for _, path in installed(model):
        del path.root.forward


def installed(model: nn.Module) -> list[tuple[str, InferencePath]]:
    """(name of the part, its inference path) of every part that has one."""
    forwards = ((name, module.__dict__.get("forward")) for name, module in model.named_modules())
    return [(name, forward) for name, forward in forwards if isinstance(forward, InferencePath)]


def refused_parts(model: nn.Module) -> dict[str, str]:
    """Why parts of the model, by name, run their own forward only though they trace; for `install`."""
    return {name: path.refused for name, path in installed(model) if path.refused is not None}


def describe_paths(model: nn.Module, example_inputs: Inputs) -> dict[str, str]:
    """What the inference path does with each convolution that it concerns, in a few words, by its full name.

    Parts of the model that it does not call as a whole, for the example, say nothing.
    """
    notes: dict[str, list[str]] = {}
    paths = installed(model)
    calls = record_calls(model, {name: path.root for name, path in paths}, example_inputs)
    for prefix, path in paths:
        if not calls[prefix]:
            continue
        start = f"{prefix}." if prefix else ""
        modules = dict(path.root.named_modules())
        if (reason := path.doubt) is not None:
            convs = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
            notes |= {start + name: [f"nothing fused: that {reason}"] for name in convs}
            continue
        for name, fused in path.chains.fused.items():
            notes.setdefault(start + name, []).append(f"{'+'.join(fused)} fused")
        for name, fused in path.chains.dense.items():
            notes.setdefault(start + name, []).append(f"{'+'.join(fused)} fused, dense")
        for name, readers in path.chains.bytes.items():
            notes.setdefault(start + name, []).append(f"bytes to {', '.join(start + reader for reader in readers)}")
        for name, readers in path.chains.compact.items():
            names = dict.fromkeys(start + reader if reader in modules else reader for reader in readers)
            notes.setdefault(start + name, []).append(f"rows to {', '.join(names)}")
            for reader in readers:
                if type(modules.get(reader)) is nn.Conv2d:
                    notes.setdefault(start + reader, []).append(f"on the rows of {start}{name}")
    return {name: "; ".join(said) for name, said in notes.items()}


class InferencePath:
    """Stands in for the `forward` of a module and chooses the path of every call.

    The rewritten path runs without gradients, in evaluation, eagerly, on plain tensors, with optional arguments at
    their defaults. Hooks and forwards that only watch carry an attribute `observes_only`; with any other hook the own
    forward runs, which calls every module. A changed model is traced again; so are copies, at their first call.

    At the first call with inputs of some shape, layout and dtype both forwards run: the own one has to take the way
    that it took when it was traced, and give what the rewritten one gives. Else it alone runs on such inputs, with a
    warning.

    Attributes:
        root: the module.
        refused: how the rewritten path was found to differ from the own forward; then the latter alone runs.
        verify: whether the forwards are compared; else the rewritten one is trusted.
    """

    follows_class = True  # the own forward is the class's: see `traced_parts`

    def __init__(self, root: nn.Module) -> None:
        self.root, self.verify = root, True
        self.refused: str | None = None
        self.plan: PathPlan | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict:
        return {"root": self.root, "refused": self.refused, "verify": self.verify}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["root"])
        self.refused, self.verify = state["refused"], state["verify"]

    @property
    def __wrapped__(self) -> Callable:
        """The own forward: its signature is this one's (`inspect` and torch.export look here)."""
        return types.MethodType(type(self.root).forward, self.root)

    @property
    def __code__(self) -> types.CodeType:
        return type(self.root).forward.__code__

    @property
    def rewritten(self) -> Rewritten | None:
        """The rewritten path as it was last; None where there is none."""
        return None if self.plan is None else self.plan.rewritten

    @property
    def doubt(self) -> str | None:
        """Why the own forward alone runs, always or on some inputs."""
        verdicts = () if self.plan is None else tuple(self.plan.verdicts.values())
        return self.refused or next((verdict for verdict in verdicts if verdict is not None), None)

    @property
    def chains(self) -> Chains:
        """What was rewritten."""
        return Chains() if self.rewritten is None else self.rewritten.chains

    def build(self, traced: Traced | None) -> None:
        """Rewrite what was traced (None: it does not trace) and remember what it relies on."""
        rewritten, steps = None, None
        if traced is not None and self.refused is None:
            rewritten = build(traced.graph, dict(self.root.named_modules(remove_duplicate=False)))
            steps = traced.steps
        self.plan = PathPlan(self._stamp(rewritten, steps), rewritten, steps, {})

    def _stamp(self, rewritten: Rewritten | None, steps: Steps | None) -> Stamp:
        copied = [layer for segment in rewritten.segments for layer in segment.layers] if rewritten else []
        return Stamp(self.root, modules_of(self.root), steps, copied)

    def refuse(self, reason: str) -> None:
        """Run the own forward only, from now on: the rewritten path differs as `reason` says."""
        self.refused = reason
        self.build(None)

    def accept(self, args: tuple[Tensor, ...]) -> None:
        """The rewritten path was found to be right on inputs of this kind."""
        self.plan.verdicts[_key(args)] = None

    def takes(self, args: tuple) -> bool:
        """Whether the rewritten path can run on these arguments."""
        found = self.rewritten
        return found is not None and len(args) == found.inputs and all(type(arg) is Tensor for arg in args)

    def __call__(self, *args: object, **kwargs: object) -> object:
        if not kwargs and _is_plain_inference(args):
            state = CHANGED if self.plan is None else self.plan.stamp.check()
            plan, state = (self.plan, state) if state <= OBSERVED else self._renewed(state)
            if state <= OBSERVED and plan.rewritten is not None and len(args) == plan.rewritten.inputs:
                direct = is_direct(*args) and state == SAME
                verdict = plan.verdicts.get(key := _key(args), _UNKNOWN)
                if verdict is _UNKNOWN and direct:
                    return self._first(plan, key, args)
                if verdict is None or (verdict is _UNKNOWN and None in plan.verdicts.values()):
                    return (plan.rewritten.fast if direct else plan.rewritten.code)(self.root, *args)
        return type(self.root).forward(self.root, *args, **kwargs)

    def _renewed(self, state: int) -> tuple[PathPlan, int]:
        """The plan for the model as it is now, and what its stamp says."""
        with self._lock:
            state = CHANGED if self.plan is None else self.plan.stamp.check()
            if state == CHANGED:
                self.build(trace(self.root) if self.refused is None else None)
            elif state == WEIGHTS:
                plan = self.plan
                verdicts = {key: None for key, verdict in plan.verdicts.items() if verdict is None}
                stamp = self._stamp(plan.rewritten, plan.steps)
                self.plan = dataclasses.replace(plan, stamp=stamp, verdicts=verdicts)
                for segment in plan.rewritten.segments if plan.rewritten else ():
                    segment.forget()
            plan = self.plan
            return plan, plan.stamp.check() if state in (CHANGED, WEIGHTS) else state

    def _first(self, plan: PathPlan, key: tuple, args: tuple[Tensor, ...]) -> object:
        """A call with inputs of a kind that has not been seen yet."""
        with self._lock:
            if key in plan.verdicts:  # another thread was faster
                return self(*args)
            verdict, outputs = self._examined(plan, args)
            if len(plan.verdicts) >= _KEYS:
                del plan.verdicts[next(iter(plan.verdicts))]
            plan.verdicts[key] = verdict
        if verdict is not None:
            shapes = ", ".join(str(list(arg.shape)) for arg in args)
            warnings.warn(
                f"{type(self.root).__name__} runs module by module, nothing fused, on inputs of {shapes}: it {verdict}",
                stacklevel=3,
            )
        return outputs

    def _examined(self, plan: PathPlan, args: tuple[Tensor, ...]) -> tuple[str | None, object]:
        """(how the rewritten path differs from the own forward on these inputs, or None; the outputs)."""
        if not self.verify:
            return None, plan.rewritten.fast(self.root, *args)
        if is_floating() or not any(map(_is_in_bytes, self.root.modules())):
            return self._compared(plan, args)
        random = torch.get_rng_state()
        with floating(), state_kept(self.root), recorded_stages():  # what stages do there is no part of this call
            reason, _ = self._compared(plan, cloned(args))
        torch.set_rng_state(random)
        run = plan.rewritten.fast if reason is None else type(self.root).forward
        return reason, run(self.root, *args)

    def _compared(self, plan: PathPlan, args: tuple[Tensor, ...]) -> tuple[str | None, object]:
        """The same, in one precision."""
        inputs, random = cloned(args), torch.get_rng_state()
        reason, expected = self.way(inputs)
        if not torch.equal(random, torch.get_rng_state()):
            torch.set_rng_state(random)
        if reason is not None:
            return reason, type(self.root).forward(self.root, *args)
        given = inputs if all(map(torch.equal, inputs, args)) else cloned(args)
        outputs = plan.rewritten.fast(self.root, *args)
        said = difference((expected, inputs), (outputs, args))
        if said is None or self._is_stale(plan, given, (expected, inputs), (outputs, args)):
            return None, outputs
        for arg, left in zip(args, inputs):  # as the own forward leaves them
            arg.copy_(left)
        return f"{said} from its own forward", expected

    def _is_stale(self, plan: PathPlan, given: tuple[Tensor, ...], own: tuple, found: tuple) -> bool:
        """Whether the rewritten path gave what it should with its weights, and would have given what the own forward
        gave, had it known of writes that torch does not count: until `accel.refresh` it goes on with the old ones."""
        for root, expected in ((self.root, found), (copied(self.root), own)):
            inputs = cloned(given)
            with state_kept(root):
                if difference(expected, (plan.rewritten.code(root, *inputs), inputs)) is not None:
                    return False
        return True

    def way(self, inputs: tuple[Tensor, ...]) -> tuple[str | None, object]:
        """(how the own forward takes another way on these inputs than when it was traced, or None; its outputs).

        It may write to the inputs; whatever else it does is lost.
        """
        open_list(None)
        try:
            with state_kept(self.root), one_by_one():
                outputs, steps = retrace(self.root, inputs)
        except Exception as error:  # so will the own forward, or else it is no forward to look at
            return f"raises {type(error).__name__} ({error}) where it is looked at", None
        finally:
            close_list(None)
        same = steps.taken == self.plan.steps.taken
        return None if same else "takes another way through its code than when it was traced", outputs


def _is_in_bytes(module: nn.Module) -> bool:
    return isinstance(module, QuantizedLinear) or (isinstance(module, PerforatedConv2d) and module.config.in_bytes)


@dataclasses.dataclass(frozen=True)
class PathPlan:
    """A rewritten forward and what it relies on; replaced as a whole, as threads share it.

    Attributes: stamp; rewritten, None where the own forward alone runs; steps, the way of the own forward when it was
    traced; verdicts, by kind of inputs: how the rewritten forward was found to differ there, or None.
    """

    stamp: Stamp
    rewritten: Rewritten | None
    steps: Steps | None
    verdicts: dict[tuple, str | None]


_UNKNOWN = object()
_KEYS = 1024  # kinds of inputs remembered: some 0.5 KB each


def _key(args: tuple[Tensor, ...]) -> tuple:
    """What the Python code of a forward can tell of its inputs but their values."""
    return tuple([(x.shape, x.stride(), x.dtype, x.device) for x in args])


def _is_plain_inference(args: tuple) -> bool:
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or ONE_BY_ONE.get()
        or is_globally_watched()
        or any(type(arg) is not Tensor for arg in args)
    )
