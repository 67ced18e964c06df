"""What the trainings by `accel train` that draw their examples have in common."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from accel.mc.sampling import fork
from accel.train.batches import Epochs
from accel.train.loop import FitSettings
from accel.train.parallel import Place
from accel.zoo import runs

DRAWN = 2**20  # examples of an "epoch" where every step draws its own
TEST_SEED = 2**40  # of no training step


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeTask:
    """A model with its loss, and how it is trained.

    Attributes:
        decisive: the sections of a recipe that make a run the same run, first that of the model.
        recipe: what the run can be built again from.
        measured: what the last step measured besides its loss.
    """

    decisive: ClassVar[tuple[str, ...]]
    recipe: Mapping[str, Any]
    model: nn.Module
    settings: FitSettings
    epochs: Epochs
    place: Place
    measured: dict[str, float] = dataclasses.field(default_factory=dict)

    def latent_noise(self, drawn: torch.Generator) -> torch.Generator:
        """Of the latents of a step, on the device; seeded by what comes next from the step's own generator."""
        return torch.Generator(self.place.device).manual_seed(fork(drawn, self.place.device))

    def begin(self, folder: pathlib.Path) -> None:
        """Leave the recipe in the folder of the run.

        Raises:
            WeightsError: a run of another model, data set or seed is there.
        """
        runs.leave_recipe(folder, self.recipe, self.decisive, self.epochs.seed)
