"""Position sets: which output positions of a convolution are computed, and which one stands in for each of the others.

A *static* set (`PositionSet`) is built once and shared by every image of a batch. A *dynamic* set (`ActiveSet`) holds
positions per image, found from data. Both are plain int32 tensors plus sizes: every backend reads the same numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import weakref

import torch
from torch import Tensor

from accel.kernels.dispatch import is_direct

INT32_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class PositionSet:
    """A static position set on an output map of `height` x `width`.

    Attributes:
        positions: int32 [P], flat index y * width + x of each computed position, distinct, any order.
        nearest: int32 [height * width], for every position the row of `positions` that stands in for it.
        height, width: size of the output map.
    """

    positions: Tensor
    nearest: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        total = self.height * self.width
        if total > INT32_MAX:
            raise ValueError(f"a map of {self.height}x{self.width} has more positions than int32 can name: cut it up")
        for name, tensor in (("positions", self.positions), ("nearest", self.nearest)):
            if tensor.dtype != torch.int32 or tensor.dim() != 1:
                raise ValueError(
                    f"{name} must be a 1-D int32 tensor, got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        if not 1 <= self.positions.numel() <= total:
            raise ValueError(
                f"a set on {self.height}x{self.width} holds 1 to {total} positions, got {len(self.positions)}"
            )
        if self.nearest.numel() != total:
            raise ValueError(
                f"nearest must have {total} entries for {self.height}x{self.width}, got {len(self.nearest)}"
            )
        self._check_values()

    def _check_values(self) -> None:
        """The engine follows these numbers without looking: none may lead outside. Read where reading is free."""
        if torch.compiler.is_compiling() or any(
            type(tensor) is not Tensor or tensor.device.type != "cpu" for tensor in (self.positions, self.nearest)
        ):
            return
        for name, tensor, end in (
            ("positions", self.positions, self.height * self.width),
            ("nearest", self.nearest, len(self)),
        ):
            low, high = (int(bound) for bound in torch.aminmax(tensor))
            if low < 0 or high >= end:
                raise ValueError(f"{name} must hold 0 to {end - 1}, got {low} to {high}")

    def __len__(self) -> int:
        return self.positions.numel()

    @property
    def keep(self) -> float:
        """The fraction of positions that are computed."""
        return len(self) / (self.height * self.width)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def is_full(self) -> bool:
        return len(self) == self.height * self.width

    @functools.cached_property
    def segments(self) -> tuple[Tensor, Tensor]:
        """The adjoint of `nearest` as a CSR list: (int32 [P + 1] row starts, int32 [H * W] positions in row order)."""
        order = torch.argsort(self.nearest, stable=True)
        counts = torch.bincount(self.nearest.long(), minlength=len(self))
        starts = torch.zeros(len(self) + 1, dtype=torch.int32, device=self.nearest.device)
        starts[1:] = counts.cumsum(0)
        return starts, order.to(torch.int32)

    def to(self, device: torch.device | str) -> PositionSet:
        if self.positions.device == torch.device(device):
            return self
        return PositionSet(self.positions.to(device), self.nearest.to(device), self.height, self.width)

    @staticmethod
    def full(height: int, width: int) -> PositionSet:
        """Every position, each standing for itself: perforated convolution over it is the dense convolution."""
        identity = torch.arange(height * width, dtype=torch.int32, device="cpu")
        return PositionSet(identity, identity.clone(), height, width)


_full_sets: weakref.WeakValueDictionary[tuple[int, int], PositionSet] = weakref.WeakValueDictionary()


def every_position(height: int, width: int) -> PositionSet:
    """`PositionSet.full` on the CPU, one for all who ask while one of them keeps it; tracers get their own."""
    if not is_direct():
        return PositionSet.full(height, width)
    found = _full_sets.get((height, width))
    if found is None:
        with torch.inference_mode(False):  # an inference tensor kept here could not serve a later training step
            found = _full_sets[height, width] = PositionSet.full(height, width)
    return found


_alive: weakref.WeakValueDictionary[bytes, Tensor] = weakref.WeakValueDictionary()


def shared(found: PositionSet) -> PositionSet:
    """The set with the very tensor of positions that an equal one has, if one is kept anywhere.

    So layers share all that was worked out for these positions, though each breaks the ties of `nearest` its own way.
    """
    positions = found.positions
    if not is_direct() or type(positions) is not Tensor or positions.device.type != "cpu":
        return found
    digest = hashlib.sha256(repr(found.size).encode())
    digest.update(positions.contiguous().numpy())
    kept = _alive.setdefault(digest.digest(), positions)
    return found if kept is positions else dataclasses.replace(found, positions=kept)


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbors:
    """For every skipped position of a static set, the computed positions it is a weighted sum of.

    Skipped positions of one geometry (their neighbours lie at the same offsets) form a class and share weights.

    Attributes:
        skipped: int32 [F], flat index of each position that is not computed, class by class.
        rows: int32 [F, T], the rows of the set's `positions` that hold the T neighbours.
        starts: int32 [K + 1], class k holds the skipped positions starts[k] : starts[k + 1]; it may be empty.
    """

    skipped: Tensor
    rows: Tensor
    starts: Tensor

    def __post_init__(self) -> None:
        for name, dims in (("skipped", 1), ("rows", 2), ("starts", 1)):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int32 or tensor.dim() != dims:
                raise ValueError(
                    f"{name} must be a {dims}-D int32 tensor, got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        if len(self.rows) != len(self.skipped):
            raise ValueError(f"rows must list neighbours of {len(self.skipped)} positions, got {len(self.rows)}")
        if torch.compiler.is_compiling() or type(self.starts) is not Tensor or self.starts.device.type != "cpu":
            return
        ends = self.starts.tolist()
        if not ends or ends[0] != 0 or ends[-1] != len(self.skipped) or ends != sorted(ends):
            raise ValueError(f"starts must rise from 0 to {len(self.skipped)}, got {ends}")

    @property
    def classes(self) -> int:
        return len(self.starts) - 1

    def to(self, device: torch.device | str) -> Neighbors:
        if self.skipped.device == torch.device(device):
            return self
        return Neighbors(self.skipped.to(device), self.rows.to(device), self.starts.to(device))


@dataclasses.dataclass(frozen=True, eq=False)
class ActiveSet:
    """A dynamic position set: per image, the positions where something is computed.

    Attributes:
        positions: int32 [capacity], flat index n * H * W + y * W + x, ascending; entries at and after `total` are -1.
        counts: int32 [N], active positions of each image; stays on the device of the mask.
        batch, height, width: size of the map.
    """

    positions: Tensor
    counts: Tensor
    batch: int
    height: int
    width: int

    @property
    def total(self) -> int:
        """Number of active positions in the batch (copies one number from the device: never call it in a GPU op)."""
        return int(self.counts.sum())


def output_size(
    in_size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """Height and width of a convolution's output; `padding` is (top, bottom, left, right)."""
    top, bottom, left, right = padding
    height = (in_size[0] + top + bottom - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (in_size[1] + left + right - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    if height < 1 or width < 1 or in_size[0] < 1 or in_size[1] < 1:
        raise ValueError(
            f"a {kernel[0]}x{kernel[1]} kernel with stride {stride}, padding {padding} and dilation {dilation} "
            f"does not fit an input of {in_size[0]}x{in_size[1]}: give a larger input"
        )
    return height, width


def tap_map(
    in_size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    padding_mode: str = "zeros",
) -> Tensor:
    """For every output position and kernel tap, the flat input pixel it reads, or -1 for zero padding.

    Returns int32 [H_out * W_out, kh * kw]. `padding_mode` is one of nn.Conv2d's: zeros, reflect, replicate, circular;
    the non-zero modes only change this map, so that no padded copy of the input is ever made.
    """
    rows, cols = axis_taps(in_size, kernel, stride, padding, dilation, padding_mode)
    flat = rows[:, None, :, None] * in_size[1] + cols[None, :, None, :]
    outside = (rows < 0)[:, None, :, None] | (cols < 0)[None, :, None, :]
    return flat.masked_fill(outside, -1).reshape(len(rows) * len(cols), kernel[0] * kernel[1]).to(torch.int32)


def axis_taps(
    in_size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    padding_mode: str = "zeros",
) -> tuple[Tensor, Tensor]:
    """What `tap_map` is made of: int64 ([H_out, kh], [W_out, kw]), the input row, and column, of each tap, or -1."""
    out_size = output_size(in_size, kernel, stride, padding, dilation)
    if in_size[0] * in_size[1] > INT32_MAX:
        raise ValueError(f"an input of {in_size[0]}x{in_size[1]} has more pixels than int32 can name: cut it up")
    rows, cols = (
        _axis_taps(in_size[i], out_size[i], kernel[i], stride[i], padding[2 * i], dilation[i], padding_mode)
        for i in range(2)
    )
    return rows, cols


def _axis_taps(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int, mode: str) -> Tensor:
    """One axis of `tap_map`: int64 [out, kernel] input coordinates, -1 outside (zero padding only)."""
    starts, taps = torch.arange(out, device="cpu"), torch.arange(kernel, device="cpu")
    where = starts[:, None] * stride - pad + taps * dilation
    if mode == "zeros":
        return where.masked_fill((where < 0) | (where >= size), -1)
    if mode == "replicate":
        return where.clamp(0, size - 1)
    if mode == "circular":
        return where.remainder(size)
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        folded = where.remainder(period)
        return torch.where(folded < size, folded, period - folded)
    raise ValueError(f"padding_mode must be zeros, reflect, replicate or circular, got {mode!r}")
