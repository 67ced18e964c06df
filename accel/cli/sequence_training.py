"""What `accel train` does with a recipe of a sequence task: its examples, its network, its loss."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.cli.recipe_task import DRAWN, TEST_SEED, RecipeTask
from accel.cli.training import adaptive_config, save_state
from accel.config import ACT, PACT, FixedRepeats
from accel.errors import ConfigError
from accel.nn.adaptive_cell import CellOutput
from accel.nn.expected import expected_loss
from accel.nn.stage_outputs import ponder_loss
from accel.train.batches import Epochs
from accel.train.loop import FitSettings
from accel.train.parallel import Place
from accel.zoo import runs
from accel.zoo.sequence_nets import SequenceNet, is_right, judge
from accel.zoo.sequence_tasks import CLASSES, Examples, draw

_KINDS = {"act": ACT, "pact": PACT, "fixed": FixedRepeats}
_REPORTED = 20_000  # examples of what training ends by saying: a standard error of 0.1 % at 98 %, and seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceTask(RecipeTask):
    """A network and the task whose examples it is trained on, drawn anew at every step.

    Measured are the cross entropy, mean of all answers; the share of steps right and the mean repeats, of PACT those
    that evaluation would take; and the ponder cost, summed over the steps of time.
    """

    decisive = ("sequence", "cell", "adaptive", "data")
    model: SequenceNet

    def draw(self, count: int, generator: torch.Generator) -> Examples:
        options = dict(self.recipe["sequence"])
        return draw(options.pop("task"), count, options, generator=generator)

    def loss_of_step(self, model: nn.Module, step: int) -> Tensor:
        """Cross entropy and ponder loss, or what PACT's estimator makes of them."""
        x, labels, _ = (
            part.to(self.place.device) for part in self.draw(self.epochs.batch, self.epochs.generator(step))
        )
        config = self.model.cell.config
        if isinstance(config, PACT) and not config.relaxes:
            measure = functools.partial(self._measure, labels)
            return expected_loss(model, x, functools.partial(_cross_entropies, labels), on_output=measure)
        out = model(x)
        self._measure(labels, out)
        return _cross_entropies(labels, out.logits).mean() + ponder_loss(out)

    @torch.no_grad()
    def _measure(self, labels: Tensor, out: CellOutput) -> None:
        logits = out.logits[: len(labels)]
        self.measured.update(
            cross_entropy=float(_cross_entropies(labels, logits).mean()),
            accuracy=float(is_right(logits, labels).float().mean()),
            repeats=float(out.num_steps.float().mean()),
            ponder_cost=sum(float(stage.mean_ponder()) for stage in out.stages),
        )

    def finish(self, folder: pathlib.Path) -> dict[str, float]:
        """Save the trained weights, and say and return what they reach on new examples."""
        save_state(self.model, folder / runs.WEIGHTS_FILE)
        generator = torch.Generator().manual_seed(TEST_SEED)
        found = judge(self.model, lambda count: self.draw(count, generator), _REPORTED)
        said = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        print(f"of {_REPORTED} new examples: {said}; weights in {folder / runs.WEIGHTS_FILE}")
        return found


def _cross_entropies(labels: Tensor, logits: Tensor) -> Tensor:
    """[N], mean of an example's answers."""
    return (
        F.cross_entropy(logits.flatten(0, 2).float(), labels.flatten(), reduction="none").view(len(labels), -1).mean(1)
    )


def sequence_task(recipe: Mapping[str, Any], data: pathlib.Path | None, seed: int, place: Place) -> SequenceTask:
    """The task a recipe with a section [sequence] describes.

    Raises:
        ConfigError: the recipe cannot be used, or a data set is given.
    """
    if data is not None:
        raise ConfigError("a recipe of sequences draws its examples: leave --data out")
    name, sampling = recipe["sequence"].get("task"), dict(recipe["data"])
    batch = sampling.pop("batch", None)
    if sampling or not isinstance(batch, int):
        raise ConfigError(f"the recipe's [data] holds batch, a whole number, and nothing else, got {recipe['data']}")
    options = {key: value for key, value in recipe["sequence"].items() if key != "task"}
    one = draw(name, 1, options, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)  # drawn weights, and the noise of relaxed decisions
    try:
        settings = FitSettings(**recipe["fit"])
        sizes = one.x.shape[2], one.labels.shape[2], CLASSES[name]
        net = SequenceNet(*sizes, adaptive_config(recipe["adaptive"], _KINDS), **recipe["cell"])
    except TypeError as error:
        raise ConfigError(f"the recipe does not fit: {error}") from error
    epochs = Epochs(DRAWN, batch, seed, place.rank, place.world)
    given = {"settings": settings, "epochs": epochs, "place": place}
    return SequenceTask(recipe=recipe, model=net.to(place.device), **given)
