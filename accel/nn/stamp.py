"""One stamp of all that a rewritten forward was derived from; whether it still holds is asked before every call.

It notes identity and version of the weights, running statistics themselves where nothing tells of writes to them, the
settings of the modules and what the model's code reads elsewhere: attributes of its classes and objects, globals,
closures. Other writes that raise no version, through `.data` or NumPy, are told by `accel.refresh`.
"""

from __future__ import annotations

import array
import collections
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from accel.nn.folding import unseen_statistics
from accel.nn.perforated import CACHES
from accel.nn.twin import PLAIN, has_own_forward, is_leaf, is_whole
from accel.nn.witness import Steps, is_library
from accel.running import is_globally_watched

SAME, OBSERVED, WEIGHTS, CHANGED, BUSY = range(5)  # the later, the more there is to do

_STORES = ("_modules", "_parameters", "_buffers")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_UNREAD = frozenset((*vars(nn.Module()), "forward", "_compiled_call_impl", *CACHES))
_ANY_NAME = frozenset(("getattr", "vars", "__dict__", "globals", "eval", "exec"))  # code with these may read any name
_FOREIGN = ("torch", "builtins", "threading", "logging")  # libraries into whose objects nobody looks
_CONTAINERS = (list, tuple, set, frozenset, collections.deque)
_BUFFERS = (np.ndarray, array.array, memoryview, bytearray)
_version = operator.attrgetter("_version")

_Entry = tuple[Callable[[object], object], object, object]  # (reads a source, the source, what it said)


class Stamp:
    """What the modules of a model, and all that its forward reads, were when the stamp was made."""

    def __init__(
        self, root: nn.Module | None, modules: Iterable[nn.Module], steps: Steps | None, weights: Collection[nn.Module]
    ) -> None:
        """
        Args:
            root: of the modules the one whose hooks do not matter, if any.
            modules: those whose calls and settings matter.
            steps: the code that ran; None: nothing outside the modules matters.
            weights: modules from whose parameters and buffers something was made.
        """
        self._modules = [_Module.of(module, module is root) for module in dict.fromkeys(modules)]
        self._elsewhere = [] if steps is None else list(_Elsewhere(steps).entries([m.module for m in self._modules]))
        self._tensors = list({id(t): t for module in weights for t in _weights(module)}.values())
        self._parameters = [tensor for tensor in self._tensors if isinstance(tensor, nn.Parameter)]
        self._written = self._writes()
        unseen = [statistic for module in weights for statistic in unseen_statistics(module)]
        self._statistics = [(statistic, statistic.clone()) for statistic in unseen]

    def check(self) -> int:
        """SAME, or what is otherwise: see `_difference`."""
        try:
            for module, kind, attributes, size, read, before, *_ in self._modules:
                if type(module) is not kind or len(attributes) != size or read(attributes) != before:
                    return self._difference()
            for read, source, before in self._elsewhere:
                if read(source) != before:
                    return CHANGED
        except Exception:  # a name is gone, or values refuse to be compared: they are others
            return self._difference()
        return WEIGHTS if self._is_written() else SAME

    def _difference(self) -> int:
        """BUSY: in training, or a hook wants to be called. CHANGED: modules or settings. WEIGHTS: tensors. OBSERVED:
        somebody watches who changes nothing."""
        found = max(module.difference() for module in self._modules)
        if found < CHANGED and not all(_says(*entry) for entry in self._elsewhere):
            return CHANGED
        if found < WEIGHTS and self._is_written():
            return WEIGHTS
        return found

    def _is_written(self) -> bool:
        return self._writes() != self._written or not all(torch.equal(*pair) for pair in self._statistics)

    def _writes(self) -> tuple[int, list[int]]:
        """Versions only rise; `Module.half` and its like move parameters, and replace buffers."""
        return sum(map(_version, self._tensors)), list(map(Tensor.data_ptr, self._parameters))


def _weights(module: nn.Module) -> Iterator[Tensor]:
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and not tensor.is_inference():
            yield tensor


class _Module(NamedTuple):
    """What is taken for granted about one module; `read(attributes) == before` while that holds."""

    module: nn.Module
    kind: type
    attributes: dict[str, object]
    size: int
    read: Callable[[dict], tuple]
    before: tuple
    names: frozenset[str]
    forward: object
    hooks: tuple[str, ...]

    @staticmethod
    def of(module: nn.Module, is_root: bool) -> _Module:
        attributes, hooks = module.__dict__, () if is_root else _HOOKS
        names = frozenset(attributes) - {"forward"}
        alive = is_whole(module) or has_own_forward(module)  # it is called, whatever it is set to
        settings = () if alive else [name for name in attributes if name not in _UNREAD]
        modes = [name for name in ("training",) if name in attributes]  # compiled ones have that of what they wrap
        read = operator.itemgetter(*_STORES, *hooks, *settings, *modes)
        found = {name: frozen(attributes[name]) for name in names}
        before = read({**found, "training": False, **{name: {} for name in hooks}})
        forward = attributes["forward"] if has_own_forward(module) else None
        observed = getattr(attributes.get("forward"), "observes_only", False)
        size = len(attributes) - observed
        return _Module(module, type(module), attributes, size, read, before, names, forward, hooks)

    def difference(self) -> int:
        """As `Stamp._difference`, of this module."""
        attributes = self.attributes
        hooks = [hook for name in self.hooks for hook in attributes[name].values()]
        if attributes.get("training") or not all(getattr(hook, "observes_only", False) for hook in hooks):
            return BUSY
        forward = attributes["forward"] if has_own_forward(self.module) else None
        if type(self.module) is not self.kind or forward is not self.forward:
            return CHANGED
        if self.names != attributes.keys() - {"forward"}:
            return CHANGED
        modules, *stores = self.before[:3]
        first = 3 + len(self.hooks)  # of the settings
        if attributes["_modules"] != modules:
            return CHANGED
        if not _says(lambda now: self.read(now)[first:], attributes, self.before[first:]):
            return CHANGED
        for name, before in zip(_STORES[1:], stores):
            if [(k, v is None) for k, v in attributes[name].items()] != [(k, v is None) for k, v in before.items()]:
                return CHANGED
        if any(
            attributes[name][key] is not t for name, before in zip(_STORES[1:], stores) for key, t in before.items()
        ):
            return WEIGHTS
        watched = hooks or (self.hooks and getattr(attributes.get("forward"), "observes_only", False))
        return OBSERVED if watched else SAME


def is_watched(root: nn.Module) -> bool:
    """Whether a hook, or a forward of its own, makes a module inside `root` more than what its class says."""
    return is_globally_watched() or any(map(_is_watched, root.modules()))


def _is_watched(module: nn.Module) -> bool:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return has_own_forward(module) or not all(getattr(hook, "observes_only", False) for hook in hooks)


def _says(read: Callable[[object], object], source: object, before: object) -> bool:
    """Whether the source still says what it said."""
    try:
        return bool(read(source) == before)
    except Exception:  # see `Stamp.check`
        return False


def frozen(value: object) -> object:
    """The value, with copies of lists, dicts, sets and deques at any depth."""
    if type(value) in _CONTAINERS:
        return type(value)(frozen(item) for item in value)
    return {key: frozen(item) for key, item in value.items()} if isinstance(value, dict) else value


class _Elsewhere:
    """What code that ran reads besides settings of modules: classes, objects, globals, closures."""

    def __init__(self, steps: Steps) -> None:
        self._codes: dict[CodeType, list[Mapping]] = {}
        for (code, _), names in steps.ran.items():
            self._codes.setdefault(code, []).append(names)
        self._names = {name for code in self._codes for name in code.co_names}
        self._any = not self._names.isdisjoint(_ANY_NAME)
        self._seen: dict[int, object] = {}

    def entries(self, modules: list[nn.Module]) -> Iterator[_Entry]:
        """What the forwards of `modules` read."""
        own = [module for module in modules if not is_leaf(module)]
        for kind in dict.fromkeys(kind for module in own for kind in type(module).__mro__):
            yield from self._inside(kind)
        for module in own:
            for name, value in module.__dict__.items():
                if name not in _UNREAD:
                    yield from self._inside(value)
        for code, spaces in self._codes.items():
            for space in spaces:
                yield from self._entry(space, [name for name in code.co_names if name in space])

    def _entry(self, source: Mapping, names: list[str]) -> Iterator[_Entry]:
        """Some items of a mapping, and what lies inside them."""
        if not names:
            return
        read = operator.itemgetter(*names, names[0])  # two at least: tuples look at identity before equality
        yield read, source, frozen(read(source))
        for name in names:
            yield from self._inside(source[name])

    def _inside(self, value: object) -> Iterator[_Entry]:
        """What may be changed within a value while that stays the same."""
        if isinstance(value, (*PLAIN, nn.Module)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            if not value.is_inference():
                yield _version, value, value._version
        elif isinstance(value, _CONTAINERS):
            for item in value:
                yield from self._inside(item)
        elif isinstance(value, dict):
            for item in value.values():
                yield from self._inside(item)
        elif isinstance(value, MethodType):
            yield from self._inside(value.__func__)
            yield from self._inside(value.__self__)
        elif isinstance(value, FunctionType):
            if value.__code__ in self._codes:
                yield from self._function(value)
        elif isinstance(value, _BUFFERS):
            yield _content, value, _content(value)
        else:
            yield from self._object(value)

    def _function(self, function: FunctionType) -> Iterator[_Entry]:
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # nothing in it yet
                continue
            yield operator.attrgetter("cell_contents", "cell_contents"), cell, frozen((content, content))
            yield from self._inside(content)
        yield (
            operator.attrgetter("__defaults__", "__kwdefaults__"),
            function,
            (frozen(function.__defaults__), frozen(function.__kwdefaults__)),
        )

    def _object(self, value: object) -> Iterator[_Entry]:
        """Of a class, a module of Python or any other object: those attributes whose names the code speaks of."""
        if isinstance(value, ModuleType):
            foreign = is_library(getattr(value, "__file__", None) or "")
        else:
            home = getattr(value if isinstance(value, type) else type(value), "__module__", None)
            foreign = str(home).partition(".")[0] in _FOREIGN
        if foreign:
            return
        attributes = getattr(value, "__dict__", {})
        spoken = self._any and not isinstance(value, (type, ModuleType))
        yield from self._entry(
            attributes, [name for name in attributes if spoken or name in self._names or name == "forward"]
        )
        slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
        if slots:
            yield operator.attrgetter(*slots, slots[0]), value, frozen(operator.attrgetter(*slots, slots[0])(value))


def _content(buffer: np.ndarray | array.array | memoryview | bytearray) -> bytes:
    return bytes(buffer) if isinstance(buffer, bytearray) else buffer.tobytes()


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))
