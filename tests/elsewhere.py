"""A device that this machine lacks, with numbers: tensors that say they are there and refuse the company of the CPU's.

What a graphics card would refuse, a table made on the CPU among tensors of the model, raises here as it does there.
And, without numbers, models on a card under torch's FakeTensorMode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from accel.kernels.positions import PositionSet
from accel.nn.perforated import PerforatedConv2d

DEVICE = torch.device("meta")  # one that torch knows without starting anything up
_CROSS = ("aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_")  # ops that torch lets read the CPU too


class Elsewhere(Tensor):
    """A tensor on `DEVICE`; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=DEVICE)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        return run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict) -> Tensor:
        copied = Elsewhere(self.held.clone())
        memo[id(self)] = made = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        return made


class Device(TorchDispatchMode):
    """Within the block, tensors can be made on `DEVICE`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple, kwargs: Mapping) -> Any:
    given = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    there = {id(leaf.held): leaf for leaf in given if isinstance(leaf, Elsewhere)}
    strangers = [tuple(leaf.shape) for leaf in given if not isinstance(leaf, Elsewhere) and leaf.dim()]
    if there and strangers and func._schema.name not in _CROSS:
        raise RuntimeError(f"{func}: expected all tensors on {DEVICE}, but {strangers} are on the CPU")
    wanted = kwargs.get("device")
    here = {**kwargs, **({"device": torch.device("cpu")} if wanted == DEVICE else {})}
    args, here = tree_map_only(Elsewhere, lambda leaf: leaf.held, (args, here))
    out = func(*args, **here)
    if wanted != DEVICE and (wanted is not None or not there):
        return out
    return tree_map_only(Tensor, lambda leaf: there[id(leaf)] if id(leaf) in there else Elsewhere(leaf), out)


def moved(model: nn.Module) -> nn.Module:
    """The model itself, all its tensors there."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)
    return model


def to_card(model: nn.Module) -> None:
    """Parameters and buffers on a card under FakeTensorMode; Module.to would ask for a driver."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    held[name] = nn.Parameter(there) if isinstance(tensor, nn.Parameter) else there


def fake_sets(mode: FakeTensorMode, built: list[PerforatedConv2d]) -> Callable[..., PositionSet]:
    """A layer's `_build_set` under the mode, which hides numbers; `built` collects the layers that ask for one."""
    original = PerforatedConv2d._build_set

    def build_set(self: PerforatedConv2d, height: int, width: int) -> PositionSet:
        built.append(self)
        with _disable_current_modes():
            made = original(self, height, width)
        return PositionSet(mode.from_tensor(made.positions), mode.from_tensor(made.nearest), height, width)

    return build_set
