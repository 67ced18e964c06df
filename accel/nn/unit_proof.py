"""The proof that a residual unit computes what its description says, before ACT or SACT run it by that description.

A description is a proposal: units of one layout of names may activate before the convolutions, scale, gate or blur. So
a copy of the unit runs by its own forward and by the description, on drawn inputs. Every parameter and buffer of the
copy is drawn too: a last norm that starts at zero, or a scale that starts at one, would hide what it multiplies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from accel.errors import ConversionError
from accel.nn.quantized import floating
from accel.nn.residual_units import UnitDescription, describe_unit
from accel.nn.stamp import BUSY, CHANGED, Stamp
from accel.running import copied

# Relative difference of a right description: 1e-15 where all is double precision, 1e-6 where a unit computes a part in
# single. A leaky slope of 0.001 for a ReLU comes to 1e-3.
TOLERANCE = 1e-5
SCALES = (1.0, 30.0)  # of the drawn images: at the second one activations that clip at 6 show
MOST_PIXELS = 18  # of a drawn map's side: windows reach no farther, and ResNet-50 at 224x224 is proved in a second
DEFAULT_SIZE = (10, 7)  # where the size of the unit's input is not known


class ProvedUnit:
    """A residual unit and the description by which it runs, for as long as it is what was proved.

    Attributes:
        unit: the module.
        description: the one that held last.
    """

    def __init__(self, unit: nn.Module, name: str) -> None:
        """`prove_unit` has been called."""
        self.unit, self._name, self._holds = unit, name, True
        self.description = describe_unit(unit)
        self._stamp = self._stamped()

    def holds(self) -> bool:
        """Whether the unit is what the description says. Proved again after a module or a setting was replaced; not so
        while a part of it is in training or hooked."""
        state = self._stamp.check()
        if state == CHANGED:
            try:
                prove_unit(self._name, self.unit)
                self.description, self._holds = describe_unit(self.unit), True
            except ConversionError:
                self._holds = False
            self._stamp = self._stamped()
        return self._holds and state != BUSY

    def _stamped(self) -> Stamp:
        return Stamp(None, self.unit.modules(), None, ())


def prove_unit(name: str, unit: nn.Module, size: tuple[int, int] = DEFAULT_SIZE) -> None:
    """Compare a unit in evaluation with its description; the unit is left as it is.

    Args:
        name: of the unit, for the message.
        size: (H, W) of its input in the network; larger maps are drawn smaller, with the remainders of their sides.

    Raises:
        ConversionError: they differ, or one of them does not run.
    """
    try:
        twin = _drawn_copy(unit)
        description = describe_unit(twin)
        x = _draw_input(description, size)
        with torch.no_grad(), floating():
            difference = _difference(twin(x), _run(description, x))
    except ConversionError as error:
        fault = str(error)
    except Exception as error:  # a stranger's forward may raise anything
        fault = f"cannot be compared with its description ({error})"
    else:
        if difference <= TOLERANCE:
            return
        fault = f"computes something else than its description, relative difference {difference:.2g}"
    kind = type(unit).__name__
    raise ConversionError(
        f"unit {name} ({kind}) {fault}: leave its stage out by a rule or, if a UnitDescription can say what it does, "
        "give it one by accel.nn.residual_units.register_unit"
    )


def _run(description: UnitDescription, x: Tensor) -> Tensor:
    for step in description.steps:
        if step.bn is not None and getattr(step.bn, "running_var", None) is None:
            raise ConversionError(f"normalises by {type(step.bn).__name__}, which has no running statistics to fold in")
    return description(x)


def _drawn_copy(unit: nn.Module) -> nn.Module:
    """The unit in evaluation and double precision on the CPU, all its numbers drawn."""
    twin = copied(unit).to("cpu", torch.float64).eval()
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if not tensor.is_floating_point():
                continue
            if tensor.dim() > 1:
                tensor.normal_(0, math.sqrt(len(tensor) / max(tensor.numel(), 1)), generator=generator)
            else:
                tensor.uniform_(0.5, 1.5, generator=generator)  # variances among them
        for module in twin.modules():
            if isinstance(getattr(module, "running_mean", None), Tensor):
                module.running_mean.sub_(1)  # around zero, so that activations pass about half
    return twin


def _draw_input(description: UnitDescription, size: tuple[int, int]) -> Tensor:
    """[2, C, H, W]; a side keeps its remainder by 4, on which strides and their borders depend."""
    height, width = (side if side <= MOST_PIXELS else MOST_PIXELS - (MOST_PIXELS - side) % 4 for side in size)
    shape = (len(SCALES), description.steps[0].conv.in_channels, height, width)
    generator = torch.Generator("cpu").manual_seed(1)
    scales = torch.tensor(SCALES, dtype=torch.float64, device="cpu").view(-1, 1, 1, 1)
    return scales * torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _difference(own: object, described: Tensor) -> float:
    """The largest relative difference of an image."""
    if not isinstance(own, Tensor) or own.shape != described.shape:
        shape = tuple(getattr(own, "shape", ()))
        raise ConversionError(f"returns {type(own).__name__} {shape}, its description gives {tuple(described.shape)}")
    own, described = own.double().flatten(1), described.double().flatten(1)
    return float(((described - own).norm(dim=1) / own.norm(dim=1)).max())
