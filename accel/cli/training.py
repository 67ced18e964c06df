"""What `accel train` and `accel eval` share: recipes, the task they describe, accuracy and executed MACs."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.api import convert_model
from accel.cli.common import read_toml
from accel.config import ACT, SACT
from accel.convert import revert_model
from accel.errors import ConfigError
from accel.nn.adaptive import AdaptiveOutput, ponder_loss
from accel.profiling.flops import count_macs
from accel.train.batches import PictureBatches
from accel.train.classification import FitSettings
from accel.train.parallel import Place
from accel.zoo.datasets import LabelledPictures, load_pictures
from accel.zoo.registry import get_model, input_size, preprocess
from accel.zoo.weights_io import load_weights, read_tensors

_SECTIONS, _OPTIONAL = {"model", "data", "fit"}, {"adaptive"}
_KINDS = {"act": ACT, "sact": SACT}
_BATCH = 250  # pictures at a time in evaluation: fits the caches no worse than 64 and divides 5000 and 10000


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its training batches, and the test pictures it is judged on.

    Attributes:
        measured: what the last step measured besides its loss; of an adaptive model the two parts of the loss, the
            ponder cost (summed over the stages), the executed share of the stages' MACs, and tau.
    """

    model: nn.Module
    batches: PictureBatches
    settings: FitSettings
    test: LabelledPictures
    place: Place
    measured: dict[str, float] = dataclasses.field(default_factory=dict)

    def loss_of_step(self, model: nn.Module, step: int) -> Tensor:
        """Cross entropy, plus the ponder loss of an adaptive model (arXiv 1612.02297, eq. 7)."""
        x, labels = (tensor.to(self.place.device, non_blocking=True) for tensor in self.batches(step))
        out = model(x)
        if not isinstance(out, AdaptiveOutput):
            return F.cross_entropy(out, labels)
        loss, ponder = F.cross_entropy(out.logits, labels), ponder_loss(out)
        self.measured.update(
            cross_entropy=float(loss.detach()),
            ponder_cost=sum(float(stage.ponder_cost.detach().mean()) for stage in out.stages),
            executed_share=out.executed_share,
            tau=out.tau,
        )
        return loss + ponder


def read_recipe(path: pathlib.Path) -> dict:
    """The sections of a recipe. ConfigError: unreadable, or not those of a recipe."""
    recipe = read_toml(path)
    if not _SECTIONS <= set(recipe) <= _SECTIONS | _OPTIONAL:
        raise ConfigError(
            f"the recipe {path} must have the sections {sorted(_SECTIONS)}, and may have {sorted(_OPTIONAL)}, "
            f"got {sorted(recipe)}"
        )
    return recipe


def task_of(recipe: Mapping, data: pathlib.Path, weights: str | None, seed: int, place: Place) -> Task:
    """The task a recipe describes, on the data set at `data`, from the weights at `weights`.

    Raises:
        ConfigError, DataError, WeightsError: the recipe, the data set or the weights cannot be used.
    """
    options, sampling = dict(recipe["model"]), dict(recipe["data"])
    name, size = options.pop("name", None), sampling.pop("size", None)
    train, test = (load_pictures(data, split, size) for split in ("train", "test"))
    torch.manual_seed(seed)  # drawn weights, those of fresh halting heads among them
    try:
        settings = FitSettings(**recipe["fit"])
        batches = PictureBatches(
            train.pictures,
            train.labels,
            functools.partial(preprocess, name),
            seed=seed,
            rank=place.rank,
            world=place.world,
            **sampling,
        )
        model = build(name, weights, recipe.get("adaptive"), **options)
    except TypeError as error:
        raise ConfigError(f"the recipe does not fit: {error}") from error
    return Task(model.to(place.device, memory_format=torch.channels_last), batches, settings, test, place)


def build(name: str, weights: str | None, adaptive: Mapping | None = None, **options) -> nn.Module:
    """The model called `name`; made adaptive by the table `adaptive`, its kind ("act" or "sact") and tau, eps, target.

    Weights of the plain network leave the halting heads fresh; those of an adaptive one fill them as well.

    Raises:
        ConfigError: an unknown model, or a table that describes no configuration.
        WeightsError: the weights cannot be read or are another model's.
    """
    if adaptive is None:
        return get_model(name, weights, **options)
    config = _adaptive_config(adaptive)
    ready = weights not in (None, "none", "download") and any(".halting." in key for key in read_tensors(weights))
    example = torch.zeros(1, 3, *input_size(name))
    plain = get_model(name, "none" if ready else weights, **options)
    model = convert_model(plain, config, example_inputs=example, inplace=True)
    return load_weights(model, weights) if ready else model


def _adaptive_config(table: Mapping) -> ACT:
    fields = dict(table)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ConfigError(f"the recipe's [adaptive] kind must be act or sact, got {kind!r}")
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise ConfigError(f"the recipe's [adaptive] table does not fit: {error}") from error


@torch.inference_mode()
def accuracy(model: nn.Module, pictures: LabelledPictures, prepare: Callable[[Tensor], Tensor]) -> float:
    """Share of `pictures` that the model, in eval mode, puts into their class."""
    right = 0
    for x, labels in _in_batches(model, pictures, prepare):
        out = model(x)
        logits = out.logits if isinstance(out, AdaptiveOutput) else out
        right += int((logits.argmax(1).cpu() == labels).sum())
    return right / len(pictures)


def macs_per_image(model: nn.Module, pictures: LabelledPictures, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """Executed MACs of the model, in eval mode, on each of `pictures`: int64 [N]."""
    return torch.cat([count_macs(model, x, per_image=True) for x, _ in _in_batches(model, pictures, prepare)])


def dense_macs(model: nn.Module, pictures: LabelledPictures, prepare: Callable[[Tensor], Tensor]) -> int:
    """MACs per picture of the plain network that an adaptive model was made from."""
    plain = revert_model(model)
    return count_macs(plain, prepare(pictures.pictures[:1]).to(next(plain.parameters()).device))


def _in_batches(
    model: nn.Module, pictures: LabelledPictures, prepare: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    for x, labels in zip(pictures.pictures.split(_BATCH), pictures.labels.split(_BATCH)):
        yield prepare(x).contiguous(memory_format=torch.channels_last).to(device), labels


def save_state(model: nn.Module, path: pathlib.Path) -> None:
    """Write the parameters and buffers as safetensors, under a temporary name first."""
    from safetensors.torch import save_file

    temporary = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    temporary.chmod(0o644)  # save_file's 0600 would lock out everybody else
    os.replace(temporary, path)
