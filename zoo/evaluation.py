"""What a classifier reaches on labelled pictures, and the MACs that it executes for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from accel.convert import revert_model
from accel.errors import DataError
from accel.nn.adaptive import AdaptiveOutput
from accel.profiling.flops import count_macs
from accel.running import first_tensor
from accel.zoo.datasets import LabelledPictures

_BATCH = 250  # pictures at a time: fits the caches no worse than 64 and divides 5000 and 10000

Prepare = Callable[[Tensor], Tensor]  # uint8 RGB pictures [N, 3, H, W] to a model's float32 input


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: LabelledPictures, prepare: Prepare) -> float:
    """Share of `pictures` that the model, in eval mode, puts into their class."""
    right = 0
    for x, labels in prepared(model, pictures, prepare):
        right += int((logits_of(model(x)).argmax(1).cpu() == labels).sum())
    return right / len(pictures)


def logits_of(out: object) -> Tensor:
    """What a plain or an adaptive classifier says, float32 [N, classes]: it is narrower under autocast.

    Of several outputs it is the first.

    Raises:
        DataError: the model is no classifier.
    """
    found = out.logits if isinstance(out, AdaptiveOutput) else first_tensor(out)
    if found.dim() != 2:
        raise DataError(
            f"the model gives {list(found.shape)}, expected the scores [N, classes] of a classifier: labels need one"
        )
    return found.float()


def macs_per_image(model: nn.Module, pictures: LabelledPictures, prepare: Prepare) -> Tensor:
    """Executed MACs of the model, in eval mode, on each of `pictures`: int64 [N]."""
    return torch.cat([count_macs(model, x, per_image=True) for x, _ in prepared(model, pictures, prepare)])


def dense_macs(model: nn.Module, pictures: LabelledPictures, prepare: Prepare) -> int:
    """MACs per picture of the plain network that an adaptive model was made from."""
    plain = revert_model(model)
    return count_macs(plain, prepare(pictures.pictures[:1]).to(next(plain.parameters()).device))


def prepared(
    model: nn.Module, pictures: LabelledPictures, prepare: Prepare, batch: int = _BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """(input of the model on its device, in channels_last; labels) of the pictures, in batches."""
    device = next(model.parameters()).device
    for x, labels in zip(pictures.pictures.split(batch), pictures.labels.split(batch)):
        yield prepare(x).contiguous(memory_format=torch.channels_last).to(device), labels


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What a classifier did with each of N pictures.

    Attributes: right, bool [N]; macs, int64 [N], executed; dense_macs, of the plain network; units, float64
    [stages, N], the mean units of every adaptive stage, None where there are none.
    """

    right: Tensor
    macs: Tensor
    dense_macs: int
    units: Tensor | None

    def summary(self) -> dict[str, Any]:
        """Accuracy, executed MACs per picture, and the mean units of every adaptive stage: the columns of a table."""
        macs = self.macs.double()
        low, middle, high = (round(float(q)) for q in torch.quantile(macs, torch.tensor([0.05, 0.5, 0.95]).double()))
        stages = [] if self.units is None else self.units.mean(1).tolist()
        return {
            "accuracy": round(float(self.right.double().mean()), 4),
            "dense_macs": self.dense_macs,
            "macs": round(float(macs.mean())),
            "macs_share": round(float(macs.mean()) / self.dense_macs, 4),
            "macs_deviation": round(float(macs.std(unbiased=False))),
            "macs_5%": low,
            "macs_50%": middle,
            "macs_95%": high,
            **{f"units_{k + 1}": round(mean, 3) for k, mean in enumerate(stages)},
        }


def verdicts(
    model: nn.Module,
    pictures: LabelledPictures,
    prepare: Prepare,
    batch: int,
    *,
    dense: nn.Module | None = None,
    watch: Callable[[Iterable], Iterable] = iter,
) -> Verdicts:
    """Put each picture to the model.

    Args:
        dense: what a perforated or adaptive `model` was made from; None for a plain one.
        watch: put around the batches, to show how far it is.

    Raises:
        DataError: labels for which the model has no output.
    """
    batches = list(prepared(model, pictures, prepare, batch))
    per_picture = count_macs(model if dense is None else dense, batches[0][0][:1])
    right, executed, units = [], [], []
    for x, labels in watch(batches):
        with torch.inference_mode():
            out = model(x)
        if isinstance(out, AdaptiveOutput):
            saved = sum(stage.dense_macs - stage.executed_macs for stage in out.stages)
            executed.append(per_picture - saved)
            units.append(torch.stack([stage.mean_units() for stage in out.stages]))
        elif dense is not None:
            executed.append(count_macs(model, x, per_image=True))
        else:
            executed.append(torch.full((len(x),), per_picture, dtype=torch.int64))
        scores = logits_of(out)
        if scores.shape[1] < len(pictures.classes):
            raise DataError(
                f"the model tells {scores.shape[1]} classes apart, the data set has {len(pictures.classes)}: "
                "give the data set it was trained on"
            )
        right.append(scores.argmax(1).cpu() == labels)
    found = torch.cat(units, dim=1).cpu() if units else None
    return Verdicts(torch.cat(right), torch.cat(executed).cpu(), per_picture, found)
