"""What every Triton launcher shares: the target at hand, tile lists per target, cached tuners, checks of its input.

A target is a family of cards that likes the same tiles: sm80 (compute capability 8.x and 12.x: HMMA, cp.async), sm90
(wgmma), sm100 (tcgen05), gfx942 (MFMA, 64 KiB of LDS); `interpreter` is TRITON_INTERPRET=1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.driver import driver

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Tile(NamedTuple):
    """One config of a matrix kernel: rows x output channels x reduction block, warps, pipeline stages."""

    rows: int
    out: int
    inner: int
    warps: int
    stages: int


_FROM_SM90 = (Tile(64, 64, 64, 4, 3), Tile(128, 64, 64, 4, 3), Tile(128, 128, 64, 8, 3))
# Each tile compiles without spills and with its operands copied 16 bytes at a time on its target (128 x 256 spills
# where it interpolates, and so does 256 x 128 with triton 3.9). The small ones serve the few rows of deep layers; from
# sm90 on, gathers are bound by L2, which the large one reads least. gfx942 keeps a stage's operands in 64 KiB; its
# second stage is in registers.
TILES = {
    "half": {
        "sm80": (Tile(64, 64, 32, 4, 3), Tile(128, 64, 64, 4, 3), Tile(128, 128, 32, 8, 4)),
        "sm90": _FROM_SM90,
        "sm100": _FROM_SM90,
        "gfx942": (Tile(64, 64, 32, 4, 2), Tile(128, 64, 32, 4, 2), Tile(128, 128, 32, 8, 2)),
    },
    "tf32": {
        "sm80": (Tile(64, 64, 32, 4, 3), Tile(128, 64, 32, 4, 3)),
        "sm90": (Tile(64, 64, 32, 4, 3), Tile(128, 64, 32, 4, 3)),
        "sm100": (Tile(128, 64, 16, 4, 3), Tile(128, 64, 32, 4, 3)),  # 64 rows spill
        "gfx942": (Tile(64, 64, 16, 4, 2), Tile(128, 64, 16, 4, 2)),
    },
    # No tensor cores. More than 16 inner values per iteration spill on sm80, and 64 x 64 tiles do in places.
    "ieee": {
        "sm80": (Tile(64, 32, 16, 4, 3), Tile(128, 64, 16, 4, 3)),
        "sm90": (Tile(64, 32, 16, 4, 3), Tile(128, 64, 16, 4, 3)),
        "sm100": (Tile(64, 32, 16, 4, 3), Tile(128, 64, 16, 4, 3)),
        "gfx942": (Tile(64, 64, 16, 4, 2), Tile(128, 64, 16, 4, 2)),
    },
}
# numpy works on whole tiles: a launch costs about 2 ms per program and inner iteration, whatever the tile
INTERPRETED = Tile(128, 64, 64, 4, 2)
MIN_BLOCK, MAX_BLOCK = 16, 256  # tl.dot takes no smaller side; no list has a larger one


def target() -> str:
    """The family of the current device."""
    if triton.knobs.runtime.interpret:
        return "interpreter"
    current = driver.active.get_current_target()
    if current.backend == "hip":
        return "gfx942"
    major = int(current.arch) // 10
    # consumer Blackwell (12.x) has neither wgmma nor tcgen05 and 99 KiB of shared memory, like 8.6 and 8.9
    return {9: "sm90", 10: "sm100"}.get(major, "sm80")


def arithmetic(dtype: torch.dtype) -> str:
    """The family of tiles that a dtype uses now: half, tf32 or ieee."""
    return conv_precision(dtype) if dtype == torch.float32 else "half"


def matrix_tiles(where: str, family: str, out_channels: int, in_channels: int) -> tuple[Tile, ...]:
    """The forward tiles of `where` worth trying for a layer: none wider than its channels, no two alike."""
    tiles = (INTERPRETED,) if where == "interpreter" else TILES[family][where]
    return clip(tiles, Tile(MAX_BLOCK, fitting_block(out_channels), fitting_block(in_channels), 8, 8))


def fitting_block(channels: int) -> int:
    return max(MIN_BLOCK, triton.next_power_of_2(channels))


def clip(tiles: Iterable[Tile], widest: Tile) -> tuple[Tile, ...]:
    """The tiles with no field above that of `widest`, each once."""
    return tuple(dict.fromkeys(Tile(*map(min, tile, widest)) for tile in tiles))


def copy_block(channels: int) -> tuple[int, int]:
    """(positions, channels) of a kernel that moves rows: 4096 elements, 16 to 32 bytes a thread with 4 warps."""
    width = min(64, triton.next_power_of_2(channels))
    return 4096 // width, width


@functools.cache
def tuner(kernel: Any, key: tuple[str, ...], where: str, tiles: tuple[Tile, ...], names: tuple[str, str, str]) -> Any:
    """`kernel` behind triton's autotuner over `tiles`, whose sides it calls `names`; one object a target `where`.

    The key holds constexpr arguments only, never batch, height, width or the number of positions: a network whose
    input size changes must not tune again. Results also go to triton's cache folder.
    """
    configs = [triton.Config(dict(zip(names, t[:3])), num_warps=t.warps, num_stages=t.stages) for t in tiles]
    return triton.autotune(configs, key=list(key), cache_results=True)(kernel)


def conv_precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot for this dtype: torch's convolution setting decides for float32."""
    if dtype != torch.float32:
        return "ieee"
    chain = (getattr(torch.backends.cudnn, "conv", None), torch.backends.cudnn, torch.backends)
    settings = [getattr(level, "fp32_precision", None) for level in chain]
    if settings[0] is None:  # torch before 2.9
        return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    return "tf32" if next((s for s in settings if s != "none"), "ieee") == "tf32" else "ieee"


def check_dtype(op: str, *tensors: Tensor | None) -> None:
    """Raise unless all given tensors share one dtype that the kernels take."""
    found = {t.dtype for t in tensors if t is not None}
    if len(found) != 1 or not found <= set(DTYPES):
        raise TypeError(
            f"{op} on the triton backend takes tensors of one dtype out of float16, bfloat16, float32, got "
            f"{sorted(map(str, found))}: cast them, or use_backend('reference')"
        )


def on_its_device(launcher: Callable) -> Callable:
    """`launcher` with the device of its first tensor made current: triton launches there, wherever the tensors are."""

    @functools.wraps(launcher)
    def launch(*args):
        first = next(argument for argument in args if isinstance(argument, Tensor))
        if not first.is_cuda:
            return launcher(*args)
        with torch.cuda.device(first.device):
            return launcher(*args)

    return launch


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def channels_last(x: Tensor) -> Tensor:
    """`x` [N, C, H, W] with its memory in NHWC order; no copy where it is already."""
    rows = x.permute(0, 2, 3, 1)
    return (rows if rows.is_contiguous() else rows.contiguous()).permute(0, 3, 1, 2)


def new_channels_last(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    """Uninitialised [N, C, H, W] in NHWC order."""
    return like.new_empty(n, h, w, c).permute(0, 3, 1, 2)
