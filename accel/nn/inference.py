"""Which way a converted model runs: its own forward, or in inference the rewritten one of `accel.nn.pipeline`.

The rewritten path says what the model's own forward said when it was traced. Before every run it is checked that this
still holds: no module was replaced, hooked, switched to training or given another setting.
"""

from __future__ import annotations

import copy
import operator
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as nn_module

from accel.inputs import Inputs
from accel.kernels.dispatch import is_direct
from accel.nn.graph import modules_of
from accel.nn.pipeline import Chains, build
from accel.nn.tracing import trace, traced_parts
from accel.nn.twin import PLAIN
from accel.running import ONE_BY_ONE as _one_by_one
from accel.running import record_calls


def install(model: nn.Module, refused: Mapping[str, str] = types.MappingProxyType({})) -> None:
    """Give the parts of a converted model that trace their inference path; anew, where they had one.

    `refused`: parts, by name, that were found to run right by their own forward only, and why; see `accel.nn.proof`.
    """
    uninstall(model)
    for name, part, graph in list(traced_parts(model)):
        part.forward = path = InferencePath(part)
        path.refused = refused.get(name)
        path.build(graph)
        if path.code is None and path.refused is None:
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
        if path.refused is not None:
            convs = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
            notes |= {start + name: [f"nothing fused: that {path.refused}"] for name in convs}
        for name, fused in path.chains.fused.items():
            notes.setdefault(start + name, []).append(f"{'+'.join(fused)} fused")
        for name, fused in path.chains.dense.items():
            notes.setdefault(start + name, []).append(f"{'+'.join(fused)} fused, dense")
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

    Attributes:
        root: the module.
        code: runs the rewritten graph on (root, *inputs); None where nothing is rewritten.
        fast: the same in fewer calls, where nothing watches them.
        chains: what was rewritten.
        refused: how the rewritten path was found to differ from the own forward; then the latter alone runs.
    """

    follows_class = True  # the own forward is the class's: see `traced_parts`

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.code: Callable | None = None
        self.fast: Callable | None = None
        self.chains = Chains()
        self.refused: str | None = None
        self._inputs = 0
        self._state: list[_ModuleState] = []

    def __getstate__(self) -> dict:
        return {"root": self.root, "refused": self.refused}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["root"])
        self.refused = state["refused"]

    @property
    def __wrapped__(self) -> Callable:
        """The own forward: its signature is this one's (`inspect` and torch.export look here)."""
        return types.MethodType(type(self.root).forward, self.root)

    @property
    def __code__(self) -> types.CodeType:
        return type(self.root).forward.__code__

    def build(self, graph: fx.Graph | None) -> None:
        """Rewrite the root's graph (None: it does not trace) and remember the state of the modules it relies on."""
        self._state = [_ModuleState.of(module) for module in dict.fromkeys(modules_of(self.root))]
        if graph is None or self.refused is not None:
            self.code, self.fast, self.chains = None, None, Chains()
            return
        self.code, self.fast, self.chains = build(graph, dict(self.root.named_modules(remove_duplicate=False)))
        self._inputs = sum(node.op == "placeholder" for node in graph.nodes)

    def refuse(self, reason: str) -> None:
        """Run the own forward only, from now on: the rewritten path differs as `reason` says."""
        self.refused = reason
        self.build(None)

    def takes(self, args: tuple) -> bool:
        """Whether the rewritten path can run on these arguments."""
        return self.code is not None and len(args) == self._inputs and all(type(arg) is Tensor for arg in args)

    def __call__(self, *args: object, **kwargs: object) -> object:
        if not kwargs and _is_plain_inference(args) and self._is_current() and len(args) == self._inputs:
            return (self.fast if is_direct(*args) else self.code)(self.root, *args)
        return type(self.root).forward(self.root, *args, **kwargs)

    def _is_current(self) -> bool:
        """Whether `code` may run now; built anew if the model was changed since."""
        states = [state.compare(self.root) for state in self._state]
        if _BUSY in states:
            return False
        if _CHANGED in states or not states:
            self.build(trace(self.root))
            return self.code is not None and _BUSY not in [state.compare(self.root) for state in self._state]
        return self.code is not None


def _is_plain_inference(args: tuple) -> bool:
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or _one_by_one.get()
        or nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or any(type(arg) is not Tensor for arg in args)
    )


_SAME, _CHANGED, _BUSY = range(3)


def _is_setting(value: object) -> bool:
    """Whether an attribute may say what a module computes: a plain value, or several, as a stride is."""
    return type(value) in PLAIN or (type(value) in (tuple, list) and all(type(item) in PLAIN for item in value))


class _ModuleState(NamedTuple):
    """What a graph takes for granted about one module."""

    module: nn.Module
    kind: type
    children: dict[str, nn.Module]
    forward: object
    read_settings: Callable[[dict], object]
    settings: object

    @staticmethod
    def of(module: nn.Module) -> _ModuleState:
        attributes = module.__dict__
        names = [name for name, value in attributes.items() if _is_setting(value) and name != "training"]
        read = operator.itemgetter("training", *names)  # one call, where a loop took half of the time of `compare`
        settings = read({**{name: copy.copy(attributes[name]) for name in names}, "training": False})
        return _ModuleState(module, type(module), dict(module._modules), attributes.get("forward"), read, settings)

    def compare(self, root: nn.Module) -> int:
        """_BUSY: in training, or within the root watched by a hook. _CHANGED: not what it was."""
        attributes = self.module.__dict__
        if attributes["training"]:
            return _BUSY
        for hooks in () if self.module is root else (attributes["_forward_hooks"], attributes["_forward_pre_hooks"]):
            if hooks and not all(getattr(hook, "observes_only", False) for hook in hooks.values()):
                return _BUSY
        if type(self.module) is not self.kind or attributes["_modules"] != self.children:
            return _CHANGED
        try:
            if self.read_settings(attributes) != self.settings:
                return _CHANGED
        except KeyError:
            return _CHANGED
        forward = attributes.get("forward")
        if forward is not self.forward and not getattr(forward, "observes_only", False):
            return _CHANGED
        return _SAME
