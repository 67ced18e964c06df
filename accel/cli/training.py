"""What `accel train` and `accel eval` share: recipes, the task they describe, logs, and accuracy."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.cli.common import read_toml
from accel.errors import ConfigError
from accel.train.batches import PictureBatches
from accel.train.classification import FitSettings
from accel.zoo.datasets import LabelledPictures, load_pictures
from accel.zoo.registry import get_model, preprocess

_SECTIONS = {"model", "data", "fit"}
_BATCH = 250  # pictures at a time in evaluation: fits the caches no worse than 64 and divides 5000 and 10000


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its training batches, and the test pictures it is judged on."""

    model: nn.Module
    batches: PictureBatches
    settings: FitSettings
    test: LabelledPictures

    def loss_of_step(self, model: nn.Module, step: int) -> Tensor:
        x, labels = self.batches(step)
        return F.cross_entropy(model(x), labels)


def read_recipe(path: pathlib.Path) -> dict:
    """The sections of a recipe. ConfigError: unreadable, or not those of a recipe."""
    recipe = read_toml(path)
    if set(recipe) != _SECTIONS:
        raise ConfigError(f"the recipe {path} must have the sections {sorted(_SECTIONS)}, got {sorted(recipe)}")
    return recipe


def task_of(recipe: Mapping, data: pathlib.Path, weights: str | None, seed: int) -> Task:
    """The task a recipe describes, on the data set at `data`, from the weights at `weights`."""
    name = recipe["model"]["name"]
    torch.manual_seed(seed)  # drawn weights
    model = get_model(name, weights).to(memory_format=torch.channels_last)
    train = load_pictures(data, "train")
    try:
        settings = FitSettings(**recipe["fit"])
        batches = PictureBatches(
            train.pictures, train.labels, functools.partial(preprocess, name), seed=seed, **recipe["data"]
        )
    except TypeError as error:
        raise ConfigError(f"the recipe does not fit: {error}") from error
    return Task(model, batches, settings, load_pictures(data, "test"))


@contextlib.contextmanager
def training_log(path: pathlib.Path, show: Callable[[str], None], every: int = 20) -> Iterator[Callable]:
    """A log function for `fit` that appends the mean loss of every `every` steps to a CSV file and shows it."""
    losses: list[float] = []
    with path.open("a", encoding="utf-8") as file:

        def log(step: int, loss: float) -> None:
            losses.append(loss)
            if (step + 1) % every == 0:
                line = f"{step + 1},{sum(losses) / len(losses):.5f}"
                losses.clear()
                print(line, file=file, flush=True)
                show(line)

        yield log


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: LabelledPictures, prepare: Callable[[Tensor], Tensor]) -> float:
    """Share of `pictures` that the model, in eval mode, puts into their class."""
    right = 0
    for x, labels in zip(pictures.pictures.split(_BATCH), pictures.labels.split(_BATCH)):
        logits = model(prepare(x).contiguous(memory_format=torch.channels_last))
        right += int((logits.argmax(1) == labels).sum())
    return right / len(pictures)


def save_state(model: nn.Module, path: pathlib.Path) -> None:
    """Write the parameters and buffers as safetensors, under a temporary name first."""
    from safetensors.torch import save_file

    temporary = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    os.replace(temporary, path)
