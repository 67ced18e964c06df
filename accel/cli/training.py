"""Recipes, and the training that they describe: what `accel train` reads and runs."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.api import convert_model
from accel.config import ACT, PACT, SACT, FixedRepeats, Halting, estimator_of
from accel.errors import ConfigError
from accel.files import write_tensors
from accel.nn.adaptive import AdaptiveOutput, adaptive_stages, ponder_loss
from accel.nn.expected import expected_loss
from accel.train.batches import PictureBatches
from accel.train.loop import FitSettings
from accel.train.parallel import Place
from accel.zoo import runs
from accel.zoo.datasets import LabelledPictures, load_pictures
from accel.zoo.evaluation import accuracy, dense_macs, logits_of, macs_per_image
from accel.zoo.registry import get_model, input_size, preprocess
from accel.zoo.weights_io import load_part, load_weights, read_tensors

_KINDS = {"act": ACT, "sact": SACT, "pact": PACT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network whose answers a model learns beside the labels (Hinton et al. 2015, arXiv 1503.02531, sec. 2).

    Attributes: network, in eval mode; labels, the weight of the cross entropy with the labels, in [0, 1], the teacher
    having the rest; temperature, at which both distributions are compared.

    Raises:
        ConfigError: a value out of range.
    """

    network: nn.Module
    labels: float = 0.1
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.labels <= 1 or not 0 < self.temperature < float("inf"):
            raise ConfigError(
                "the recipe's [teacher] needs labels in [0, 1] and a finite temperature above 0, got "
                f"{self.labels:g} and {self.temperature:g}"
            )

    def loss(self, x: Tensor, logits: Tensor, cross_entropy: Tensor) -> Tensor:
        """labels * cross_entropy + (1 - labels) * T^2 * KL(teacher || model), both softened by the temperature T.

        x are the pictures, logits float32 [N, classes] the model's answers. T^2 keeps the gradients of the two parts in
        proportion when T changes.
        """
        with torch.no_grad():
            answers = (logits_of(self.network(x)) / self.temperature).log_softmax(1)
        ours = (logits / self.temperature).log_softmax(1)
        divergence = F.kl_div(ours, answers, log_target=True, reduction="batchmean")
        return self.labels * cross_entropy + (1 - self.labels) * self.temperature**2 * divergence


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its training batches, and the test pictures it is judged on.

    Attributes:
        recipe: what describes it.
        teacher: None, or what the model learns from beside the labels.
        measured: what the last step measured besides its loss; of an adaptive model the cross entropy with the labels,
            the ponder cost (summed over the stages), the executed share of the stages' MACs, and tau.
    """

    model: nn.Module
    batches: PictureBatches
    settings: FitSettings
    test: LabelledPictures
    place: Place
    recipe: Mapping
    teacher: Teacher | None = None
    measured: dict[str, float] = dataclasses.field(default_factory=dict)

    def loss_of_step(self, model: nn.Module, step: int) -> Tensor:
        """Cross entropy, the teacher's part, and the ponder loss of an adaptive model (arXiv 1612.02297, eq. 7)."""
        x, labels = (tensor.to(self.place.device, non_blocking=True) for tensor in self.batches(step))
        if self.needs_losses:
            return self._expected_loss(model, x, labels)
        out = model(x)
        logits = logits_of(out)
        cross_entropy = F.cross_entropy(logits, labels)
        loss = self.teacher.loss(x, logits, cross_entropy) if self.teacher else cross_entropy
        if not isinstance(out, AdaptiveOutput):
            return loss
        self._measure(out, cross_entropy)
        return loss + ponder_loss(out)

    @property
    def needs_losses(self) -> bool:
        """Whether the estimator of a PACT model takes the loss of every picture."""
        configs = (stage.config for stage in adaptive_stages(self.model))
        return any(isinstance(config, PACT) and not config.relaxes for config in configs)

    def _expected_loss(self, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        def cross_entropies(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), labels, reduction="none")

        def measure(out: AdaptiveOutput) -> None:
            with torch.no_grad():
                self._measure(out, cross_entropies(out.logits[: len(labels)]).mean())

        return expected_loss(model, x, cross_entropies, on_output=measure)

    def _measure(self, out: AdaptiveOutput, cross_entropy: Tensor) -> None:
        self.measured.update(
            cross_entropy=float(cross_entropy.detach()),
            ponder_cost=sum(float(stage.mean_ponder().detach()) for stage in out.stages),
            executed_share=out.executed_share,
            tau=out.tau,
        )

    def begin(self, folder: pathlib.Path) -> None:
        """Leave the recipe in the folder of the run.

        Raises:
            WeightsError: a run of another model, data set, teacher or seed is there.
        """
        runs.leave_recipe(folder, self.recipe, ("model", "adaptive", "teacher", "data"), self.batches.seed)

    def finish(self, folder: pathlib.Path) -> dict[str, float]:
        """Save the trained weights, and say and return what they reach on the test pictures."""
        model, test, prepare = self.model, self.test, self.batches.preprocess
        weights = folder / "model.safetensors"
        save_state(model, weights)
        found = {"accuracy": accuracy(model, test, prepare)}
        print(f"test accuracy {found['accuracy']:.4f} on {len(test)} pictures; weights in {weights}")
        if adaptive_stages(model):
            macs, dense = macs_per_image(model, test, prepare).double(), dense_macs(model, test, prepare)
            found["macs_share"], spread = float(macs.mean()) / dense, float(macs.std()) / dense
            print(
                f"executed MACs: mean {found['macs_share']:.4f} of the dense network's {dense:.4g} a picture, "
                f"deviation {spread:.4f}"
            )
        return found


def task_of(
    recipe: Mapping, data: pathlib.Path, weights: str | None, seed: int, place: Place, teacher: str | None = None
) -> Task:
    """The task a recipe describes, on the data set at `data`, from the weights at `weights`.

    `teacher` are the weights of the network that a recipe with the section [teacher] learns from: [teacher] `name`, by
    default the model's, not made adaptive.

    Raises:
        ConfigError, DataError, WeightsError: the recipe, the data set or the weights cannot be used.
    """
    options, sampling = dict(recipe["model"]), dict(recipe["data"])
    name, size = options.pop("name", None), sampling.pop("size", None)
    weights_of = options.pop("weights_of", None)
    train, test = (load_pictures(data, split, size) for split in ("train", "test"))
    train, _ = train.held_out(sampling.pop("held_out", 0))
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
        model = build(name, weights, recipe.get("adaptive"), weights_of=weights_of, **options)
        taught = _teacher(recipe, teacher, name, **options)
    except TypeError as error:
        raise ConfigError(f"the recipe does not fit: {error}") from error
    if taught:
        taught.network.to(place.device, memory_format=torch.channels_last)
    model.to(place.device, memory_format=torch.channels_last)
    task = Task(model, batches, settings, test, place, recipe, taught)
    if taught and task.needs_losses:
        raise ConfigError("a teacher's loss is that of a whole batch: take the estimator Concrete, or leave it out")
    return task


def _teacher(recipe: Mapping, weights: str | None, name: str, **options) -> Teacher | None:
    if ("teacher" in recipe) != (weights is not None):
        raise ConfigError(
            "a recipe with the section [teacher] needs the teacher's weights, and only such a recipe takes them: "
            + ("give --teacher FILE" if weights is None else "leave --teacher out, or add the section")
        )
    if weights is None:
        return None
    table = dict(recipe["teacher"])
    return Teacher(network=get_model(table.pop("name", name), weights, **options), **table)


def build(
    name: str, weights: str | None, adaptive: Mapping | None = None, weights_of: str | None = None, **options
) -> nn.Module:
    """The model called `name`; made adaptive by the table `adaptive`, its kind ("act", "sact" or "pact") and the
    fields of its configuration; an estimator by its name, or as a table of name and settings.

    Weights of the plain network leave the halting heads fresh; those of an adaptive one fill them as well. With
    `weights_of`, they are the weights of that larger plain network, of which the model is a part: a ResNet with fewer
    units per stage takes those of the first units.

    Raises:
        ConfigError: an unknown model, or a table that describes no configuration.
        WeightsError: the weights cannot be read or are another model's.
    """
    if adaptive is None:
        return _plain(name, weights, weights_of, **options)
    config = adaptive_config(adaptive)
    is_file = weights_of is None and weights not in (None, "none", "download")
    ready = is_file and any(".halting." in key for key in read_tensors(weights))
    example = torch.zeros(1, 3, *input_size(name))
    plain = _plain(name, "none" if ready else weights, weights_of, **options)
    model = convert_model(plain, config, example_inputs=example, inplace=True)
    return load_weights(model, weights) if ready else model


def _plain(name: str, weights: str | None, weights_of: str | None, **options) -> nn.Module:
    if weights_of is None:
        return get_model(name, weights, **options)
    return load_part(get_model(name, "none", **options), get_model(weights_of, weights, **options))


def adaptive_config(table: Mapping, kinds: Mapping[str, type] = _KINDS) -> Halting | FixedRepeats:
    """The configuration that a recipe's [adaptive] describes; ConfigError: of none of these kinds."""
    fields = dict(table)
    kind = fields.pop("kind", None)
    if kind not in kinds:
        *others, last = kinds
        raise ConfigError(f"the recipe's [adaptive] kind must be {', '.join(others)} or {last}, got {kind!r}")
    try:
        if "estimator" in fields:
            fields["estimator"] = estimator_of(fields["estimator"])
        return kinds[kind](**fields)
    except TypeError as error:
        raise ConfigError(f"the recipe's [adaptive] table does not fit: {error}") from error


def save_state(model: nn.Module, path: pathlib.Path) -> None:
    """Write the parameters and buffers as safetensors."""
    write_tensors(path, model.state_dict())
