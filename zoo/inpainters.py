"""Inpainting models as recipes describe them, and the one that ships with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accel.errors import ConfigError, WeightsError
from accel.vae import VAEAC
from accel.vae.mask_generators import MaskGenerator
from accel.vae.picture_masks import PICTURE_MASKS
from accel.vae.picture_networks import picture_vaeac
from accel.zoo import runs
from accel.zoo.picture_decoder import MOST_UNITS
from accel.zoo.weights_io import load_weights

PACKAGED = ("inpaint_shapes",)  # recipes/NAME.toml, and weights/NAME.safetensors once they ship


def build_inpainter(table: Mapping[str, Any]) -> VAEAC:
    """The VAEAC that a recipe's table [vaeac] describes, with drawn weights.

    Keys: channels of the pictures; widths and blocks, lists of as many numbers, finest level first; latent.

    Raises:
        ConfigError: an unknown key, or a value that is no such number.
    """
    try:
        widths, blocks = list(table["widths"]), list(table["blocks"])
        numbers = [table["channels"], table["latent"], *widths]
        if set(table) != {"channels", "widths", "blocks", "latent"} or len(widths) != len(blocks) or not widths:
            raise ValueError("it holds channels, latent, and widths and blocks for as many levels")
        if not all(isinstance(n, int) and n > 0 for n in numbers) or not all(
            isinstance(n, int) and 0 <= n <= MOST_UNITS for n in blocks
        ):
            raise ValueError(
                f"channels, latent and widths are whole numbers from 1, blocks 0 to {MOST_UNITS}, got {dict(table)}"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the recipe's table [vaeac] does not fit: {error}") from error
    return picture_vaeac(table["channels"], widths, blocks, table["latent"])


def masks_named(name: str) -> MaskGenerator:
    """The mask generator of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PICTURE_MASKS:
        raise ConfigError(f"masks of pictures are one of {', '.join(PICTURE_MASKS)}, got {name!r}")
    return PICTURE_MASKS[name]


def load_inpainter(spec: str) -> tuple[VAEAC, Mapping[str, Any]]:
    """(the model in eval mode, its recipe), of one that ships, such as zoo:inpaint_shapes, or of a run's folder.

    Raises:
        WeightsError: the run is not finished, damaged, or its weights are another model's; or none ship.
    """
    recipe, weights = runs.find_run(spec, PACKAGED, "vaeac")
    if runs.packaged(spec, PACKAGED) and not weights.is_file():
        raise WeightsError(
            f"no weights of {spec} ship yet: accel train inpaint_shapes -o runs/inpaint makes them, then give "
            "--model runs/inpaint"
        )
    return load_weights(build_inpainter(recipe["vaeac"]), runs.finished(weights)).eval(), recipe
