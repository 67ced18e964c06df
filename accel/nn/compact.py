"""Values at computed positions only, and what layers do with them.

Bias, norm, activation, dropout, 1x1 convolutions and sums of values on one position set commute with the nearest map,
so they run on the rows; a pooling reads rows through the map (Figurnov et al., NIPS 2016, implicit interpolation).
For inference: nothing here is differentiated.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.kernels.caches import IdentityCache
from accel.kernels.interpolate import interpolate
from accel.kernels.join_rows import join_rows
from accel.kernels.max_rows import max_rows
from accel.kernels.mean_rows import mean_rows
from accel.kernels.positions import PositionSet, every_position, tap_map
from accel.nn import dense
from accel.nn.graph import Pool
from accel.nn.quantized import Source, meant

_taps, _resized, _means = IdentityCache(), IdentityCache(), IdentityCache()
_ADDED = 1024  # rows added up in one product of matrices: with 65,536 the mean of a 512x512 map was off by 4e-4


@dataclasses.dataclass(frozen=True)
class Compact:
    """Rows [N * P, C], image-major, of a map that is known at `positions` and interpolated elsewhere.

    Without `batched` the map is [C, H, W], N is 1, and what is read from the rows has no batch dimension either.
    """

    rows: Tensor
    positions: PositionSet
    batch: int
    batched: bool = True

    @property
    def shape(self) -> torch.Size:
        """Of the map."""
        return torch.Size([*[self.batch] * self.batched, self.rows.shape[1], *self.positions.size])

    def size(self, dim: int | None = None) -> torch.Size | int:
        """`shape`, or one number of it."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def images(self) -> Tensor:
        """The rows as [N, P, C]."""
        return self.rows.view(self.batch, len(self.positions), self.rows.shape[1])

    def as_map(self) -> Tensor:
        """The rows as a channels_last map [N, C, P, 1]: a view, so that writing in place reaches the rows."""
        return self.images[:, :, None].permute(0, 3, 1, 2)

    def as_image(self) -> Tensor:
        """The rows of every position as a channels_last map [N, C, H, W]: a view."""
        size = (self.batch, self.positions.height, self.positions.width, self.rows.shape[1])
        return self.rows.view(size).permute(0, 3, 1, 2)

    def with_map(self, values: Tensor) -> Compact:
        """The compact value whose `as_map` is `values`."""
        return self.with_rows(rows_of_map(values))

    def with_rows(self, rows: Tensor) -> Compact:
        """Other rows at the same positions."""
        return Compact(rows, self.positions, self.batch, self.batched)

    def with_every_row(self, rows: Tensor, size: tuple[int, int]) -> Compact | Tensor:
        """Rows of every position of a map of this size, as layers hand maps over: bytes so, floats as a map."""
        made = Compact(rows, every_position(*size), self.batch, self.batched)
        return made if rows.dtype is torch.uint8 else made.leave(made.as_image())

    def leave(self, values: Tensor) -> Tensor:
        """`values` [N, ...] that were read from the rows, in the rank of the map."""
        return values if self.batched else values[0]


def rows_of_map(image: Tensor) -> Tensor:
    """[N * H * W, C], the positions of a map [N, C, H, W]; of a channels_last one, a view."""
    return image.permute(0, 2, 3, 1).flatten(0, 2)


def handed_over(image: Tensor) -> Compact:
    """A map in bytes, told from a user's bytes by its form."""
    return Compact(rows_of_map(image), every_position(*image.shape[2:]), len(image))


def to_dense(value: Compact) -> Tensor:
    """[N, C, H, W] channels_last, every position holding the value of its stand-in."""
    return value.leave(interpolate(value.rows, value.positions))


def apply_module(module: nn.Module, value: Compact) -> Compact:
    """A position-wise module on the rows."""
    run = functools.partial(dense.convolve, module) if type(module) is nn.Conv2d else module
    return value.with_map(run(value.as_map()))


def apply_method(name: str, value: Compact) -> Compact:
    """A position-wise tensor method on the rows."""
    return value.with_map(getattr(value.as_map(), name)())


def lifted(function: Callable[..., Tensor]) -> Callable[..., Compact]:
    """A position-wise function of a map, made to work on rows."""

    def on_rows(value: Compact, *args: object, **kwargs: object) -> Compact:
        return value.with_map(function(value.as_map(), *args, **kwargs))

    return on_rows


def add(first: Compact, second: Compact) -> Compact:
    """The sum of two values on the same positions."""
    return first.with_rows(first.rows + second.rows)


def add_(first: Compact, second: Compact) -> Compact:
    """`add`, written into the first."""
    first.rows.add_(second.rows)
    return first


def global_mean(value: Compact) -> Tensor:
    """[N, C, 1, 1], the mean of the interpolated map: every row weighted by the positions it stands in for."""
    starts, _ = value.positions.segments
    weights = starts.diff().to(value.rows.dtype) / (value.positions.height * value.positions.width)
    parts = zip(value.images.split(_ADDED, 1), weights.split(_ADDED))
    mean = sum(torch.einsum("npc,p->nc", rows, share) for rows, share in parts)
    return value.leave(mean[:, :, None, None])


def max_pool(
    value: Compact | Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
    compact: bool = False,
) -> Tensor | Compact:
    """nn.MaxPool2d of the interpolated map, which is never made; [N, C, H', W'] channels_last, or its rows; of a map, a
    map."""
    if isinstance(value, Tensor):
        return F.max_pool2d(value, kernel, stride, padding, dilation, ceil_mode)
    taps, _, size = _pool_taps(value.positions, kernel, stride, padding, dilation, ceil_mode)
    out = max_rows(value.rows, taps, value.batch)
    if compact:
        return Compact(out, every_position(*size), value.batch, value.batched)
    return value.leave(out.view(value.batch, *size, value.rows.shape[1]).permute(0, 3, 1, 2))


def join(values: Sequence[Compact | Tensor], dim: int = 1) -> Compact | Tensor:
    """torch.cat of maps in dimension 1 or -3."""
    images = [handed_over(value) if isinstance(value, Tensor) else value for value in values]
    first, sizes = images[0], [image.positions.size for image in images]
    if len({*sizes}) > 1 or (dim == 1 and not first.batched):
        raise ValueError(f"channels of maps of one size can be joined, got dimension {dim} of maps {sizes}")
    rows = join_rows([image.rows for image in images], list(map(stand_ins, images)), first.batch)
    return first.with_every_row(rows, sizes[0])


def resize(value: Compact | Tensor, **how: object) -> Compact | Tensor:
    """F.interpolate to the nearest position; how: its arguments but the first."""
    image = handed_over(value) if isinstance(value, Tensor) else value
    shape = (*[1] * (1 + image.batched), *image.positions.size)  # of one channel
    key = (shape, *sorted(how.items()))
    taps, size = _resized.get((image.positions.nearest,), key, lambda sets: _find_resized(*sets, shape, how))
    return image.with_every_row(join_rows([image.rows], [taps], image.batch), size)


def _find_resized(nearest: Tensor, shape: tuple[int, ...], how: dict) -> tuple[Tensor, tuple[int, int]]:
    """(rows int32 [windows], output size), as torch resizes a map [..., H, W] of the numbers of the positions."""
    index = torch.arange(nearest.numel(), dtype=torch.float64, device="cpu")  # exact up to 2**53
    found = F.interpolate(index.view(shape), **how)
    return nearest[found.flatten().long().to(nearest.device)], (found.shape[-2], found.shape[-1])


def stand_ins(image: Compact) -> Tensor | None:
    """The row that stands for each position; None: its own."""
    nearest = image.positions.nearest
    return None if nearest is every_position(*image.positions.size).nearest else nearest


def avg_pool(
    value: Compact,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """nn.AvgPool2d (ceil_mode=False) of the interpolated map, which is never made; [N, C, H', W'] channels_last."""
    taps, inside, size = _pool_taps(value.positions, kernel, stride, padding, (1, 1), False)
    rows = value.images
    count = inside.sum(0) if not count_include_pad else torch.full_like(taps[0], kernel[0] * kernel[1])
    weights = inside.to(rows.dtype) / (count if divisor is None else divisor)
    out = rows.new_zeros(value.batch, taps.shape[1], rows.shape[2])
    for tap, weight in zip(taps, weights):
        out.addcmul_(rows.index_select(1, tap), weight[:, None])
    return value.leave(out.view(value.batch, *size, rows.shape[2]).permute(0, 3, 1, 2))


def mean_pool(
    value: Compact | Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
    meaning: Source,
) -> Compact | Tensor:
    """nn.AvgPool2d of a map in bytes, in bytes that stand for the same: for what `meaning` says. Floats of floats."""
    if isinstance(value, Tensor) or value.rows.dtype is not torch.uint8:
        image = value if isinstance(value, Tensor) else to_dense(value)
        return F.avg_pool2d(image, kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    window = (value.positions.size, kernel, stride, padding, (1, 1), ceil_mode)
    key = (window, count_include_pad, divisor)
    taps, share, out = _means.get((value.positions.nearest,), key, lambda sets: _shares(*sets, *key))
    rows = mean_rows(value.rows, taps, share, meant(meaning).zero_point, value.batch)
    return value.with_every_row(rows, out)


def _shares(nearest: Tensor, window: tuple, count_include_pad: bool, divisor: int | None) -> tuple:
    """(rows int32 [taps, windows], -1 outside the map; float32 [windows], 1 over the divisors; output size)."""
    rows, inside, size = _find_pool_taps(nearest, *window)
    count = inside.sum(0).double()
    if divisor is not None or count_include_pad:
        count.fill_(divisor or len(inside))
    return torch.where(inside, rows, -1), (1 / count).float(), size


def pool_call(pool: Pool, source: object) -> tuple[Callable, tuple]:
    """(function, arguments) of a pooling that reads `source` in this form."""
    kernel, stride, padding, ceil_mode = pool.window
    if pool.kind == "max":
        return max_pool, (source, kernel, stride, padding, pool.dilation, ceil_mode)
    return avg_pool, (source, kernel, stride, padding, pool.count_include_pad, pool.divisor)


def _pool_taps(positions, kernel, stride, padding, dilation, ceil_mode) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """(rows int32 [taps, windows], inside bool [taps, windows], output size) of a pooling that reads through the map.

    A tap outside the map repeats one that its window has inside: the maximum does not notice, the mean masks it.
    """
    size = (positions.height, positions.width)
    window = (size, kernel, stride, padding, dilation, ceil_mode)
    return _taps.get((positions.nearest,), window, lambda sets: _find_pool_taps(*sets, *window))


def _find_pool_taps(nearest, size, kernel, stride, padding, dilation, ceil_mode):
    sides = [
        side for i in range(2) for side in _sides(size[i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode)
    ]
    out = [
        (size[i] + sides[2 * i] + sides[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    taps = tap_map(size, kernel, stride, tuple(sides), dilation).T.contiguous()
    inside = taps >= 0
    rows = nearest.cpu()[torch.where(inside, taps, taps.amax(0))]
    return rows.to(nearest.device), inside.to(nearest.device), (out[0], out[1])


def _sides(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> tuple[int, int]:
    """Padding before and after along one axis, the latter so that rounding down gives PyTorch's output size."""
    spare = size + 2 * padding - dilation * (kernel - 1) - 1
    rest = -spare % stride
    starts_inside = (spare + rest) // stride * stride < size + padding
    return padding, padding + (rest if ceil_mode and starts_inside else 0)
