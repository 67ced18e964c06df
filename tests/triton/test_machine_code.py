"""Every kernel and config compiled for four GPUs: spills, tensor-core instructions, width of copies, shared memory.

The compilers inside triton's wheel (ptxas, LLVM) need no GPU. What the bars must catch is planted at the end.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from accel.kernels.geometry import CallGeometry
from accel.kernels.positions import PositionSet
from accel.kernels.triton import launch
from accel.kernels.triton.perforated_conv2d import perforated_conv2d
from accel.profiling.kernel_catalogue import launches
from accel.profiling.machine_code import Code, read
from accel.profiling.pretend_gpu import SHARED_LIMIT, TARGETS, Compiled, pretend_gpu

DOT = ("gather_gemm", "gather_gemm_weight")
# Kernels that move whole rows of activations, gradients and fitted weights.
ROWS = {"interpolate_rows", "interpolate_fitted_rows", "sum_segments", "sum_readers", "sum_tiles", "step"}
ROWS |= {"largest_rows", "deviations"}
OTHERS = {"count_active", "place_active", "select_highest", "sum_ponder", "step_backward", "step_backward_state"}
# The opcode that must carry the products, of half precision and of tf32: mma.sync, wgmma, tcgen05, MFMA.
OPCODE = {
    2: {"sm80": "HMMA.16816", "sm90": "HGMMA", "sm100": "UTCHMMA", "gfx942": "v_mfma"},
    4: {"sm80": "HMMA.1688.F32.TF32", "sm90": "HGMMA", "sm100": "UTCHMMA", "gfx942": "v_mfma"},
}
# Copies of both operands of an iteration that are in shared memory at once, with the stages of the tile lists.
BUFFERS = {"sm80": 2, "sm90": 3, "sm100": 3, "gfx942": 1}


def compiled(target: str, dtype: torch.dtype, ops) -> list[Compiled]:
    calls = launches(dtype)
    with pretend_gpu(target) as record:
        for op in ops:
            calls[op]()
    return record.kernels


def check(kernel: Compiled) -> Code:
    """The bars of every kernel."""
    code = read(kernel)
    assert code.spills == 0, f"{kernel.name} spills"
    assert code.shared <= SHARED_LIMIT[kernel.target] and code.blocks >= 1
    if kernel.name in ROWS:
        assert 16 in code.loads and not code.loads.keys() & {1, 2}, f"{kernel.name} loads element by element"
    return code


def check_matrix(kernel: Compiled, size: int = 2) -> None:
    """The bars of a matrix kernel whose operands have `size` bytes an element."""
    code, tile = check(kernel), kernel.constants
    assert code.tensor_ops, "no tensor-core instruction"
    assert all(op.startswith(OPCODE[size][kernel.target]) for op in code.tensor_ops)
    assert not code.loads.keys() & {1, 2}, "operands are loaded element by element"
    # bytes of both operands of an iteration: two of the tile's three areas
    rows, out, inner = tile["BLOCK_ROWS"], tile["BLOCK_OUT"], tile["BLOCK_IN"]
    operands = size * (inner * (rows + out) if kernel.name == "gather_gemm" else rows * (out + inner))
    lanes = code.warps * TARGETS[kernel.target].warp_size
    copied = (code.loop_loads or code.loads).get(16, 0) * 16 * lanes
    assert copied >= operands, "operands are copied in narrow loads"
    if size == 2:
        assert code.shared >= BUFFERS[kernel.target] * operands, "the pipeline has too few buffers"
    if code.tensor_flop:
        assert code.tensor_flop == 2 * rows * out * inner, "part of the product is not on tensor cores"
    if kernel.target == "gfx942":
        assert code.tensor_flop and any(op.startswith("ds_read") for op in code.loop), "the main loop was not found"


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_reaches_the_bars(target):
    # the backward of perforated_conv2d is the same two kernels: bfloat16, below, takes it
    ops = [op for op in launches(torch.float16) if op != "perforated_conv2d_backward"]
    kernels = compiled(target, torch.float16, ops)
    for kernel in kernels:
        check_matrix(kernel) if kernel.name in DOT else check(kernel)
    tiles = launch.matrix_tiles(target, "half", 128, 128)
    sides = {
        tuple(k.constants[s] for s in ("BLOCK_ROWS", "BLOCK_OUT", "BLOCK_IN")) for k in kernels if k.name == DOT[0]
    }
    assert sides == {tile[:3] for tile in tiles}, "a config was not compiled"
    assert {kernel.name for kernel in kernels} == ROWS | OTHERS | set(DOT) | {"_invert"}


@pytest.mark.parametrize("target", TARGETS)
def test_bfloat16_reaches_the_same_bars(target):
    kernels = compiled(target, torch.bfloat16, ["perforated_conv2d_backward"])
    assert {kernel.name for kernel in kernels} > set(DOT)
    for kernel in kernels:
        check_matrix(kernel) if kernel.name in DOT else check(kernel)


@pytest.fixture(params=["tf32", "ieee"])
def precision(request):
    with convolution_precision(request.param):
        yield request.param


@contextlib.contextmanager
def convolution_precision(setting: str):
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = setting
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("target", TARGETS)
def test_float32_does_not_spill(target, precision):
    for kernel in compiled(target, torch.float32, ["perforated_conv2d", "perforated_conv2d_backward"]):
        if kernel.name in DOT and precision == "tf32":
            check_matrix(kernel, size=4)
        else:
            check(kernel)


def one_layer(x, weight) -> None:
    here = PositionSet.full(*x.shape[2:])
    geometry = CallGeometry((len(x), *x.shape[2:]), x.shape[2:], (1, 1), (0, 0, 0, 0), (1, 1), 1)
    perforated_conv2d(x, weight, None, here.positions, here.nearest, None, None, geometry, "none", False)


def misaligned(monkeypatch):
    storage = torch.zeros(64 * 64 + 1, dtype=torch.float16)
    one_layer(storage[1:].view(1, 8, 8, 64).permute(0, 3, 1, 2), torch.zeros(64, 64, 1, 1, dtype=torch.float16))


def without_padding(monkeypatch):
    """12 channels are 24 bytes."""
    monkeypatch.setattr("accel.kernels.triton.gather_conv.align_channels", lambda rows, packed, groups: (rows, packed))
    one_layer(torch.zeros(1, 12, 8, 8, dtype=torch.float16), torch.zeros(64, 12, 1, 1, dtype=torch.float16))


def exact_float32(monkeypatch):
    with convolution_precision("ieee"):
        one_layer(torch.zeros(1, 64, 8, 8), torch.zeros(64, 64, 1, 1))


def large_tile(monkeypatch):
    plant_tiles(monkeypatch, launch.Tile(256, 128, 32, 4, 3))
    one_layer(torch.zeros(1, 128, 8, 8, dtype=torch.float16), torch.zeros(128, 128, 3, 3, dtype=torch.float16))


def few_stages(monkeypatch):
    plant_tiles(monkeypatch, launch.Tile(64, 64, 32, 4, 2))
    one_layer(torch.zeros(1, 128, 8, 8, dtype=torch.float16), torch.zeros(128, 128, 3, 3, dtype=torch.float16))


def plant_tiles(monkeypatch, tile):
    monkeypatch.setattr("accel.kernels.triton.gather_conv.matrix_tiles", lambda *_: (tile,))


@pytest.mark.parametrize(
    ("plant", "caught"),
    [
        (misaligned, "element by element"),
        (without_padding, "narrow loads"),
        (exact_float32, "no tensor-core"),
        (large_tile, "spills"),
        (few_stages, "too few buffers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_planted_regressions_are_caught(plant, caught, monkeypatch):
    with pretend_gpu("sm80") as record:
        plant(monkeypatch)
    with pytest.raises(AssertionError, match=caught):
        for kernel in record.kernels:
            check_matrix(kernel)
