"""What a mask is, and the masks there are. A new one is a class in a file of this folder; `uniform.py` is the smallest.

    @register
    class Diagonal(Mask):
        name = "diagonal"

        def build(self, keep, site): ...

Configurations, conversions, searches, saved folders and the command line then know it by that name.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from accel.errors import ConfigError
from accel.kernels.positions import PositionSet, every_position
from accel.masks.nearest import nearest_map
from accel.registry import Registry

if TYPE_CHECKING:
    from accel.fills.contract import Fill


class Pooling(NamedTuple):
    """The pooling layer that reads a convolution's output; every pair is (vertical, horizontal)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a mask is built: the output map of a layer, and what is known of it.

    Attributes:
        height, width: size of the map.
        generator: CPU generator for random choices.
        pooling: the pooling layer that reads the map; None where there is none, or the mask does not ask.
        impact: [height, width], the loss change per position; None where it was not measured.
        shift: rows by which a regular pattern is moved down.
    """

    height: int
    width: int
    generator: torch.Generator
    pooling: Pooling | None = None
    impact: Tensor | None = None
    shift: int = 0


class Mask(abc.ABC):
    """One way to choose the positions that are computed. It has no state: what it chooses depends on its arguments.

    Attributes:
        name: what `Perforate(mask=...)` calls it.
        needs_data: `build` wants `site.impact`, which a conversion measures on calibration data.
        iterative: that is measured on the network as converted so far, and not on the dense one.
        reads_pooling: `build` looks at `site.pooling`, which a conversion finds in the model's graph.
        shifts: `build` obeys `site.shift`.
        score: None, or a method of a layer's input x [N, C, H, W] that gives [N, H, W], how much each pixel speaks for
            computing the position over it: the highest are computed in each image besides what `build` chose, `keep` of
            the map in all.
        is_static: the positions are known before the input: there is no `score`.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    iterative: ClassVar[bool] = False
    reads_pooling: ClassVar[bool] = False
    shifts: ClassVar[bool] = False
    score: ClassVar[Callable[..., Tensor] | None] = None
    is_static: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        cls.is_static = cls.score is None

    def __reduce__(self) -> tuple:
        return find, (self.name,)  # copies and pickles are the mask itself

    def check(self, keep: float, fill: Fill) -> None:  # noqa: B027, most masks refuse nothing
        """ConfigError where the mask does not exist at this keep, or not with this fill."""

    def lacks(self, layer: nn.Conv2d) -> str | None:
        """What the mask needs of a layer and this one has not, such as "zero padding, got 'reflect'"; or None."""
        return None

    @abc.abstractmethod
    def build(self, keep: float, site: Site) -> Tensor:
        """int32 [P], P at least 1, the flat indices y * width + x of the positions; distinct, on the CPU.

        Raises:
            ConfigError: the site lacks what the mask needs.
        """


_KNOWN = Registry[Mask]("mask", ("uniform", "grid", "pooling", "impact", "iterative_impact", "lattice", "adaptive"))
register = _KNOWN.add


def find(name: str) -> Mask:
    """The mask of this name. UnknownNameError, which lists those there are: none has it."""
    return _KNOWN.find(name)


def names() -> tuple[str, ...]:
    """Of every mask there is."""
    return _KNOWN.names


def impact_names() -> tuple[str, ...]:
    """Of the masks that need an impact map."""
    return tuple(mask.name for mask in _KNOWN if mask.needs_data)


def layer_generator(seed: int, layer_name: str, height: int, width: int) -> torch.Generator:
    """The generator for one layer at one output size: the same numbers on every machine and in every process."""
    digest = hashlib.sha256(f"{seed}/{layer_name}/{height}x{width}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def build_mask(
    kind: str,
    keep: float,
    height: int,
    width: int,
    *,
    generator: torch.Generator,
    pooling: Pooling | None = None,
    impact: Tensor | None = None,
    shift: int = 0,
) -> PositionSet:
    """The position set of a layer whose output map is `height` x `width`.

    Args:
        kind: the name of a mask. `pooling` keeps the positions that the most pooling windows read, and is `uniform`
            where no pooling follows (`pooling=None`: every position counts the same); impact masks keep the highest
            of `impact`; of `adaptive` this is the static part, the staggered quarter lattice.
        keep: fraction of positions to compute, in (0, 1]. The set's own `.keep` is what it really keeps: uniform,
            pooling and impact keep floor(keep * height * width), the grid round(height * sqrt(keep)) rows and
            round(width * sqrt(keep)) columns; never less than one position.
        generator: CPU generator for the random choices, among them the ties of the nearest map.
        impact: [height, width], the loss change per position; only for impact masks.
        shift: rows by which a lattice is moved down.

    Raises:
        ConfigError: unknown kind, keep outside (0, 1], a lattice that does not exist, a missing or misshapen impact, or
            a mask of one's own that gave no position set.
    """
    mask = find(kind)
    if not 0 < keep <= 1:
        raise ConfigError(f"keep is the fraction of positions computed and must lie in (0, 1], got {keep!r}")
    positions = mask.build(keep, Site(height, width, generator, pooling, impact, shift))
    _check_positions(kind, positions, height * width)
    if len(positions) == height * width and bool((positions.diff() == 1).all()):
        return every_position(height, width)
    return PositionSet(positions, nearest_map(positions, height, width, generator), height, width)


def _check_positions(kind: str, positions: Tensor, total: int) -> None:
    """Whatever is built upon a set takes them for granted."""
    wanted = f"mask {kind!r} must give distinct int32 positions of 0 to {total - 1} on the CPU, one at least"
    fits = positions.dtype is torch.int32 and positions.dim() == 1 and positions.device.type == "cpu"
    if not fits or not len(positions):
        found = f"{positions.dtype} of shape {tuple(positions.shape)} on {positions.device}"
        raise ConfigError(f"{wanted}, got {found}")
    low, high = (int(bound) for bound in torch.aminmax(positions))
    if low < 0 or high >= total:
        raise ConfigError(f"{wanted}, got {low} to {high}")
    kept = torch.zeros(total, dtype=torch.bool, device="cpu")
    kept[positions.long()] = True
    if (count := int(kept.sum())) != len(positions):
        raise ConfigError(f"{wanted}, got {len(positions)}, of which {count} are distinct")


def highest(weights: Tensor, keep: float) -> Tensor:
    """The floor(keep * H * W) positions of the highest weight, ascending; equal weights go to the lower index."""
    count = max(1, math.floor(keep * weights.numel() + 1e-9))  # 0.29 * 100 is 28.999999999999996
    order = torch.argsort(weights.flatten(), descending=True, stable=True)
    return order[:count].sort().values.to(torch.int32)


def noise(site: Site) -> Tensor:
    """float64 [height, width], uniform in [0, 1)."""
    return torch.rand(site.height, site.width, generator=site.generator, dtype=torch.float64, device="cpu")
