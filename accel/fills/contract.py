"""What a fill is, and the fills there are. A new one is a class in a file of this folder; `zero.py` is the smallest.

    @register
    class Zero(Fill):
        name = "zero"

        def background(self, rows, positions): ...

Configurations, conversions, searches, saved folders and the command line then know it by that name.
"""

from __future__ import annotations

from collections.abc import Callable
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

    A fill has at most one of three methods. Without any, the nearest computed position's row stands in, which layers
    may hand to each other as it is.

    Attributes:
        name: what `Perforate(interpolate=...)` calls it.
        weigh: None, or a method (positions, count, channels) -> Fit, the sums found from the position set alone.
            positions: a PositionSet on the CPU, not every position of its map; count: computed neighbours in each sum;
            channels: K, of the layer's output.
        fit: None, or a method (layer, x, target, counted) -> Fit | None, the sums that calibration data tells; None
            where it tells nothing. layer: a `Layer`; x: [N, C, H, W], what it reads in the converted network; target:
            [N, K, H', W'], its output in the dense network; counted: bool [H' * W'], the positions that may be looked
            at. Whether the sums serve better than nearest filling is judged on other data, in `accel.calibrate`.
        background: None, or a method (rows, positions) -> [N, 1, K] or [N, H' * W', K], what stands at skipped
            positions; at computed ones it is not read. rows: [N, P, K], the convolution's output at the computed
            positions. Differentiable, if the layer is to be trained.
        likeness: the fill without calibration data that takes as long, by which a search times this one.
        needs_data: it has a `fit`.
        sums: skipped positions are weighted sums of computed rows, by `weigh` or `fit`.
        by_nearest: they are the nearest computed rows.
        from_rows: either of these. Then norms, activations and additions behind the layer can be done in its call.

    Raises (as a class is made):
        TypeError: it has more than one of the methods.
    """

    name: ClassVar[str]
    weigh: ClassVar[Callable[..., Fit] | None] = None
    fit: ClassVar[Callable[..., Fit | None] | None] = None
    background: ClassVar[Callable[..., Tensor] | None] = None
    likeness: ClassVar[str] = "weighted"
    needs_data: ClassVar[bool] = False
    sums: ClassVar[bool] = False
    by_nearest: ClassVar[bool] = True
    from_rows: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        ways = [way for way in ("weigh", "fit", "background") if getattr(cls, way) is not None]
        if len(ways) > 1:
            raise TypeError(f"{cls.__name__} has {' and '.join(ways)}: a fill has one way to find what it fills in")
        cls.needs_data = cls.fit is not None
        cls.sums = cls.needs_data or cls.weigh is not None
        cls.from_rows = cls.background is None
        cls.by_nearest = cls.from_rows and not cls.sums

    def __reduce__(self) -> tuple:
        return find, (self.name,)  # copies and pickles are the fill itself


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
