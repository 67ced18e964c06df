"""A decoder of small pictures made of residual units, which may be adaptive: for a VAE with halting variables."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from accel.errors import ConfigError
from accel.zoo.cifar import BasicBlock

STAGES = ("small", "large")
MOST_UNITS = 1000  # a number by mistake must not build for ever


class PictureDecoder(nn.Module):
    """[N, features] -> [N, channels, H, W]: a map of a quarter of the sides, units at that size, doubled, units at half
    of the sides, doubled again, and one convolution.

    Args:
        shape: of a picture, [channels, H, W].
        width: channels of the units.
        units: of each of the two stages, at least 2 where they are to be adaptive.

    Raises:
        ConfigError: sides that are no multiples of 4, or more than a thousand units.
    """

    def __init__(self, features: int, shape: Sequence[int], width: int = 32, units: int = 4) -> None:
        super().__init__()
        if len(shape) != 3 or any(side % 4 for side in shape[1:]):
            raise ConfigError(
                f"residual decoders are of pictures whose sides are multiples of 4, got shape {list(shape)}"
            )
        if not 1 <= units <= MOST_UNITS:
            raise ConfigError(f"residual decoders have 1 to {MOST_UNITS} units in each stage, got {units}")
        channels, height, width_of_picture = shape
        self.first = nn.Linear(features, width * height * width_of_picture // 16)
        self.fold = nn.Unflatten(1, (width, height // 4, width_of_picture // 4))
        self.small = nn.Sequential(*(BasicBlock(width, width, 1) for _ in range(units)))
        self.between = nn.Conv2d(width, width, 3, padding=1)
        self.large = nn.Sequential(*(BasicBlock(width, width, 1) for _ in range(units)))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.small(F.relu(self.fold(self.first(x))))
        x = F.relu(self.between(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.last(F.interpolate(self.large(x), scale_factor=2.0, mode="nearest"))
