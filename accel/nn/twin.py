"""A stand-in for a model to look at its forward with: it shares parameters and buffers, and nothing else.

What the forward does to the stand-in, such as a list it appends to, happens to copies; whether it did anything is asked
afterwards. Calls of submodules can be answered by somebody else, without a patch that other threads would run into.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

_INSIDE = frozenset(vars(nn.Module()))  # what every module has: parameters, submodules, hooks, the mode
_CALLED = frozenset(("forward", "_compiled_call_impl"))  # what a call of a module runs, where it is not its class's
_STORES = ("_parameters", "_buffers", "_modules")
PLAIN = (type(None), bool, int, float, complex, str, bytes)


def is_whole(module: nn.Module) -> bool:
    """Whether a module sees to its own inside, so that a graph says no more of it than that it is called."""
    return getattr(module, "is_whole", False)


def has_own_forward(module: nn.Module) -> bool:
    """Whether a forward was set on the module itself that does something else than its class's."""
    own = module.__dict__.get("forward")
    return own is not None and not (getattr(own, "observes_only", False) or getattr(own, "follows_class", False))


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is called as it is: torch's own, convolutions, and what has an inside of its own."""
    if isinstance(module, nn.Conv2d) or is_whole(module) or has_own_forward(module):
        return True
    return type(module).__module__.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(module, nn.Sequential)


class Twin:
    """The stand-in of a module and of all inside.

    Attributes:
        root: stands in for the module itself, in evaluation and without hooks.
        modules: the stand-in of every module.
    """

    def __init__(
        self, root: nn.Module, call: Callable[..., object], read: Callable[[str, Tensor], object] | None = None
    ) -> None:
        """
        Args:
            call: answers the calls of submodules: (name, module, what runs its stand-in, *args, **kwargs) -> outputs.
            read: what the forward finds where it reads a parameter or buffer, by its name and value; None: the value.

        Raises:
            Exception: of any kind, where an attribute cannot be copied.
        """
        named = dict(root.named_modules())
        self.modules = {module: type(module).__new__(type(module)) for module in named.values()}
        self.root = self.modules[root]
        self._memo: dict[int, object] = {id(module): twin for module, twin in self.modules.items()}
        for tensor in (*root.parameters(), *root.buffers()):
            self._memo[id(tensor)] = tensor
        self._stores = {}
        for name, module in named.items():
            start = f"{name}." if name else ""
            twin, own = self.modules[module], module.__dict__
            attributes = _own_attributes(module)
            if not is_leaf(module):
                attributes = copy.deepcopy(attributes, self._memo)
            if has_own_forward(module):
                attributes["forward"] = own["forward"]
            inside = {key: type(value)() for key, value in own.items() if key in _INSIDE and isinstance(value, dict)}
            inside["_modules"] = {key: self._memo.get(id(child)) for key, child in module._modules.items()}
            for store in ("_parameters", "_buffers"):
                inside[store] = dict(own[store].items()) if read is None else _Reads(own[store], start, read)
            rest = {key: copy.copy(value) for key, value in own.items() if key in _INSIDE}
            twin.__dict__.update({**rest, **inside, **attributes, "training": False})
            if module is not root:
                answer = functools.partial(call, name, module, functools.partial(nn.Module._call_impl, twin))
                twin.__dict__["_compiled_call_impl"] = answer
            self._stores[module] = {store: dict(twin.__dict__[store]) for store in _STORES}

    def close(self) -> None:
        """Let go of what answers the calls: nothing is held in circles any more, and goes with the last reference."""
        for twin in self.modules.values():
            twin.__dict__.pop("_compiled_call_impl", None)

    def changed(self) -> bool:
        """Whether a forward of the stand-in changed an attribute of it, at any depth."""
        seen: dict[tuple[int, int], tuple] = {}
        return not all(self._is_same_module(module, twin, seen) for module, twin in self.modules.items())

    def _is_same_module(self, module: nn.Module, twin: nn.Module, seen: dict[tuple[int, int], tuple]) -> bool:
        if twin.training or not all(_holds(twin.__dict__[name], kept) for name, kept in self._stores[module].items()):
            return False
        before, now = _own_attributes(module), _own_attributes(twin)
        return before.keys() == now.keys() and all(self._is_same(before[name], now[name], seen) for name in before)

    def _is_same(self, before: object, now: object, seen: dict[tuple[int, int], tuple]) -> bool:
        """Whether a copied value still says what its original does."""
        if before is now or (id(before), id(now)) in seen:
            return True
        seen[id(before), id(now)] = before, now  # held: what took the place of something freed would have its id
        if type(before) is not type(now):
            return False
        if isinstance(before, nn.Module) and before in self.modules:
            return self.modules[before] is now
        if isinstance(before, Tensor):
            return before.shape == now.shape and torch.allclose(before, now, rtol=0, atol=0, equal_nan=True)
        if isinstance(before, PLAIN):
            return before == now or before != before
        if isinstance(before, (set, frozenset)):
            return before == now
        if type(before) in (list, tuple):
            return len(before) == len(now) and all(self._is_same(a, b, seen) for a, b in zip(before, now))
        if type(before) is dict:
            return self._is_same(list(before.items()), list(now.items()), seen)
        return self._is_same(_parts(before), _parts(now), seen)


def _own_attributes(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in module.__dict__.items() if name not in _INSIDE and name not in _CALLED}


def _holds(store: dict, kept: Mapping[str, object]) -> bool:
    """Whether a store of tensors or modules holds the very ones that it held."""
    return dict(store).keys() == kept.keys() and all(dict.get(store, name) is value for name, value in kept.items())


class _Reads(dict):
    """Parameters or buffers of a module, by what `read` makes of them where one of them is read."""

    def __init__(self, store: Mapping[str, Tensor | None], start: str, read: Callable[[str, Tensor], object]) -> None:
        super().__init__(store)
        self._start, self._read = start, read

    def __getitem__(self, name: str) -> object:
        value = super().__getitem__(name)
        return None if value is None else self._read(self._start + name, value)


def _parts(value: object) -> list:
    """What an object would be copied from."""
    reduced = value.__reduce_ex__(4)
    return [reduced] if isinstance(reduced, str) else [list(p) if hasattr(p, "__next__") else p for p in reduced]
