"""What `accel train`, `accel eval` and `accel demo` share of VAEs: the task a recipe describes, and runs as saved."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from accel import files
from accel.cli.recipe_task import RecipeTask
from accel.errors import ConfigError, DataError
from accel.train.batches import Epochs
from accel.train.loop import FitSettings
from accel.train.parallel import Place
from accel.vae import VAE, log_likelihood
from accel.vae.objective import Bound, Objective
from accel.vae.pictures import BitPictures
from accel.zoo import runs, vaes
from accel.zoo.grey_pictures import DIGITS, load_grey
from accel.zoo.word_counts import load_counts

_REPORTED, _REPORT_SAMPLES = 1000, 100  # test examples and samples of what training ends by saying: seconds


@dataclasses.dataclass(frozen=True)
class Texts:
    """Counts of words as examples. Attributes: counts, float32 [N, words]; words."""

    counts: Tensor
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.counts)

    def is_noise(self, rows: Tensor) -> Tensor:
        return torch.zeros(len(rows), dtype=torch.bool, device="cpu")

    def take(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.counts[rows]


Examples = BitPictures | Texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAETask(RecipeTask):
    """A VAE with its bound, its training examples, and the test examples it is judged on.

    The recipe has the shape and mean of the data filled in; measured is the log alpha of the last step's robust bound.
    """

    decisive = ("vae", "bound", "data")
    model: Objective
    examples: Examples
    test: Examples

    def loss_of_step(self, model: nn.Module, step: int) -> Tensor:
        """Bits, latents and order are drawn from the seed, the step and the process alone."""
        drawn = self.epochs.generator(step)
        x = self.examples.take(self.epochs.rows(step), drawn).to(self.place.device, non_blocking=True)
        loss = model(x, step, self.latent_noise(drawn))
        if self.model.bound.kind == "robust":
            self.measured["log_alpha"] = self.model.bound.log_alpha_at(step)
        return loss

    def finish(self, folder: pathlib.Path) -> dict[str, float]:
        """Save the trained VAE, and say and return what it reaches on test examples."""
        vae = self.model.vae.eval()
        files.write_tensors(folder / runs.WEIGHTS_FILE, vae.state_dict())
        x = self.test.take(torch.arange(min(len(self.test), _REPORTED), device="cpu")).to(self.place.device)
        generator = torch.Generator(self.place.device).manual_seed(0)
        nll = -float(log_likelihood(vae, x, _REPORT_SAMPLES, generator=generator).mean())
        print(
            f"test -log p(x) {nll:.2f} nats ({_REPORT_SAMPLES} importance samples) on {len(x)} examples; "
            f"weights in {folder / runs.WEIGHTS_FILE}"
        )
        return {"nll": nll}


def vae_task(recipe: Mapping[str, Any], data: pathlib.Path | None, seed: int, place: Place) -> VAETask:
    """The task a recipe with a section [vae] describes, on the data set at `data`.

    Raises:
        ConfigError, DataError: the recipe or the data set cannot be used.
    """
    batch = recipe["data"].get("batch")
    if not isinstance(batch, int):
        raise ConfigError(f"the recipe's data.batch must be a whole number of examples, got {batch!r}")
    source = data_source(recipe, data)
    train, test = (load_examples(recipe, source, split) for split in ("train", "test"))
    table = _filled(recipe, train)
    torch.manual_seed(seed)  # drawn weights
    try:
        settings, bound = FitSettings(**recipe["fit"]), Bound(**recipe.get("bound", {}))
        epochs = Epochs(len(train), batch, seed, place.rank, place.world)
    except TypeError as error:
        raise ConfigError(f"the recipe does not fit: {error}") from error
    vae = vaes.build_vae(table)
    if isinstance(train, Texts):
        vae.decoder.start_from(train.counts)
    objective = Objective(vae, bound).to(place.device)
    given = {"settings": settings, "epochs": epochs, "place": place}
    return VAETask(recipe={**recipe, "vae": table}, model=objective, examples=train, test=test, **given)


def data_source(recipe: Mapping[str, Any], data: pathlib.Path | None) -> str | pathlib.Path:
    """Where the examples lie: what --data gives, or the digits where the recipe names them.

    Raises:
        DataError: neither.
    """
    if data is None and recipe["data"].get("name") == DIGITS:
        return DIGITS
    if data is None:
        raise DataError("the recipe's data set is on your disk: say with --data where")
    return data


def load_examples(
    recipe: Mapping[str, Any], source: str | pathlib.Path, split: str, noise: float | None = None
) -> Examples:
    """The training examples as the recipe has them; test examples are clean, their bits drawn once.

    Args:
        noise: noise examples per picture, in place of that.

    Raises:
        ConfigError: an unknown key of [data]. DataError: the data set cannot be read.
    """
    options = {key: value for key, value in recipe["data"].items() if key not in ("name", "batch")}
    if recipe["vae"].get("network") == "topics":
        if options or noise:
            raise ConfigError(f"texts have no binarise and no noise: leave {', '.join(options) or 'noise'} out")
        counts, words = load_counts(source, split)
        return Texts(counts, tuple(words))
    if split == "test" or noise is not None:
        once = "none" if options.get("binarise") == "none" else "static"
        options |= {"binarise": once, "noise": noise or 0.0}
    try:
        return BitPictures(load_grey(source, split), **options)
    except TypeError as error:
        raise ConfigError(f"the recipe's table [data] does not fit: {error}") from error


def check_shape(recipe: Mapping[str, Any], examples: Examples) -> list[int]:
    """The shape of an example.

    Raises:
        DataError: the recipe says another.
    """
    found = list(examples.take(torch.zeros(1, dtype=torch.int64, device="cpu")).shape[1:])
    if recipe["vae"].get("shape", found) != found:
        raise DataError(
            f"the VAE is of examples of shape {recipe['vae']['shape']}, these have {found}: give its own data"
        )
    return found


def _filled(recipe: Mapping[str, Any], examples: Examples) -> dict[str, Any]:
    """[vae] with the data's shape and mean."""
    found: dict[str, Any] = {"shape": check_shape(recipe, examples)}
    if isinstance(examples, BitPictures):
        found["intensity"] = round(examples.intensity, 6)
    return {**recipe["vae"], **found}


def is_vae(spec: str) -> bool:
    """Whether MODEL on the command line is a VAE: one that ships, or the folder of a run."""
    return runs.packaged(spec, vaes.PACKAGED) or (pathlib.Path(spec) / runs.RECIPE_FILE).is_file()


def read_vae(spec: str, weights: str | None = None) -> tuple[VAE, dict[str, Any]]:
    """(the trained VAE, its recipe), of one that ships or of a run's folder; `weights` in place of their own.

    Raises:
        WeightsError: the run is not finished, damaged, or its weights are another model's.
    """
    recipe, found = runs.find_run(spec, vaes.PACKAGED, "vae")
    return vaes.load_vae(recipe["vae"], weights or os.fspath(runs.finished(found))), recipe
