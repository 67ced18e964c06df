"""Whether what was derived from the parameters of some modules still holds, asked on every call and cheaply.

`FoldedWeights` asks for one convolution at about a microsecond a tensor; a stage has hundreds of tensors, so here their
values are sampled in one call of the C engine. Identity, version and address show most changes; the values show writes
through `.data` and running statistics, which raise no version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from accel.kernels.stage import fingerprints


class Freshness:
    """Watches the float tensors, the submodules and the hooks of some modules; CPU only."""

    def __init__(self, roots: Sequence[nn.Module]):
        self._roots = list(roots)
        self._read()

    def _read(self) -> None:
        """Take the modules and the places of their tensors anew."""
        self._modules = [module for root in self._roots for module in root.modules()]
        self._children = [(m._modules, dict(m._modules)) for m in self._modules if m._modules]
        stores = [store for m in self._modules for store in (m._parameters, m._buffers)]
        self._slots = [(store, name) for store in stores for name in store if name != "num_batches_tracked"]
        self._tensors: list[Tensor | None] = []
        self._state: tuple | None = None

    def unwatched(self) -> bool:
        """Whether no hook or replaced forward needs the modules to be called one by one."""
        return not any_watched(self._modules)

    def is_float32(self) -> bool:
        return all(t is None or (t.dtype is torch.float32 and t.is_cpu) for t in self._tensors)

    def holds(self) -> bool:
        """Whether nothing changed since the last call; the first call says no."""
        if any(now != before for now, before in self._children):
            self._read()
        tensors = [store[name] for store, name in self._slots]
        if len(tensors) != len(self._tensors) or any(a is not b for a, b in zip(tensors, self._tensors)):
            self._tensors, self._state = tensors, None
        present = [t for t in tensors if t is not None]
        addresses = tuple([t.data_ptr() for t in present])
        try:
            versions = tuple([t._version for t in present])
        except RuntimeError:  # tensors made in inference mode have none; to ask each first takes half as long again
            versions = tuple([0 if t.is_inference() else t._version for t in present])
        before, self._state = self._state, (addresses, versions, self._fingerprint(present, addresses))
        return before == self._state

    def _fingerprint(self, tensors: list[Tensor], addresses: tuple[int, ...]) -> int:
        if self._state is None or self._state[0] != addresses:
            self._table = torch.tensor([addresses, [_readable(t) for t in tensors]], dtype=torch.int64, device="cpu")
        return fingerprints(self._table)


def is_watched(root: nn.Module) -> bool:
    """Whether a hook, or a forward of its own, makes a module inside `root` more than what its class says."""
    return any_watched(root.modules())


def any_watched(modules: Iterable[nn.Module]) -> bool:
    """Whether a hook or a forward set on one of the modules wants to be called (see `accel.nn.inference`)."""
    if nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks:
        return True
    for module in modules:
        attributes = module.__dict__
        if attributes["_forward_hooks"] or attributes["_forward_pre_hooks"] or "forward" in attributes:
            hooks = (*attributes["_forward_hooks"].values(), *attributes["_forward_pre_hooks"].values())
            forward = attributes.get("forward")
            if not all(getattr(hook, "observes_only", False) for hook in hooks):
                return True
            if forward is not None and not (hasattr(forward, "observes_only") or hasattr(forward, "follows_class")):
                return True
    return False


def _readable(tensor: Tensor) -> int:
    """How many floats there are to read from the tensor's address on."""
    if tensor.dtype is not torch.float32 or not tensor.is_cpu:
        return 0
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // 4 - tensor.storage_offset())
