"""The data flow of a model in evaluation, by symbolic execution of its forward, for the parts of it that trace.

A graph is trusted only where it says all that the forward does: one that sets attributes, keeps constants, draws random
numbers or reads non-tensor arguments is refused. What the forward did while it was traced is undone, and no other
thread can meet anything of it: see `accel.nn.twin`.
"""

from __future__ import annotations

import gc
import inspect
import math
import operator
import random
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from accel.nn.twin import PLAIN, Twin, has_own_forward, is_leaf
from accel.nn.witness import Steps, unwatched

_IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "matmul", "and", "or", "xor", "lshift", "rshift")
IN_PLACE_OPERATORS = {f"__i{name}__": getattr(operator, f"__i{name}__") for name in _IN_PLACE}
_DRAWS = 3  # tries to trace without Python's random numbers: other threads may draw at the same time


class _Proxy(fx.Proxy):
    """Records `a += b` as what it is: fx's own proxy turns it into `a + b`, which loses the write to a's aliases."""


def _recorder(target: Callable) -> Callable:
    def record(self: _Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return record


for _name, _operator in IN_PLACE_OPERATORS.items():
    setattr(_Proxy, _name, _recorder(_operator))


def _rounder(target: Callable) -> Callable:
    return lambda self: self.tracer.create_proxy("call_function", target, (self,), {})


for _rounding in (math.ceil, math.floor, math.trunc):  # of sizes
    setattr(_Proxy, f"__{_rounding.__name__}__", _rounder(_rounding))


class _Tracer(fx.Tracer):
    """Fx's tracer, but that it patches no class: it traces a twin of the root, which answers by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.proxies: list[weakref.ref] = []
        self.steps = Steps()
        self._read: dict[str, fx.Proxy] = {}

    def trace_module(self, root: nn.Module, defaults: dict[str, object]) -> Traced | None:
        """None where the forward changes attributes. The tracer is of no more use afterwards."""
        twin = Twin(root, self.answer, self.read)
        try:
            self._trace_twin(twin, defaults)
            return None if twin.changed() else Traced(self.graph, self.steps)
        finally:
            twin.close()
            self._read.clear()

    def _trace_twin(self, twin: Twin, defaults: dict[str, object]) -> None:
        self.root, self.graph = twin.root, fx.Graph(tracer_cls=_Tracer)
        self.submodule_paths = {module: name for name, module in twin.root.named_modules()}
        self.tensor_attrs = {
            value: f"{name}.{key}" if name else key
            for name, module in twin.root.named_modules()
            for key, value in module.__dict__.items()
            if isinstance(value, Tensor)
        }
        names = list(inspect.signature(type(twin.root).forward).parameters)[1:]
        inputs = {name: self.create_proxy("placeholder", name, (), {}) for name in names if name not in defaults}
        with self.steps.watched():
            outputs = type(twin.root).forward(twin.root, **inputs, **defaults)
        self.create_node("output", "output", (self.create_arg(outputs),), {})

    def answer(self, name: str, module: nn.Module, run: Callable, /, *args: object, **kwargs: object) -> object:
        """A call of a submodule: of one that is called as it is, a node; else what its forward gives."""
        if not is_leaf(module):
            return run(*args, **kwargs)
        with unwatched():
            return self.create_proxy("call_module", name, args, kwargs)

    def read(self, name: str, value: Tensor) -> fx.Proxy:
        """Parameters and buffers are read when the graph runs, not when it is traced."""
        if name not in self._read:
            self._read[name] = self.create_proxy("get_attr", name, (), {})
        return self._read[name]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        proxy = _Proxy(node, self)
        self.proxies.append(weakref.ref(proxy))
        return proxy

    def create_arg(self, a: object) -> object:
        if type(a) is not OrderedDict:
            return super().create_arg(a)
        items = [(name, self.create_arg(value)) for name, value in a.items()]  # fx would write a plain dict
        return self.create_node("call_function", OrderedDict, (items,), {})


class Traced(NamedTuple):
    """The graph of a module's forward, and the way through its code that gave it."""

    graph: fx.Graph
    steps: Steps


def trace(root: nn.Module) -> Traced | None:
    """`root`'s forward in evaluation, its optional arguments at their defaults; None where there is no graph of it.

    `root` is left as it was found, and so is everything else.
    """
    for _ in range(_DRAWS):
        before, state, numpy_state = _python_states(), torch.get_rng_state(), np.random.get_state()
        with _TorchDraws() as torch_draws:
            traced = _trace(root)
        if torch_draws.seen:
            torch.set_rng_state(state)
        drew = before != _python_states()
        if drew:
            random.setstate(before[0]), np.random.set_state(numpy_state)
        if traced is None or torch_draws.seen:
            return None
        if not drew:
            return traced
    return None


class _TorchDraws(TorchDispatchMode):
    """Whether this thread draws random numbers by torch within the block; the others may."""

    seen = False

    def __torch_dispatch__(self, func: OpOverload, _types: object, args: tuple = (), kwargs: Mapping | None = None):
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _trace(root: nn.Module) -> Traced | None:
    defaults = optional_arguments(root)
    if defaults is None:
        return None
    tracer = _Tracer()
    try:
        traced = tracer.trace_module(root, defaults)
    except Exception:  # tracing runs a stranger's forward on proxies: whatever it raises, it does not trace
        traced = None
    proxies = tracer.proxies
    del tracer  # with it go all proxies, but those that the forward has put somewhere
    return None if _left_behind(proxies) else traced


def _left_behind(proxies: list[weakref.ref]) -> bool:
    """Whether a forward has put proxies somewhere outside; they are taken out of lists, sets and dicts again."""
    if all(proxy() is None for proxy in proxies):
        return False
    gc.collect()
    left = [proxy() for proxy in proxies if proxy() is not None]
    for proxy in left:
        for holder in gc.get_referrers(proxy):
            if holder is not left and type(holder) is list:
                holder[:] = [value for value in holder if value is not proxy]
            elif type(holder) is set:
                holder.discard(proxy)
            elif isinstance(holder, dict) and holder is not vars(proxy):
                for key in [key for key, value in holder.items() if value is proxy]:
                    del holder[key]
    return bool(left)


def _python_states() -> tuple:
    """The states of Python's and NumPy's generators, which all threads share."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tobytes(), *rest)


def traced_parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, Traced]]:
    """(name, module, what was traced) of the largest parts of the model that trace and hold a convolution."""
    if isinstance(model, nn.Conv2d) or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return
    traced = None if has_own_forward(model) else trace(model)
    if traced is not None:
        yield prefix, model, traced
        return
    for name, child in model.named_children():
        yield from traced_parts(child, f"{prefix}.{name}" if prefix else name)


def optional_arguments(root: nn.Module) -> dict[str, object] | None:
    """Defaults of the forward's optional arguments; None where the forward takes what cannot be listed."""
    defaults = {}
    for name, parameter in list(inspect.signature(type(root).forward).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            return None
        if parameter.default is not parameter.empty:
            if not isinstance(parameter.default, PLAIN):
                return None
            defaults[name] = parameter.default
    return defaults


def retrace(root: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[object, Steps]:
    """The outputs of `root`'s forward for real inputs, in evaluation, and the way that it took.

    Modules that a graph calls as they are run as their class says. What the forward does to attributes is lost.
    """
    steps = Steps()

    def answer(_name: str, module: nn.Module, run: Callable, /, *args: object, **kwargs: object) -> object:
        if not is_leaf(module):
            return run(*args, **kwargs)
        with unwatched():
            return (module if has_own_forward(module) else type(module).forward.__get__(module))(*args, **kwargs)

    twin = Twin(root, answer)
    try:
        with steps.watched():
            return type(twin.root).forward(twin.root, *inputs), steps
    finally:
        twin.close()
