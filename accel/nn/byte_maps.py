"""What happens to maps between layers in eight bits, on their bytes: bilinear resizing, sums, joins of maps whose bytes
stand for different numbers, bounds, and the way back to numbers.

Every function takes floats as well, such as those of `accel.nn.quantized.floating`, and then does what the model says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.kernels.caches import IdentityCache
from accel.kernels.join_rows import join_rows
from accel.kernels.mean_rows import MOST_TAPS, mean_rows
from accel.kernels.quantization import Affine, Rescaling
from accel.kernels.reference.activation import activate
from accel.kernels.sum_rows import sum_rows
from accel.nn.compact import Compact, handed_over, stand_ins, to_dense
from accel.nn.quantized import Source, as_numbers, bounds_of, meant

_blends, _wholes = IdentityCache(), IdentityCache()
Map = Compact | Tensor


def is_in_bytes(value: object) -> bool:
    """Whether another layer in eight bits handed the value over."""
    return isinstance(value, Compact) and value.rows.dtype is torch.uint8


def numbers(value: Map, source: Source) -> Tensor:
    """What a map in bytes stands for, in fp32, as a map."""
    if not is_in_bytes(value):
        return to_dense(value) if isinstance(value, Compact) else value
    image = value if stand_ins(value) is None else value.with_every_row(_read(value), value.positions.size)
    return value.leave(as_numbers(image.as_image(), meant(source)))


def _read(value: Compact) -> Tensor:
    """A row for every position."""
    return join_rows([value.rows], [stand_ins(value)], value.batch)


def _as_bytes(value: Map, of: Affine) -> Compact:
    """The value, in bytes that stand for what `of` says if it is of numbers."""
    if is_in_bytes(value):
        return value
    image = to_dense(value) if isinstance(value, Compact) else value
    batched = image.dim() == 4
    made = handed_over(of.quantize((image if batched else image[None]).contiguous(memory_format=torch.channels_last)))
    return made if batched else Compact(made.rows, made.positions, 1, False)


def blend(value: Map, source: Source, **how: object) -> Map:
    """F.interpolate, bilinear; how: its arguments but the first. Bytes in and out stand for the same."""
    if not is_in_bytes(value):
        return F.interpolate(numbers(value, source), **how)
    shape = (*[1] * (1 + value.batched), *value.positions.size)
    key = (shape, *sorted(how.items()))
    taps, shares, size = _blends.get((value.positions.nearest,), key, lambda sets: _find_blend(*sets, shape, how))
    rows = mean_rows(value.rows, taps, shares, meant(source).zero_point, value.batch)
    return value.with_every_row(rows, size)


def _find_blend(nearest: Tensor, shape: tuple[int, ...], how: dict) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """(rows int32 [4, windows], their weights float32 [4, windows], output size), as torch blends a map [..., H, W]."""
    out = F.interpolate(torch.empty(shape, dtype=torch.float32, device="meta"), **how).shape[-2:]
    axes = [_find_axis(shape[axis], axis, how) for axis in (-2, -1)]
    (rows, row_shares), (columns, column_shares) = axes
    taps = rows[:, None, :, None] * shape[-1] + columns[None, :, None, :]
    shares = row_shares[:, None, :, None] * column_shares[None, :, None, :]
    taps = nearest.cpu()[taps.reshape(4, -1)]
    return taps.to(nearest.device), shares.reshape(4, -1).to(nearest.device), (out[0], out[1])


def _find_axis(size: int, axis: int, how: dict) -> tuple[Tensor, Tensor]:
    """(the two places int64 [2, out] that each one on an axis is made of, their weights float32 [2, out])."""
    ours = {name: value[axis] if isinstance(value, (tuple, list)) else value for name, value in how.items()}
    unit = torch.eye(size, dtype=torch.float32, device="cpu")
    found = F.interpolate(unit[None], **{**ours, "mode": "linear"})[0]  # of every place a column
    shares, places = found.topk(min(2, size), dim=0)
    order = places.argsort(0)  # the sums of bytes go up
    shares, places = shares.gather(0, order), places.gather(0, order)
    return (places, shares) if size > 1 else (places.repeat(2, 1), F.pad(shares, (0, 0, 0, 1)))


def mean(value: Map, source: Source) -> Map:
    """The mean of the whole map, [N, C, 1, 1]; bytes in and out stand for the same."""
    if not is_in_bytes(value) or value.positions.height * value.positions.width > MOST_TAPS:
        image = numbers(value, source)
        return image.mean((-2, -1), keepdim=True)
    taps, share = _wholes.get((value.positions.nearest,), (), lambda sets: _whole(*sets))
    return value.with_every_row(mean_rows(value.rows, taps, share, meant(source).zero_point, value.batch), (1, 1))


def _whole(nearest: Tensor) -> tuple[Tensor, Tensor]:
    share = torch.tensor([1 / nearest.numel()], dtype=torch.float32, device=nearest.device)
    return nearest[:, None].clone(), share


def bounded(value: Map, source: Source, activation: str) -> Map:
    """One of `BYTE_ACTIVATIONS`; bytes in and out stand for the same."""
    if not is_in_bytes(value):
        return activate(numbers(value, source), activation)
    of = meant(source)
    rescaling = Rescaling.of([of], of, bounds_of(of, activation))
    return value.with_rows(join_rows([value.rows], [None], value.batch, rescaling))


def join(values: Sequence[Map], dim: int, sources: Sequence[Source], out: Source) -> Map:
    """torch.cat of maps in dimension 1 or -3, in bytes that stand for what `out` says; sources: of the maps."""
    if not any(map(is_in_bytes, values)):
        return torch.cat([numbers(value, out) for value in values], dim)
    to, of = meant(out), [meant(source) for source in sources]
    images = [_as_bytes(value, each) for value, each in zip(values, of)]
    first, sizes = images[0], [image.positions.size for image in images]
    if len({*sizes}) > 1 or (dim == 1 and not first.batched):
        raise ValueError(f"channels of maps of one size can be joined, got dimension {dim} of maps {sizes}")
    taps = list(map(stand_ins, images))
    rows = join_rows([image.rows for image in images], taps, first.batch, Rescaling.of(of, to))
    return first.with_every_row(rows, sizes[0])


def add(
    first: Map,
    second: Map,
    activation: str = "none",
    sources: Sequence[Source] | None = None,
    out: Source = None,
) -> Map:
    """activation(first + second), one of `BYTE_ACTIVATIONS`, in bytes that stand for what `out` says; sources: of the
    two. Without sources, and of maps of two sizes, floats."""
    values = (first, second)
    if sources is None or not any(map(is_in_bytes, values)) or len({_shape(value) for value in values}) > 1:
        one, other = values if sources is None else map(numbers, values, sources)
        return activate(one + other, activation)
    of, to = [meant(source) for source in sources], meant(out)
    one, other = map(_as_bytes, values, of)
    rescaling = Rescaling.of(of, to, bounds_of(to, activation))
    rows = sum_rows(one.rows, other.rows, stand_ins(one), stand_ins(other), one.batch, rescaling)
    return one.with_every_row(rows, one.positions.size)


def _shape(value: Map | float) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, (Compact, Tensor)) else ()
