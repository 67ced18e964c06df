"""Masks of pictures: generators called with pictures [N, C, H, W] that hide all channels of a pixel together.

Those of Ivanov et al. 2019 (arXiv 1806.02382), in shares of the picture's sides, so that they fit every size.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.errors import ConfigError
from accel.vae.mask_generators import GENERATORS, MaskGenerator, Mixture


class PictureMaskGenerator(MaskGenerator):
    """A mask generator that decides pixel by pixel."""

    @abc.abstractmethod
    def pixels(self, count: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
        """bool [count, height, width] on the generator's device, True where hidden."""

    def __call__(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if cells.dim() != 4:
            raise ConfigError(f"{type(self).__name__} hides pixels of [N, C, H, W], got {tuple(cells.shape)}")
        hidden = self.pixels(len(cells), *cells.shape[2:], generator)
        return hidden.to(cells.device)[:, None].expand(cells.shape).contiguous()


@dataclasses.dataclass(frozen=True)
class Pixels(PictureMaskGenerator):
    """Every pixel is hidden with probability `share`, in [0, 1]."""

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"Pixels needs a share in [0, 1], got {self.share}")

    def pixels(self, count: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
        return _uniform((count, height, width), generator) < self.share


@dataclasses.dataclass(frozen=True)
class FixedRectangle(PictureMaskGenerator):
    """Attributes: top, left, bottom, right, in shares of the sides, in [0, 1]."""

    top: float
    left: float
    bottom: float
    right: float

    def __post_init__(self) -> None:
        if not (0 <= self.top < self.bottom <= 1 and 0 <= self.left < self.right <= 1):
            raise ConfigError(f"FixedRectangle needs top < bottom and left < right in [0, 1], got {self}")

    def pixels(self, count: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
        hidden = torch.zeros(count, height, width, dtype=torch.bool, device="cpu")
        rows = slice(round(self.top * height), round(self.bottom * height))
        hidden[:, rows, round(self.left * width) : round(self.right * width)] = True
        return hidden


@dataclasses.dataclass(frozen=True)
class Rectangle(PictureMaskGenerator):
    """A rectangle anywhere that covers between `least` and `most` of the picture: corners are drawn until one does."""

    least: float = 0.3
    most: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.least < self.most <= 1:
            raise ConfigError(f"Rectangle needs 0 <= least < most <= 1, got {self.least} and {self.most}")

    def pixels(self, count: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
        hidden = torch.zeros(count, height, width, dtype=torch.bool, device="cpu")
        for one in hidden:
            top, bottom, left, right = self._corners(height, width, generator)
            one[top:bottom, left:right] = True
        return hidden

    def _corners(self, height: int, width: int, generator: torch.Generator | None) -> tuple[int, int, int, int]:
        least, most = self.least * height * width, self.most * height * width
        for _ in range(_TRIES):
            low, high = torch.stack([_places(height, generator), _places(width, generator)]).sort(1).values.unbind(1)
            if least <= int((high - low + 1).prod()) <= most:
                return int(low[0]), int(high[0]) + 1, int(low[1]), int(high[1]) + 1
        raise ConfigError(f"no rectangle of {height}x{width} pixels covers {self.least:g} to {self.most:g} of them")


@dataclasses.dataclass(frozen=True)
class RandomPattern(PictureMaskGenerator):
    """Blotches: smooth noise, hidden where it is low.

    Attributes:
        cells: independent noise values along a side of the picture.
        least, most: share of the pixels that is hidden, drawn between them for each picture.
    """

    cells: float = 8.0
    least: float = 0.2
    most: float = 0.3

    def __post_init__(self) -> None:
        if not (self.cells > 0 and 0 < self.least <= self.most < 1):
            raise ConfigError(f"RandomPattern needs cells above 0 and 0 < least <= most < 1, got {self}")

    def pixels(self, count: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
        side = math.ceil(self.cells) + 1  # whole cells that cover the picture wherever its corner falls in the first
        noise = torch.randn(count, 1, side, side, generator=generator, dtype=torch.float32, device="cpu")
        size = [math.ceil(extent * side / self.cells) for extent in (height, width)]
        field = F.interpolate(noise, size, mode="bicubic", align_corners=False)
        top, left = (int(_uniform((), generator) * (all_ - seen + 1)) for all_, seen in zip(size, (height, width)))
        field = field[:, 0, top : top + height, left : left + width].flatten(1)
        share = self.least + (self.most - self.least) * _uniform((count, 1), generator)
        rank = field.argsort(1).argsort(1)
        return (rank < share * height * width).view(count, height, width)


@dataclasses.dataclass(frozen=True)
class Half(PictureMaskGenerator):
    """One half of the picture: the upper, lower, left or right one, drawn."""

    def pixels(self, count: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
        halves = torch.zeros(4, height, width, dtype=torch.bool, device="cpu")
        halves[0, : height // 2] = halves[1, height // 2 :] = True
        halves[2, :, : width // 2] = halves[3, :, width // 2 :] = True
        return halves[torch.randint(4, (count,), generator=generator, device="cpu")]


CENTRE = FixedRectangle(0.25, 0.25, 0.75, 0.75)
# O1 to O6 of Generative Face Completion (Li et al. 2017, arXiv 1704.05838), on faces of 128 x 128 pixels.
_FACE_PARTS = (
    (52, 33, 116, 71),
    (52, 57, 116, 95),
    (52, 29, 74, 99),
    (52, 29, 74, 67),
    (52, 61, 74, 99),
    (86, 40, 124, 88),
)
FACE_PARTS = Mixture(tuple(FixedRectangle(*(side / 128 for side in part)) for part in _FACE_PARTS))
# Of Semantic Image Inpainting with Deep Generative Models (Yeh et al. 2017, arXiv 1607.07539).
SEMANTIC = Mixture((CENTRE, RandomPattern(cells=4.0), Pixels(0.95), Half()), (2.0, 2.0, 2.0, 4.0))
ANY_PICTURE = Mixture((SEMANTIC, FACE_PARTS, Rectangle()), (1.0, 1.0, 2.0))
PICTURE_MASKS = {
    "centre": CENTRE,
    "half": Half(),
    "random": Pixels(0.9),
    "pattern": RandomPattern(),
    "rectangle": Rectangle(),
    "face_parts": FACE_PARTS,
    "semantic": SEMANTIC,
    "any": ANY_PICTURE,
}
GENERATORS.update({kind.__name__: kind for kind in (Pixels, FixedRectangle, Rectangle, RandomPattern, Half)})
_TRIES = 10_000  # of corners; of all rectangles 0.09 cover more than 0.3 of a picture


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")


def _places(extent: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(extent, (2,), generator=generator, device="cpu")
