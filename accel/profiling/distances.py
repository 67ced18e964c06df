"""How far outputs are from those expected: of one call, and over a set of pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten

from accel.running import floating_tensors

THRESHOLD = 0.5  # where a map value counts as an edge, for the intersection over union
# Relative differences that rounding explains: 1e-6 at most in float32 on the networks of the zoo, and faults start at
# 1e-3, where a border is wrong.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_FLIPPED = 0.01  # share of integers and booleans, such as masks and classes, that rounding may turn over


def relative_norm(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected|| in double precision; infinite where it is no number, so that none passes."""
    difference, size = float((got.double() - expected.double()).norm()), float(expected.double().norm())
    if math.isnan(difference) or math.isinf(size):
        return math.inf
    return difference / size if size else (math.inf if difference else 0.0)


def relative_norms(got: object, expected: object) -> list[float]:
    """`relative_norm` of every floating tensor of a model's outputs.

    Raises:
        ValueError: the outputs hold other tensors.
    """
    ours, theirs = floating_tensors(got), floating_tensors(expected)
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (ours, theirs)]
    if shapes[0] != shapes[1] or not ours:
        raise ValueError(f"outputs of shapes {shapes[0]}, expected {shapes[1]}")
    return list(map(relative_norm, ours, theirs))


def are_logits(output: Tensor) -> bool:
    """Whether it is read as the scores [N, K] of classes: of one column the softmax would be 1, whatever it holds."""
    return output.dim() == 2 and output.shape[1] > 1


def divergence(ours: Tensor, target: Tensor, otherwise: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A loss: KL(target, ours) of the softmax of logits, `otherwise` of anything else; a differentiable scalar."""
    if are_logits(ours):
        return F.kl_div(ours.log_softmax(1), target.log_softmax(1), log_target=True, reduction="batchmean")
    return otherwise(ours, target)


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
    if are_logits(output):
        return "classes"
    return "map" if output.dim() == 4 and output.shape[1] == 1 else "other"


def difference(expected: object, found: object) -> str | None:
    """How `found` differs from `expected`, nested outputs with tensors in them, beyond rounding; or None."""
    leaves, form = tree_flatten(expected)
    others, other = tree_flatten(found)
    if form != other:
        return "returns another structure"
    return next((said for pair in zip(leaves, others) if (said := _leaf_difference(*pair)) is not None), None)


def _leaf_difference(expected: object, found: object) -> str | None:
    if dataclasses.is_dataclass(expected) and type(expected) is type(found):
        return difference(vars(expected), vars(found))
    if not isinstance(expected, Tensor):
        return None if type(expected) is type(found) and (expected is found or expected == found) else "differs"
    if not isinstance(found, Tensor) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return f"differs in shape or dtype ({_form(found)} for {_form(expected)})"
    if expected.is_complex():
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    if not expected.is_floating_point():
        share = (expected != found).float().mean().item() if expected.numel() else 0.0
        return f"differs in {100 * share:.2g} % of the integers" if share > _FLIPPED else None
    if torch.equal(expected, found):
        return None
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.equal(_odd(expected[~finite]), _odd(found[~finite])):
        return "differs in infinities or NaN"
    share = _relative(expected, found, finite)
    return f"differs by {share:.2g}" if share > _tolerance(expected) else None


def _odd(values: Tensor) -> Tensor:
    """Infinities and NaN told apart."""
    return values.isposinf() + 2 * values.isneginf() + 3 * values.isnan()


def _relative(expected: Tensor, found: Tensor, finite: Tensor) -> float:
    """Norm of the difference of the finite values over that of the expected ones."""
    wide = torch.promote_types(expected.dtype, torch.float32)
    left, right = (values.masked_fill(~finite, 0).to(wide) for values in (expected, found))
    scale = max(torch.linalg.vector_norm(values, float("inf")) for values in (left, right))
    if not scale:
        return 0.0
    left, right = left.div_(scale), right.div_(scale)  # squares of large values would overflow
    return (right.sub_(left).norm() / left.norm()).item()


def _tolerance(values: Tensor) -> float:
    if values.dtype is torch.float32 and values.is_cuda:
        return _TOLERANCE[torch.float16]  # torch computes convolutions in tf32 there, which has as many bits
    return _TOLERANCE.get(values.dtype, _TOLERANCE[torch.bfloat16])


def _form(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
