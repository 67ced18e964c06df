"""Grey pictures as the bits that VAEs are trained on, with noise among them where it is asked for."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from accel.errors import ConfigError, DataError

BINARISE = ("dynamic", "static", "none")
_ROWS = 1000  # pictures at a time where bits are drawn once: 3 MB of noise


@dataclasses.dataclass(frozen=True)
class BitPictures:
    """Pictures whose intensities are probabilities of bits (Burda et al. 2016, arXiv 1509.00519), noise after them.

    Every pixel of a noise example has the mean intensity of the data set, so that its bits are independent
    (Figurnov et al. 2016, arXiv 1611.09226).

    Attributes:
        pictures: uint8 [N, C, H, W].
        binarise: "dynamic", bits are drawn anew each time; "static", once, from `seed`; "none": grey values in [0, 1].
        noise: noise examples per picture.
        seed: of static bits.

    Raises:
        ConfigError: an unknown way, a negative noise, or noise among grey pictures, which would all be alike.
        DataError: no pictures.
    """

    pictures: Tensor
    binarise: str = "dynamic"
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.binarise not in BINARISE:
            raise ConfigError(f"binarise must be one of {', '.join(BINARISE)}, got {self.binarise!r}")
        if not 0 <= self.noise < float("inf") or (self.noise and self.binarise == "none"):
            raise ConfigError(
                f"noise is a number of noise examples per picture, and needs binarise: got noise={self.noise:g} with "
                f"binarise={self.binarise!r}"
            )
        if not len(self.pictures):
            raise DataError("there is no picture to train on: give a data set that holds some")

    def __len__(self) -> int:
        return len(self.pictures) + round(self.noise * len(self.pictures))

    @functools.cached_property
    def intensity(self) -> float:
        """The mean of all pixels, in [0, 1]."""
        return float(self.pictures.sum(dtype=torch.int64)) / (255 * self.pictures.numel())

    def is_noise(self, rows: Tensor) -> Tensor:
        """bool [n], which of the examples `rows`, int64 [n], are noise."""
        return rows >= len(self.pictures)

    def take(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """float32 [n, C, H, W], the examples `rows`; dynamic bits are drawn from `generator`."""
        if self.binarise == "static":
            return self._bits[rows].float()
        grey = self._grey(rows)
        return grey if self.binarise == "none" else _drawn(grey, generator)

    def _grey(self, rows: Tensor) -> Tensor:
        noise = self.is_noise(rows)
        grey = self.pictures[torch.where(noise, 0, rows)].float() / 255
        grey[noise] = self.intensity
        return grey

    @functools.cached_property
    def _bits(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.arange(len(self), device="cpu").split(_ROWS)
        return torch.cat([_drawn(self._grey(some), generator).bool() for some in rows])


def _drawn(grey: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.rand(grey.shape, generator=generator, dtype=torch.float32, device="cpu")
    return (noise < grey).float()
