"""What was exported, and its proof: its outputs beside the model's own."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from accel.convert import counted_layers
from accel.errors import ConversionError
from accel.inputs import Batch
from accel.nn.adaptive import adaptive_stages
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized_linear import QuantizedLinear
from accel.nn.stage_outputs import answer_of
from accel.profiling.distances import difference, relative_norms
from accel.running import output_tensors, run_on, undisturbed

# Relative, in eight bits or bf16: where a number ends half-way between two of these rounding decides, and layers add to
# that.
_ROUNDED_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        difference: between the outputs of the file and the model's own, ||a - b|| / ||b||, the largest of them; None
            where it was not looked at.
        sparse: perforated layers that compute their positions alone, as they do here.
        dense: layers and stages that compute every position there, whatever their masks say, by name: why.
    """

    path: pathlib.Path
    difference: float | None
    sparse: tuple[str, ...]
    dense: dict[str, str]


def several(batch: Batch) -> Batch:
    """The batch with at least two pictures: torch takes a length of one for a constant."""
    return batch if len(batch) > 1 else batch.map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x)


def proved(model: nn.Module, batch: Batch, found: Sequence[Tensor]) -> float:
    """The difference of what was exported, whose outputs on the batch are `found`, from the model.

    Raises:
        ConversionError: it is more than rounding.
    """
    with undisturbed(model):
        expected = run_on(model, batch.inputs)
    wanted = [tensor.cpu() for tensor in output_tensors(answer_of(expected))]  # no other runtime knows records
    largest = max(relative_norms(found, wanted), default=0.0)
    if any(isinstance(m, QuantizedLinear) or _rounds(m) for m in model.modules()):
        said = None if largest <= _ROUNDED_TOLERANCE else f"differs by {largest:.2g}"
    else:
        said = difference(wanted, found)
    if said is not None:
        raise ConversionError(f"the exported file {said} from the model: it was not kept")
    return largest


def _rounds(layer: nn.Module) -> bool:
    return isinstance(layer, PerforatedConv2d) and layer.config.rounds


def said_of(model: nn.Module) -> tuple[tuple[str, ...], dict[str, str]]:
    """(layers that keep their saving, those that do not and why)."""
    layers = {n: m for n, m in counted_layers(model).items() if isinstance(m, PerforatedConv2d)}
    dense = {name: "its mask is chosen from the input" for name, m in layers.items() if not m.config.masking.is_static}
    dense |= {stage.name: "its units run everywhere, under their masks" for stage in adaptive_stages(model)}
    sparse = tuple(n for n, m in layers.items() if n not in dense and m.config.keep < 1)
    return sparse, dense
