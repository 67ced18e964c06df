"""Batches of in-memory pictures as a function of the step: shuffled by epoch, augmented, split over processes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from accel.errors import ConfigError

_SEED_STRIDE = 1_000_003  # keeps the generators of different seeds apart


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Which examples a training step sees: every epoch in an order of its own, split over the processes.

    Attributes:
        count: examples there are. batch: of this process per step. seed.
        rank, world: this process's place among the data-parallel ones; a step covers world * batch examples.

    Raises:
        ConfigError: fewer examples than a step takes.
    """

    count: int
    batch: int
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1 or self.count < self.batch * self.world:
            raise ConfigError(
                f"a step takes {self.batch} examples in each of {self.world} processes, and there are {self.count}: "
                "give a batch that fits"
            )

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.count // (self.batch * self.world)

    def rows(self, step: int) -> Tensor:
        """int64 [batch], the examples of a step."""
        epoch, place = divmod(step, self.steps)
        first = (place * self.world + self.rank) * self.batch
        return _order(self.count, self._seed(epoch, 0))[first : first + self.batch]

    def generator(self, step: int) -> torch.Generator:
        """Of what this process draws in a step."""
        return torch.Generator().manual_seed(self._seed(step, 1 + self.rank))

    def _seed(self, index: int, stream: int) -> int:
        return (self.seed * _SEED_STRIDE + index) * 64 + stream


@functools.lru_cache(maxsize=1)  # an order is drawn once an epoch, not at every step
def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")


@dataclasses.dataclass(frozen=True)
class PictureBatches:
    """Calling it with a step number gives that step's (x float32 [batch, C, H, W] channels_last, labels int64 [batch]).

    The same step gives the same batch in any process and after any resume: the order of an epoch and the augmentation
    of a step are drawn from `seed`, the epoch and the step alone.

    Attributes:
        pictures: uint8 [N, C, H, W]. labels: int64 [N].
        preprocess: uint8 pictures [N, C, H, W] -> the network's float32 input.
        batch: pictures of this process per step.
        pad: random crops from pictures padded by so many pixels, and random flips; 0: neither.
        rank, world: this process's place among the data-parallel ones; a step covers world * batch pictures.
    """

    pictures: Tensor
    labels: Tensor
    preprocess: Callable[[Tensor], Tensor]
    batch: int
    pad: int = 0
    seed: int = 0
    rank: int = 0
    world: int = 1

    @functools.cached_property
    def epochs(self) -> Epochs:
        return Epochs(len(self.labels), self.batch, self.seed, self.rank, self.world)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        chosen = self.epochs.rows(step)
        x = self.preprocess(self.pictures[chosen])
        if self.pad:
            x = random_crop_and_flip(x, self.pad, self.epochs.generator(step))
        return x.contiguous(memory_format=torch.channels_last), self.labels[chosen]


def random_crop_and_flip(x: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Each picture of [N, C, H, W] cropped at random from its zero-padded self, and flipped with probability 1/2."""
    from torchvision.transforms.v2 import functional  # its transforms draw from the global generator

    n, _, height, width = x.shape
    top, left = (torch.randint(2 * pad + 1, (n,), generator=generator, device="cpu") for _ in range(2))
    flip = torch.rand(n, generator=generator, dtype=torch.float32, device="cpu") < 0.5
    padded = functional.pad(x, [pad])
    crops = []
    for picture, y, x0, mirrored in zip(padded, top.tolist(), left.tolist(), flip.tolist()):
        crop = functional.crop(picture, y, x0, height, width)
        crops.append(functional.horizontal_flip(crop) if mirrored else crop)
    return torch.stack(crops)
