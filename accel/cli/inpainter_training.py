"""What `accel train` does with a recipe of an inpainting model: its pictures, its masks, its loss."""

from __future__ import annotations

import dataclasses
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
from accel.vae import VAEAC
from accel.vae.inpainting import inpaint, psnr
from accel.vae.mask_generators import MaskGenerator
from accel.zoo import inpainters, runs
from accel.zoo.datasets import load_pictures
from accel.zoo.shapes import RADIUS, draw_shapes

_SHAPES = "shapes"
_DRAWN = 2**16  # pictures of an epoch of shapes, which are drawn anew in every step
_REPORTED = 64  # test pictures of what training ends by saying: seconds


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures in 0..1 to learn from: those of a data set, or shapes drawn at every step.

    Attributes:
        pictures: uint8 [N, C, H, W], or None for shapes.
        crop: side of the square cut out at a place that is drawn; None: pictures as they are.
    """

    pictures: Tensor | None
    crop: int | None

    def __len__(self) -> int:
        return _DRAWN if self.pictures is None else len(self.pictures)

    def take(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """float32 [n, C, H, W] of the rows int64 [n]; of shapes, as many new ones."""
        if self.pictures is None:
            x = draw_shapes(len(rows), max(self.crop, 2 * int(RADIUS[1])), generator).images
        else:
            x = self.pictures[rows].float() / 255
        if self.crop is None:
            return x
        top, left = (int(torch.randint(side - self.crop + 1, (), generator=generator)) for side in x.shape[2:])
        return x[:, :, top : top + self.crop, left : left + self.crop]


class Loss(nn.Module):
    """`forward(cells, hidden, generator)` -> the VAEAC's loss, as one module that a data-parallel wrapper can call."""

    def __init__(self, vaeac: VAEAC) -> None:
        super().__init__()
        self.vaeac = vaeac

    def forward(self, cells: Tensor, hidden: Tensor, generator: torch.Generator) -> Tensor:
        return self.vaeac.loss(cells, hidden, torch.zeros_like(hidden), generator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpainterTask(RecipeTask):
    """An inpainting model, the pictures and masks it learns from, and pictures that it is judged on."""

    decisive = ("vaeac", "data")
    model: Loss
    examples: Pictures
    masks: MaskGenerator
    test: Tensor

    def loss_of_step(self, model: nn.Module, step: int) -> Tensor:
        """Pictures, masks and latents are drawn from the seed, the step and the process alone."""
        drawn = self.epochs.generator(step)
        x = self.examples.take(self.epochs.rows(step), drawn) * 2 - 1
        hidden = self.masks(x, drawn).to(self.place.device)
        x = x.to(self.place.device, memory_format=torch.channels_last)
        return model(x, hidden, self.latent_noise(drawn))

    def finish(self, folder: pathlib.Path) -> dict[str, float]:
        """Save the trained model, and say and return how well it fills test pictures."""
        vaeac, weights = self.model.vaeac.eval(), folder / runs.WEIGHTS_FILE
        files.write_tensors(weights, {name: tensor.half() for name, tensor in vaeac.state_dict().items()})
        x, generator = self.test.to(self.place.device), torch.Generator().manual_seed(0)
        hidden = self.masks(x, generator)[:, 0]
        found = inpaint(vaeac, x, hidden, 5, generator=torch.Generator(self.place.device).manual_seed(0)).mean(1)
        mean = float(psnr(found, x, hidden).mean())
        print(f"hidden pixels of {len(x)} test pictures: {mean:.2f} dB by the mean of 5 samples; weights in {weights}")
        return {"psnr": mean}


def inpainter_task(recipe: Mapping[str, Any], data: pathlib.Path | None, seed: int, place: Place) -> InpainterTask:
    """The task a recipe with a section [vaeac] describes, on the data set at `data` or on drawn shapes.

    Raises:
        ConfigError, DataError: the recipe or the data set cannot be used.
    """
    options = dict(recipe["data"])
    batch, masks = options.pop("batch", None), inpainters.masks_named(options.pop("masks", "any"))
    train, test = _pictures(options, data, seed)
    torch.manual_seed(seed)  # drawn weights
    try:
        settings = FitSettings(**recipe["fit"])
        epochs = Epochs(len(train), batch, seed, place.rank, place.world)
    except TypeError as error:
        raise ConfigError(f"the recipe does not fit: {error}") from error
    vaeac = inpainters.build_inpainter(recipe["vaeac"])
    if test.shape[1] != recipe["vaeac"]["channels"]:
        raise DataError(f"the model is of {recipe['vaeac']['channels']} channels, the pictures have {test.shape[1]}")
    _check_size(test, 2 ** (len(vaeac.decoder.levels) - 1))
    model = Loss(vaeac).to(place.device, memory_format=torch.channels_last)
    given = {"settings": settings, "epochs": epochs, "place": place}
    return InpainterTask(recipe=recipe, model=model, examples=train, masks=masks, test=test, **given)


def _pictures(options: dict[str, Any], data: pathlib.Path | None, seed: int) -> tuple[Pictures, Tensor]:
    """(pictures to learn from, float test pictures as large), of [data] without batch and masks."""
    name, crop = options.pop("name", None), options.pop("crop", None)
    if options or not (crop is None or (isinstance(crop, int) and crop > 0)):
        raise ConfigError(f"the recipe's [data] holds name, crop (pixels), batch and masks, got {options or crop}")
    generator = torch.Generator().manual_seed(seed - 1 if seed else 2**31)  # of no training step
    if name == _SHAPES:
        if data is not None or crop is None:
            raise ConfigError("a recipe of shapes draws its pictures: leave --data out, and say data.crop")
        train = Pictures(None, crop)
        return train, train.take(torch.arange(_REPORTED, device="cpu"), generator)
    if data is None:
        raise DataError("the recipe's data set is on your disk: say with --data where")
    train, test = (Pictures(load_pictures(data, split).pictures, crop) for split in ("train", "test"))
    return train, test.take(torch.arange(min(_REPORTED, len(test)), device="cpu"), generator)


def _check_size(pictures: Tensor, multiple: int) -> None:
    if any(side % multiple for side in pictures.shape[2:]):
        raise ConfigError(
            f"the model halves its pictures down to 1/{multiple}: {tuple(pictures.shape[2:])} pixels do not fit; say "
            f"data.crop, a multiple of {multiple}"
        )
