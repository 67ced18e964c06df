"""quantize: numbers to the bytes that stand for them.

| backward | dtypes           | layouts                        | granularity | limits      |
|----------|------------------|--------------------------------|-------------|-------------|
| none     | float32 to uint8 | any map or rows, kept as it is | element     | CPU tensors |

Jacob et al. 2017, arXiv 1712.05877, eq. 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.dispatch import define, implementation, is_direct

FOUR = 4  # bytes that a lane of the engine multiplies
MOST_PITCH = 16  # bytes of a pixel that is filled up to fours: of wider ones the last few are no more than a fifth


def quantize(x: Tensor, inverse: float, zero_point: int) -> Tensor:
    """The nearest integers (halves to even) of x * inverse, plus zero_point, clamped to 0 to 255.

    Args:
        x: float32, of any shape.
        inverse: of the scale: how many steps make 1; rounded to fp32, as is the product.
        zero_point: 0 to 255.

    Returns:
        uint8, in the shape and the memory format of x; see `bytes_like`.

    Raises:
        ValueError: a NaN or an infinity, which no byte stands for; a tensor that is not on the CPU. TypeError: another
            dtype.
    """
    if x.dtype is not torch.float32:
        raise TypeError(f"quantize: x must be float32, got {x.dtype}: convert it")
    if x.device.type not in ("cpu", "meta"):
        raise ValueError(f"quantize: runs on CPU tensors, got x on {x.device}: move it with .to('cpu')")
    run = implementation("quantize", x) if is_direct(x) and not x.is_meta else _QUANTIZE
    return run(x, inverse, zero_point)


def bytes_like(x: Tensor) -> Tensor:
    """Uninitialised bytes in the shape and the memory format of x. Pixels of a channels_last map of few channels
    begin at multiples of 4 bytes: the engine multiplies by fours, and a picture of three channels would be read byte by
    byte (64 filters of 7x7 took 1.4 times as long)."""
    pitch = pitch_of(x)
    if not pitch or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x, dtype=torch.uint8)
    batch, channels, *size = x.shape
    return x.new_empty(batch, *size, pitch, dtype=torch.uint8)[..., :channels].permute(0, 3, 1, 2)


def pitch_of(x: Tensor) -> int:
    """The bytes from pixel to pixel of the bytes of a map of few channels, 0 where there is nothing between them."""
    few = x.dim() == 4 and x.shape[1] < MOST_PITCH and x.shape[1] % FOUR
    return -(-x.shape[1] // FOUR) * FOUR if few else 0


def refuse_odd() -> None:
    """ValueError for what no byte stands for."""
    raise ValueError("quantize: x holds a NaN or an infinity, which no byte stands for")


define(
    "quantize",
    "(Tensor x, float inverse, int zero_point) -> Tensor",
    lambda x, inverse, zero_point: bytes_like(x),
)
_QUANTIZE = torch.ops.accel.quantize.default
