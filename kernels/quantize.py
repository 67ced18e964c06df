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


def quantize(x: Tensor, inverse: float, zero_point: int) -> Tensor:
    """The nearest integers (halves to even) of x * inverse, plus zero_point, clamped to 0 to 255.

    Args:
        x: float32, of any shape.
        inverse: of the scale: how many steps make 1; rounded to fp32, as is the product.
        zero_point: 0 to 255.

    Returns:
        uint8, in the shape and the memory format of x.

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


def refuse_odd() -> None:
    """ValueError for what no byte stands for."""
    raise ValueError("quantize: x holds a NaN or an infinity, which no byte stands for")


define(
    "quantize",
    "(Tensor x, float inverse, int zero_point) -> Tensor",
    lambda x, inverse, zero_point: torch.empty_like(x, dtype=torch.uint8),
)
_QUANTIZE = torch.ops.accel.quantize.default
