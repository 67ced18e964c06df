"""What `accel train` does with a recipe of segmentation: drawn pictures, an FCN with an adaptive trunk, its loss."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import accel
from accel.cli.recipe_task import DRAWN, TEST_SEED, RecipeTask
from accel.cli.training import adaptive_config, save_state
from accel.config import PACT, SACT
from accel.errors import ConfigError
from accel.nn.stage_outputs import ponder_loss
from accel.train.batches import Epochs
from accel.train.loop import FitSettings
from accel.train.parallel import Place
from accel.zoo import runs
from accel.zoo.shape_fcn import adaptive_fcn, inputs, object_correlation, targets
from accel.zoo.shapes import Shapes, draw_shapes

_KINDS = {"sact": SACT, "pact": PACT}
_REPORTED = 64  # held-out pictures of what training ends by saying: seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationTask(RecipeTask):
    """An FCN and the drawn pictures it is trained on. Measured: the share of pixels right, the ponder cost (summed over
    the stages), the executed share of the stages' MACs."""

    decisive = ("segmentation", "adaptive", "data")

    def draw(self, count: int, generator: torch.Generator) -> Shapes:
        return draw_shapes(count, self.recipe["segmentation"]["size"], generator)

    def loss_of_step(self, model: nn.Module, step: int) -> Tensor:
        """Cross entropy of the pixels and the ponder loss."""
        drawn = self.draw(self.epochs.batch, self.epochs.generator(step))
        labels = targets(drawn).to(self.place.device)
        out = model(inputs(drawn).to(self.place.device))
        self.measured.update(
            accuracy=float((out.logits["out"].argmax(1) == labels).float().mean()),
            ponder_cost=sum(float(stage.mean_ponder().detach()) for stage in out.stages),
            executed_share=out.executed_share,
        )
        return F.cross_entropy(out.logits["out"].float(), labels) + ponder_loss(out)

    def finish(self, folder: pathlib.Path) -> dict[str, float]:
        """Save the trained weights, and say and return what they reach on new pictures.

        accuracy, the share of pixels right; correlation, of the ponder maps with the objects, and untrained, the same
        with heads that were drawn anew; macs_share, executed of the dense network's.
        """
        save_state(self.model, folder / runs.WEIGHTS_FILE)
        drawn = self.draw(_REPORTED, torch.Generator().manual_seed(TEST_SEED))
        model, x = self.model.to("cpu"), inputs(drawn)
        with torch.inference_mode():
            right = model(x).logits["out"].argmax(1) == targets(drawn)
        dense = accel.count_macs(accel.revert_model(model), x[:1])
        found = {
            "accuracy": float(right.double().mean()),
            "correlation": object_correlation(model, drawn),
            "untrained": object_correlation(self._with_fresh_heads(), drawn),
            "macs_share": float(accel.count_macs(model, x, per_image=True).double().mean()) / dense,
        }
        said = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        print(f"of {_REPORTED} new pictures: {said}; weights in {folder / runs.WEIGHTS_FILE}")
        return found

    def _with_fresh_heads(self) -> nn.Module:
        """The trained network with the halting heads as they were before training."""
        torch.manual_seed(self.epochs.seed)
        fresh = adaptive_fcn(adaptive_config(self.recipe["adaptive"], _KINDS))
        trained = {name: value for name, value in self.model.state_dict().items() if ".halting." not in name}
        fresh.load_state_dict({**fresh.state_dict(), **trained})
        return fresh.eval()


def segmentation_task(
    recipe: Mapping[str, Any], data: pathlib.Path | None, seed: int, place: Place
) -> SegmentationTask:
    """The task a recipe with a section [segmentation] describes.

    Raises:
        ConfigError: the recipe cannot be used, or a data set is given.
    """
    if data is not None:
        raise ConfigError("a recipe of segmentation draws its pictures: leave --data out")
    if set(recipe["segmentation"]) != {"size"} or set(recipe["data"]) != {"batch"}:
        raise ConfigError(
            f"the recipe's [segmentation] holds size (pixels), [data] batch, got {recipe['segmentation']} and "
            f"{recipe['data']}"
        )
    config = adaptive_config(recipe["adaptive"], _KINDS)
    if isinstance(config, PACT) and not (config.relaxes and config.spatial):
        raise ConfigError("PACT in a map of classes decides by positions and takes the estimator Concrete")
    torch.manual_seed(seed)  # drawn weights, and the noise of relaxed decisions
    try:
        settings = FitSettings(**recipe["fit"])
        epochs = Epochs(DRAWN, recipe["data"]["batch"], seed, place.rank, place.world)
    except TypeError as error:
        raise ConfigError(f"the recipe does not fit: {error}") from error
    model = adaptive_fcn(config).to(place.device)
    return SegmentationTask(recipe=recipe, model=model, settings=settings, epochs=epochs, place=place)
