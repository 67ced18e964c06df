"""Host side of the two matrix kernels: where rows come from and go to, packing, tile choice, launches.

The convolution ops and their gradients are all calls of `multiply` and `weight_gradient` with different `Rows`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.triton.gather_gemm import gather_gemm, gather_gemm_weight
from accel.kernels.triton.launch import (
    INTERPRETED,
    Tile,
    arithmetic,
    cdiv,
    clip,
    conv_precision,
    fitting_block,
    matrix_tiles,
    target,
    tuner,
)

ALIGNMENT = 16  # bytes of the widest load; every pixel and every weight tap must start on one
# Enough dW programs for two waves of the largest card (B200: 148 multiprocessors), but at least 512 rows in each.
WEIGHT_PROGRAMS, WEIGHT_ROWS = 296, 512
# dW adds its rows in blocks of one size per target and family, so that the tuner's choice cannot change the sums.
WEIGHT_ROWS_BLOCK = {
    "half": {"sm80": 32, "sm90": 64, "sm100": 64, "gfx942": 32},
    "tf32": {"sm80": 16, "sm90": 32, "sm100": 32, "gfx942": 16},
    "ieee": {"sm80": 16, "sm90": 16, "sm100": 16, "gfx942": 16},  # see TILES
}
INVERT_BLOCK = 1024
# What a tuned choice depends on, besides dtypes; constexprs all.
WEIGHT_TUNED_BY = ("C", "K", "GROUPS", "KERNEL", "STRIDE", "PRECISION")
TUNED_BY = (*WEIGHT_TUNED_BY, "TRANSPOSED", "STORE")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which rows a launch computes, and which rows of its input they read (see the head of `gather_gemm`)."""

    count: int  # rows, of a dynamic set its capacity
    in_size: Sequence[int]  # (H, W) of the map that taps read
    out_size: Sequence[int]  # (H, W) of the map that rows lie on
    positions: Tensor | None = None
    per_image: int = 1
    dynamic: bool = False
    source: Tensor | None = None
    source_rows: int = 0
    source_stride: int = 0

    def arguments(self) -> dict:
        return {
            "positions": self.positions,
            "source": self.source,
            "rows": self.count,
            "per_image": self.per_image,
            "in_h": self.in_size[0],
            "in_w": self.in_size[1],
            "out_h": self.out_size[0],
            "out_w": self.out_size[1],
            "source_rows": self.source_rows,
            "source_stride": self.source_stride,
        }


def taps(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    padding_mode: str = "zeros",
) -> dict:
    """The constexpr geometry of a convolution; `padding` is (top, bottom, left, right)."""
    return {
        "KERNEL": tuple(kernel),
        "STRIDE": tuple(stride),
        "PADDING": (padding[0], padding[2]),
        "DILATION": tuple(dilation),
        "PADDING_MODE": padding_mode,
    }


def pixel_rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N * H * W, C], without a copy from channels_last; rows stay as they are."""
    rows = x if x.dim() == 2 else x.permute(0, 2, 3, 1).flatten(0, 2)
    return rows.contiguous()


def pack_forward(weight: Tensor) -> Tensor:
    """[K, C / groups, kh, kw] -> [K, kh * kw, C / groups], without a copy from channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def pack_transposed(weight: Tensor, groups: int) -> Tensor:
    """[K, C / groups, kh, kw] -> [C, kh * kw, K / groups]: the weights as the gradient of the input reads them."""
    by_group = weight.unflatten(0, (groups, -1)).permute(0, 2, 3, 4, 1)
    return by_group.flatten(2, 3).flatten(0, 1).contiguous()


def align_channels(rows: Tensor, packed: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Zero channels appended to both where a pixel is no multiple of 16 bytes (a stem's 3 channels).

    Without them every element is a load of its own. Grouped layers stay as they are: their pixels interleave groups.
    """
    missing = -rows.shape[1] % (ALIGNMENT // rows.element_size())
    if groups > 1 or missing == 0:
        return rows, packed
    return F.pad(rows, (0, missing)), F.pad(packed, (0, missing))


def multiply(
    x: Tensor,
    weight: Tensor,
    rows: Rows,
    geometry: dict,
    out: Tensor,
    *,
    groups: int,
    store: str,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    segments: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
    activation: str = "none",
    transposed: bool = False,
) -> Tensor:
    """Launch `gather_gemm` on x, rows [R, C] or a map, and the weight of the convolution -> `out`, returned.

    `transposed`: x are gradients of the convolution's rows, and `out` is the gradient of its input.
    """
    if rows.count == 0:
        return out
    packed = pack_transposed(weight, groups) if transposed else pack_forward(weight)
    x, packed = align_channels(pixel_rows(x), packed, groups)
    k, c = packed.shape[0] // groups, packed.shape[2]
    where = target()
    tiles = matrix_tiles(where, arithmetic(x.dtype), k, c)
    kernel = tuner(gather_gemm, TUNED_BY, where, tiles, ("BLOCK_ROWS", "BLOCK_OUT", "BLOCK_IN"))
    kernel[lambda meta: (cdiv(rows.count, meta["BLOCK_ROWS"]) * groups * cdiv(k, meta["BLOCK_OUT"]),)](
        x=x,
        weight=packed,
        bias=bias,
        residual=residual,
        out=out,
        segment_starts=segments[0],
        segment_order=segments[1],
        C=c,
        K=k,
        GROUPS=groups,
        TRANSPOSED=transposed,
        DYNAMIC=rows.dynamic,
        ACTIVATION=activation,
        STORE=store,
        PRECISION=conv_precision(x.dtype),
        **rows.arguments(),
        **geometry,
    )
    return out


def weight_tiles(where: str, family: str, out_channels: int, in_channels: int) -> tuple[Tile, ...]:
    """As `matrix_tiles`; a tile's sides are output channels, input channels and the rows summed per iteration."""
    rows = INTERPRETED.rows if where == "interpreter" else WEIGHT_ROWS_BLOCK[family][where]
    stages = 2 if where == "gfx942" else 3
    if family == "tf32" and where in ("sm90", "sm100"):
        # wgmma and tcgen05 want float32 operands along the reduction, and dW's lie across it: copied asynchronously,
        # they would turn round 4 bytes at a time (sm90: 526 instructions for 32 rows); through registers it is 16 (364)
        stages = 1
    # a large tile halves the instructions per product: finding rows costs as much as multiplying 64 x 64 (sm90: 389 of
    # them a step against 128 clocks of wgmma)
    tiles = (Tile(64, 64, rows, 4, stages), Tile(128, 128, rows, 8, stages))[: 1 if where == "interpreter" else 2]
    return clip(tiles, Tile(fitting_block(out_channels), fitting_block(in_channels), rows, 8, 8))


def weight_gradient(
    x: Tensor, grad: Tensor, rows: Rows, geometry: dict, weight: Tensor, *, groups: int, total: Tensor | None = None
) -> Tensor:
    """dW, shaped like `weight`, from x, rows [R, C] or a map, and the gradients of the rows [rows, K].

    `total` counts the rows of a dynamic set.
    """
    if rows.count == 0:
        return torch.zeros_like(weight)
    shape = (weight.shape[0], *weight.shape[2:], weight.shape[1])
    x = pixel_rows(x)
    x, _ = align_channels(x, x, groups)
    k, c = weight.shape[0] // groups, x.shape[1] // groups
    count = math.prod(geometry["KERNEL"])
    programs = cdiv(k, 64) * cdiv(c, 64) * groups * count
    splits = max(1, min(cdiv(WEIGHT_PROGRAMS, programs), rows.count // WEIGHT_ROWS))
    partial = torch.empty(splits, weight.shape[0], count, c, dtype=torch.float32, device=x.device)
    where = target()
    tiles = weight_tiles(where, arithmetic(x.dtype), k, c)
    kernel = tuner(gather_gemm_weight, WEIGHT_TUNED_BY, where, tiles, ("BLOCK_OUT", "BLOCK_IN", "BLOCK_ROWS"))
    kernel[lambda meta: (cdiv(k, meta["BLOCK_OUT"]) * cdiv(c, meta["BLOCK_IN"]) * groups * count, splits)](
        x=x,
        grad=grad,
        partial=partial,
        total=total,
        splits=splits,
        C=c,
        K=k,
        GROUPS=groups,
        PRECISION=conv_precision(x.dtype),
        **rows.arguments(),
        **geometry,
    )
    summed = partial.sum(0)[..., : weight.shape[1]]
    return summed.to(weight.dtype).reshape(shape).permute(0, 3, 1, 2).contiguous()


@triton.jit(do_not_specialize=["count"])
def _invert(positions, inverse, count, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(positions + row, mask=row < count, other=-1)
    tl.store(inverse + position, row, mask=position >= 0)


def invert(positions: Tensor, size: int) -> Tensor:
    """int32 [size]: the index of every position in `positions` (distinct, or -1: unused), -1 where it is not there."""
    inverse = torch.full((size,), -1, dtype=torch.int32, device=positions.device)
    if len(positions):
        _invert[(cdiv(len(positions), INVERT_BLOCK),)](positions, inverse, len(positions), BLOCK=INVERT_BLOCK)
    return inverse
