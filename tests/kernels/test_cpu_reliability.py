"""The C engine under guard pages, several Python threads, changed thread counts and forked children."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import sys

import pytest
import torch
import torch.nn.functional as F

binding = pytest.importorskip("accel.kernels.cpu.binding", reason="the C engine was not built", exc_type=ImportError)

from accel.kernels.cpu import bf16  # noqa: E402
from accel.kernels.geometry import CallGeometry  # noqa: E402
from accel.kernels.positions import PositionSet, output_size  # noqa: E402
from accel.kernels.quantization import Levels  # noqa: E402
from accel.tests.threads import in_threads  # noqa: E402

PAGE = mmap.PAGESIZE
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses mprotect and fork of Linux")


class Guarded:
    """Memory between two pages that may not be touched: a tensor put at its end or start faults when overrun."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.maps = []

    def __call__(self, tensor: torch.Tensor, at_end: bool = True) -> torch.Tensor:
        """A copy of a dense tensor (its own memory order) that touches the guard page behind or before it."""
        body = -(-max(tensor.nbytes, 1) // PAGE) * PAGE
        memory = mmap.mmap(-1, body + 2 * PAGE)
        self.maps.append(memory)
        first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (first, first + PAGE + body):
            if self.libc.mprotect(ctypes.c_void_p(page), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        offset = PAGE + (body - tensor.nbytes if at_end else 0)
        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
        out = flat.as_strided(tensor.shape, tensor.stride())
        return out.copy_(tensor)


def problem(c: int, k: int, groups: int, kernel: int, size: int = 7, seed: int = 0):
    """(x, weight, bias, residual, positions, geometry): a checkerboard, each other position filled from its left."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, c, size, size, generator=g).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(k, c // groups, kernel, kernel, generator=g)
    pad = kernel // 2
    geometry = ((1, 1), (pad,) * 4, (1, 1), groups)
    out_size = output_size((size, size), (kernel, kernel), (1, 1), (pad,) * 4, (1, 1))
    flat = torch.arange(out_size[0] * out_size[1], dtype=torch.int32)
    where = PositionSet(flat[::2].clone(), flat // 2, *out_size)
    residual = torch.randn(2, k, *out_size, generator=g).contiguous(memory_format=torch.channels_last)
    return x, weight, torch.randn(k, generator=g), residual, where, geometry


def run(x, weight, bias, residual, where: PositionSet, geometry, compact: bool = False, precision: str = "fp32"):
    geometry = CallGeometry((x.shape[0], *x.shape[2:]), (where.height, where.width), *geometry)
    sets = (where.positions, where.nearest, None)
    return binding.perforated_conv2d(x, weight, bias, *sets, residual, geometry, "relu", compact, precision)


SHAPES = [
    (16, 64, 1, 3),
    (5, 19, 1, 3),
    (3, 8, 1, 3),
    (21, 21, 21, 3),
    (70, 70, 70, 5, 15),
    (12, 20, 4, 3),
    (70, 33, 1, 1),
]


@needs_linux
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
def test_forward_stays_inside_its_inputs(isa, shape, at_end):
    guard = Guarded()
    x, weight, bias, residual, where, geometry = problem(*shape)
    expected = run(x, weight, bias, residual, where, geometry)
    fenced = PositionSet(guard(where.positions, at_end), guard(where.nearest, at_end), where.height, where.width)
    tensors = [guard(tensor, at_end) for tensor in (x, weight, bias, residual)]
    assert torch.equal(run(*tensors, fenced, geometry), expected)


@needs_linux
@pytest.mark.parametrize("shape", [*SHAPES, (33, 19, 1, 3), (66, 70, 1, 1), (9, 6, 3, 3)], ids=str)
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
def test_bytes_stay_inside_their_inputs(isa, shape, at_end):
    guard = Guarded()
    *_, where, geometry = problem(*shape)
    c, k, groups, kernel, *size = shape
    size, g = size[0] if size else 7, torch.Generator().manual_seed(0)
    x = torch.randint(256, (2, c, size, size), generator=g, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (k, c // groups, kernel, kernel), generator=g, dtype=torch.int8)
    residual = torch.randint(256, (2, k, where.height, where.width), generator=g, dtype=torch.uint8)
    x, residual = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, residual))
    whole = CallGeometry((2, size, size), (where.height, where.width), *geometry)

    def run(x, weight, offset, multiplier, residual, where):
        sets, levels = (where.positions, where.nearest, None), Levels(3, 5, 0, 255, 7, 0.5)
        return binding.quantized_conv2d(
            x, weight, offset, *sets, residual, whole, "none", False, multiplier, *levels
        ).clone()

    tensors = [x, weight, torch.randn(k, generator=g), torch.rand(k, generator=g) / 99, residual]
    expected = run(*tensors, where)
    fenced = PositionSet(guard(where.positions, at_end), guard(where.nearest, at_end), where.height, where.width)
    assert torch.equal(run(*(guard(tensor, at_end) for tensor in tensors), fenced), expected)


@needs_linux
@pytest.mark.parametrize("shape", [*SHAPES, (33, 19, 1, 3), (66, 70, 1, 1), (9, 6, 3, 3)], ids=str)
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
def test_bf16_stays_inside_its_inputs_and_what_they_are_rounded_to(isa, shape, at_end, monkeypatch):
    guard = Guarded()
    x, weight, bias, residual, where, geometry = problem(*shape)
    expected = run(x, weight, bias, residual, where, geometry, precision="bf16")
    fenced = PositionSet(guard(where.positions, at_end), guard(where.nearest, at_end), where.height, where.width)
    tensors = [guard(tensor, at_end) for tensor in (x, weight, bias, residual)]
    monkeypatch.setattr(bf16, "empty", lambda shape, dtype: guard(torch.zeros(shape, dtype=dtype), at_end))
    assert torch.equal(run(*tensors, fenced, geometry, precision="bf16"), expected)


@needs_linux
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward_stays_inside_its_inputs(isa, shape):
    guard = Guarded()
    x, weight, _, _, where, geometry = problem(*shape)
    grad = torch.randn(2 * len(where), weight.shape[0], generator=torch.Generator().manual_seed(1))

    def gradients(grad, x, weight, positions):
        whole = CallGeometry((2, *x.shape[2:]), (where.height, where.width), *geometry)
        return binding.perforated_conv2d_backward(grad, x, weight, positions, None, whole)

    expected = gradients(grad, x, weight, where.positions)
    got = gradients(*(guard(tensor) for tensor in (grad, x, weight, where.positions)))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@needs_linux
def test_dynamic_sets_stay_inside_their_inputs(isa):
    guard = Guarded()
    x, weight, bias, residual, _, geometry = problem(16, 24, 1, 3)
    mask = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    wide, wide_counts = binding.active_positions(guard(mask), 1)
    positions, counts = binding.active_positions(guard(mask), 0)
    first = (guard(wide), wide_counts, None)
    second = (guard(positions), counts, guard(wide))
    geometry = (CallGeometry((2, 7, 7), (7, 7), *geometry), "relu")
    rows = binding.masked_conv2d(guard(x), guard(weight), guard(bias), *first, None, *geometry)
    again = torch.randn(24, 24, 3, 3, generator=torch.Generator().manual_seed(3))
    got = binding.masked_conv2d(guard(rows), guard(again), None, *second, guard(residual), *geometry)
    hidden = F.relu(F.conv2d(x, weight, bias, padding=1))
    expected = torch.where(mask[:, None], F.relu(F.conv2d(hidden, again, padding=1) + residual), residual)
    assert (got - expected).norm() < 1e-5 * expected.norm()


@needs_linux
def test_few_channels_in_any_layout_stay_inside(isa):
    guard = Guarded()
    x, weight, bias, residual, where, geometry = problem(3, 8, 1, 3)
    expected = run(x, weight, bias, residual, where, geometry)
    for layout in (torch.contiguous_format, torch.channels_last):
        fenced = guard(x.contiguous(memory_format=layout))
        assert torch.equal(run(fenced, weight, bias, residual, where, geometry), expected)


def test_several_python_threads_at_once():
    problems = [problem(16 + i, 32 + i, 1, 3, size=20, seed=i) for i in range(4)]
    expected = [run(*p) for p in problems]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(run(*problems[i]), expected[i]):
                wrong.append(i)

    in_threads(work, ((i,) for i in range(4)))
    assert not wrong


def in_bytes(out: torch.Tensor) -> bytes:
    """The values, without an op of torch: in a forked child its own parallel loops hang."""
    return out.permute(0, 2, 3, 1).numpy().tobytes()


def _work_in_child(queue, arguments) -> None:
    queue.put(in_bytes(run(*arguments)))


@needs_linux
def test_a_forked_child_computes_alone():
    """libgomp's threads do not survive a fork: a child that asked for them would hang."""
    arguments = problem(32, 64, 1, 3, size=28)
    expected = in_bytes(run(*arguments))  # the parent's pool is running when it forks
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_work_in_child, args=(queue, arguments))
    child.start()
    try:
        assert queue.get(timeout=30) == expected
    finally:
        child.join(timeout=10)
        child.kill()
    assert child.exitcode == 0


@pytest.mark.parametrize("shape", [(24, 40, 1, 3), (9, 70, 1, 1), (12, 12, 12, 3)], ids=str)
def test_gradients_do_not_depend_on_the_thread_count(isa, shape):
    x, weight, _, _, where, geometry = problem(*shape, size=13)
    grad = torch.randn(2 * len(where), weight.shape[0], generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            whole = CallGeometry((2, 13, 13), (where.height, where.width), *geometry)
            results.append(binding.perforated_conv2d_backward(grad, x, weight, where.positions, None, whole))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
