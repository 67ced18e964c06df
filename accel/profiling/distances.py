"""How far outputs are from those expected: of one call, and over a set of pictures."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from accel.errors import ConversionError

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD = 0.5  # where a map value counts as an edge, for the intersection over union


def relative_norm(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected|| in double precision; infinite where either holds a NaN, so that none passes."""
    error = float((got.double() - expected.double()).norm() / expected.double().norm())
    return math.inf if math.isnan(error) else error


@dataclasses.dataclass
class Fidelity:
    """Running totals over the batches given to `add`.

    Two kinds of output are known by their shape: maps of probabilities [N, 1, H, W], compared by their mean absolute
    difference and by the intersection over union of what lies above 0.5 (over all pictures together), and classes
    [N, K], compared by top-1 agreement and the mean absolute difference of the softmax. Anything else is compared by
    the mean absolute difference alone.
    """

    pictures: int = 0
    values: int = 0
    difference: float = 0.0
    agreeing: int = 0
    intersection: int = 0
    union: int = 0
    kind: str = "other"

    def add(self, dense: Tensor, ours: Tensor) -> None:
        self.kind = output_kind(dense)
        if self.kind == "classes":
            self.agreeing += int((dense.argmax(1) == ours.argmax(1)).sum())
            dense, ours = dense.softmax(1), ours.softmax(1)
        elif self.kind == "map":
            above, ours_above = dense >= THRESHOLD, ours >= THRESHOLD
            self.intersection += int((above & ours_above).sum())
            self.union += int((above | ours_above).sum())
        self.difference += float((dense.double() - ours.double()).abs().sum())
        self.values += dense.numel()
        self.pictures += len(dense)

    def summary(self) -> dict[str, float | int]:
        found: dict[str, float | int] = {
            "pictures": self.pictures,
            "mean_abs_difference": self.difference / self.values,
        }
        if self.kind == "map":
            found["iou_at_0.5"] = self.intersection / self.union if self.union else 1.0
        elif self.kind == "classes":
            found["top1_agreement"] = self.agreeing / self.pictures
        return found


def output_kind(output: Tensor) -> str:
    if output.dim() == 2:
        return "classes"
    return "map" if output.dim() == 4 and output.shape[1] == 1 else "other"


def tensors_of(output: object) -> list[Tensor]:
    """Every tensor of a network's output: itself, or those of a tuple, list or dict, in order."""
    import torch

    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def first_tensor(output: object) -> Tensor:
    """The first tensor of a network's output.

    Raises:
        ConversionError: there is none.
    """
    found = tensors_of(output)
    if not found:
        raise ConversionError(
            f"the model returned {type(output).__name__}, expected a tensor or a tuple or dict of them"
        )
    return found[0]
