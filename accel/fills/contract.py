"""What a fill is, and the fills there are. A new one is a class in a file of this folder; `zero.py` is the smallest.

    @register
    class Zero(Fill):
        name = "zero"

        def background(self, rows, positions): ...

Configurations, conversions, searches, saved folders and the command line then know it by that name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from accel.kernels.positions import PositionSet
from accel.registry import Registry

if TYPE_CHECKING:
    from accel.fills.sums import Fit


class Settings(Protocol):
    """Of a layer's configuration, what speaks of its fill; see `accel.Perforate`."""

    neighbors: int
    correct: str
    seed: int


class Layer(Protocol):
    """A perforated convolution, as a fill sees it when it is fitted."""

    config: Settings
    weight: Tensor
    groups: int
    out_channels: int

    def position_set(self, out_h: int, out_w: int) -> PositionSet: ...

    def tap_map(self, height: int, width: int) -> Tensor: ...

    def rows_at(self, x: Tensor, positions: PositionSet, weight: Tensor) -> Tensor: ...


class Fill:
    """What stands at the positions that a layer does not compute. It has no state: what it gives depends on its
    arguments.

    A fill has one of three methods of its own: `weigh`, `fit` or `background`. Without any, the nearest computed
    position's row stands in, which layers may hand to each other as it is.

    Attributes:
        name: what `Perforate(interpolate=...)` calls it.
        likeness: the fill without calibration data that takes as long, by which a search times this one.
        needs_data: it has a `fit`.
        sums: skipped positions are weighted sums of computed rows, by `weigh` or `fit`.
        by_nearest: they are the nearest computed rows.
        from_rows: either of these. Then norms, activations and additions behind the layer can be done in its call.
    """

    name: ClassVar[str]
    likeness: ClassVar[str] = "weighted"
    needs_data: ClassVar[bool] = False
    sums: ClassVar[bool] = False
    by_nearest: ClassVar[bool] = True
    from_rows: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        cls.needs_data = cls.fit is not Fill.fit
        cls.sums = cls.needs_data or cls.weigh is not Fill.weigh
        cls.from_rows = cls.background is Fill.background
        cls.by_nearest = cls.from_rows and not cls.sums

    def __reduce__(self) -> tuple:
        return find, (self.name,)  # copies and pickles are the fill itself

    def weigh(self, positions: PositionSet, count: int, channels: int) -> Fit:
        """The sums on a position set, found from it alone.

        Args:
            positions: on the CPU; not every position of its map.
            count: computed neighbours in each sum.
            channels: K, of the layer's output.
        """
        raise NotImplementedError

    def fit(self, layer: Layer, x: Tensor, target: Tensor, counted: Tensor) -> Fit | None:
        """The sums that calibration data tells; None where the positions `counted` tell nothing.

        Whether they serve better than nearest filling is judged elsewhere, on other data: `accel.calibrate`.

        Args:
            x: [N, C, H, W], what the layer reads in the converted network.
            target: [N, K, H', W'], its output in the dense network.
            counted: bool [H' * W'], the positions that may be looked at.
        """
        raise NotImplementedError

    def background(self, rows: Tensor, positions: PositionSet) -> Tensor:
        """[N, 1, K] or [N, H' * W', K], what stands at skipped positions; at computed ones it is not read.

        Differentiable, if the layer is to be trained.

        Args:
            rows: [N, P, K], the convolution's output at the computed positions.
        """
        raise NotImplementedError


_KNOWN = Registry[Fill]("interpolate", ("nearest", "fitted", "weighted", "zero"))
register = _KNOWN.add


def find(name: str) -> Fill:
    """The fill of this name. UnknownNameError, which lists those there are: none has it."""
    return _KNOWN.find(name)


def names() -> tuple[str, ...]:
    """Of every fill there is."""
    return _KNOWN.names


def laid_over(background: Tensor, rows: Tensor, positions: PositionSet) -> Tensor:
    """[N, K, H, W] channels_last, the rows [N, P, K] at their positions and `background` elsewhere."""
    height, width = positions.height, positions.width
    dense = background.expand(len(rows), height * width, rows.shape[2])
    dense = dense.index_copy(1, positions.positions.long(), rows)
    return dense.reshape(len(rows), height, width, rows.shape[2]).permute(0, 3, 1, 2)
