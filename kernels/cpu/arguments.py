"""How tensors become the addresses that the engine takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.cpu import _engine, record
from accel.kernels.quantize import pitch_of

record.check(_engine)
CPU = torch.device("cpu")  # said at every allocation, a string would cost a microsecond more
HUGE = 4 << 20  # bytes: ResNet-50 gains 5 % at batch 8 from huge pages in tensors of this size on
LARGE = 32 << 20  # bytes: from here on malloc gives what is freed back to the system


def require_float32(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and (tensor.dtype is not torch.float32 or not tensor.is_cpu):
            raise TypeError(
                f"the C engine takes float32 CPU tensors, got {tensor.dtype} of shape {tuple(tensor.shape)} on "
                f"{tensor.device}: convert it, or leave use_backend('cpu')"
            )


def pixels_first(x: Tensor) -> Tensor:
    """The same values with the channels of a pixel (or the columns of a row) contiguous."""
    return x.contiguous() if x.dim() == 2 else x.contiguous(memory_format=torch.channels_last)


def empty(
    shape: Sequence[int],
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """An uninitialised tensor, in huge pages where that pays; if large, in memory used before (see blocks.c)."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < LARGE:
        out = torch.empty(shape, dtype=dtype, device=CPU, memory_format=memory_format)
        if size >= HUGE:
            _engine.use_huge_pages(buffer=out.data_ptr(), bytes=out.nbytes)
        return out
    if memory_format is torch.channels_last:
        _, channels, height, width = shape
        strides = (channels * height * width, 1, channels * width, channels)
    else:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    memory = torch.frombuffer(_engine.block(size), dtype=dtype, count=count)
    out = torch.empty(0, dtype=dtype, device=CPU)
    return out.set_(memory.untyped_storage(), 0, shape, strides)  # an op, which a meter of memory sees


def filled_up(x: Tensor) -> Tensor | None:
    """A map as `accel.kernels.quantize.bytes_like` lays it out, with what lies between its pixels; None for another."""
    pitch = pitch_of(x)
    batch, _, height, width = x.shape if pitch else (0, 0, 0, 0)
    if not pitch or x.stride() != (height * width * pitch, 1, width * pitch, pitch):
        return None
    end = x.storage_offset() + batch * height * width * pitch
    return x.as_strided((batch, pitch, height, width), x.stride()) if end <= x.untyped_storage().nbytes() else None


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def invert(positions: Tensor, size: int) -> Tensor:
    """int32 [size]: the row that holds each flat position of a dynamic set, -1 where there is none."""
    positions = positions.contiguous()
    inverse = torch.empty(size, dtype=torch.int32, device=CPU)
    _engine.invert(positions=positions.data_ptr(), inverse=inverse.data_ptr(), rows=positions.numel(), size=size)
    return inverse
