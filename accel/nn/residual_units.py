"""What a residual unit is made of: the description by which ACT and SACT run it densely or at active positions only.

A unit computes `activation(shortcut(x) + branch(x))`. `describe_unit` proposes a description for units laid out as
torchvision's and the CIFAR ResNets' are; `register_unit` teaches it another class. What a description says is proved
before a unit is run by it: see `accel.nn.unit_proof`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from accel.errors import ConversionError
from accel.kernels.reference.activation import activate
from accel.nn.geometry import geometry_of


@dataclasses.dataclass(frozen=True)
class BranchStep:
    """One convolution of a residual branch, the batch norm behind it, and then the activation (see `masked_conv2d`).

    What the convolution computes with is its weight, bias and geometry, padded with zeros; the norm, its running
    statistics. Calling a step, x [N, C, H, W] -> [N, K, H_out, W_out], is how every execution must come out.
    """

    conv: nn.Conv2d
    bn: nn.BatchNorm2d | None
    activation: str

    def __post_init__(self) -> None:
        if not isinstance(self.conv, nn.Conv2d):
            raise ConversionError(
                f"is described by a step whose conv is a {type(self.conv).__name__}, not an nn.Conv2d"
            )

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """(top, bottom, left, right)."""
        return geometry_of(self.conv).padding

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return geometry_of(self.conv).output_size(*size)

    def __call__(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.padding
        conv, bn = self.conv, self.bn
        padded = F.pad(x, (left, right, top, bottom))
        x = F.conv2d(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        if bn is not None:
            x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        return activate(x, self.activation)


@dataclasses.dataclass(frozen=True)
class UnitDescription:
    """The branch of a unit in order, the activation after the addition, and the shortcut (None: the identity).

    The last step's activation is 'none'. Calling the description runs the unit densely, in evaluation.
    """

    steps: tuple[BranchStep, ...]
    activation: str
    shortcut: nn.Module | None

    @property
    def shortcut_step(self) -> BranchStep | None:
        """The shortcut as a step where it is a convolution and a batch norm, as torchvision's are."""
        if isinstance(self.shortcut, nn.Sequential) and [type(m) for m in self.shortcut] == _PROJECTION:
            return BranchStep(self.shortcut[0], self.shortcut[1], "none")
        return None

    def __call__(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut_step or self.shortcut
        residual, branch = x if shortcut is None else shortcut(x), x
        for step in self.steps:
            branch = step(branch)
        if residual.shape != branch.shape:
            raise ValueError(f"the branch gives {tuple(branch.shape)}, the shortcut {tuple(residual.shape)}")
        return activate(residual + branch, self.activation)

    @property
    def maskable(self) -> bool:
        """Whether inactive positions can keep their value: the unit changes neither size nor width."""
        return self.shortcut is None and all(geometry_of(step.conv).stride == (1, 1) for step in self.steps)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the output for an input of `size`."""
        for step in self.steps:
            size = step.output_size(size)
        return size

    def shortcut_macs(self, size: tuple[int, int]) -> int:
        """MACs per image of the shortcut, for an output of `size`."""
        convs = [] if self.shortcut is None else [m for m in self.shortcut.modules() if isinstance(m, nn.Conv2d)]
        return sum(conv.weight.numel() for conv in convs) * size[0] * size[1]

    def dense_macs(self, size: tuple[int, int]) -> int:
        """MACs per image of the whole unit, for an input of `size`."""
        total = self.shortcut_macs(self.output_size(size))
        for step in self.steps:
            size = step.output_size(size)
            total += step.conv.weight.numel() * size[0] * size[1]
        return total


_PROJECTION = [nn.Conv2d, nn.BatchNorm2d]
_DESCRIBERS: dict[type, Callable[[nn.Module], UnitDescription]] = {}


def register_unit(cls: type[nn.Module], describe: Callable[[nn.Module], UnitDescription]) -> None:
    """Teach ACT and SACT a residual unit: `describe(unit)` returns its `UnitDescription`."""
    _DESCRIBERS[cls] = describe


def is_unit(module: nn.Module) -> bool:
    return _describer(module) is not None


def describe_unit(unit: nn.Module) -> UnitDescription:
    """The description of a residual unit; ConversionError for a class that is not registered."""
    describe = _describer(unit)
    if describe is None:
        raise ConversionError(
            f"{type(unit).__name__} is not a known residual unit (known: torchvision's BasicBlock and Bottleneck, the "
            "unit of the CIFAR ResNets): describe it with accel.nn.residual_units.register_unit"
        )
    return describe(unit)


def _describer(module: nn.Module) -> Callable[[nn.Module], UnitDescription] | None:
    for cls in type(module).__mro__:
        if cls in _DESCRIBERS:
            return _DESCRIBERS[cls]
    return _describe_numbered if _is_numbered(module) else None


def _is_numbered(module: nn.Module) -> bool:
    """The layout of torchvision's and the CIFAR ResNets' units: conv1, bn1, conv2, bn2, ... and a shortcut."""
    names = dict(module.named_children())
    shortcut = "downsample" in names or "shortcut" in names or hasattr(module, "downsample")
    convs = all(isinstance(names[name], nn.Conv2d) for name in ("conv1", "conv2", "conv3") if name in names)
    return {"conv1", "bn1", "conv2", "bn2"} <= names.keys() and shortcut and convs


def _describe_numbered(unit: nn.Module) -> UnitDescription:
    count = sum(f"conv{k}" in unit._modules for k in range(1, 4))
    steps = tuple(
        BranchStep(getattr(unit, f"conv{k}"), getattr(unit, f"bn{k}"), "relu" if k < count else "none")
        for k in range(1, count + 1)
    )
    shortcut = getattr(unit, "downsample", None) or getattr(unit, "shortcut", None)  # an empty Sequential is falsy
    return UnitDescription(steps, "relu", None if isinstance(shortcut, nn.Identity) else shortcut or None)
