"""The checks themselves: planted faults are found, right kernels pass, bf16 is exact, kernels compile afterwards."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from accel.profiling.pretend_gpu import pretend_gpu
from accel.tests.triton_tools.fake_gpu import fake_gpu
from accel.tests.triton_tools.interp_switch import interpret
from accel.tests.triton_tools.synchronisation import no_synchronisation


@triton.jit
def copy(x, y, n, shift, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i + shift, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def copy_unmasked(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n, other=0.0))


@triton.jit
def count_by_store(flags, out, total, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(total)
    tl.store(total, number + tl.sum(tl.load(flags + i), 0))


@triton.jit
def count_by_atomic(flags, out, total, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(total, tl.sum(tl.load(flags + i), 0))


@triton.jit
def scatter(x, index, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + tl.load(index + i), tl.load(x + i))


@triton.jit
def double_and_sum(x, y, total, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i)
    tl.store(y + i, value * value + value)
    tl.store(total, tl.sum(value, 0))


@pytest.mark.parametrize("shift", [-1, 1, 1 << 30])
def test_a_read_outside_every_tensor_is_found(shift):
    with interpret(), pytest.raises(InterpreterError, match=r"OutOfBounds.*load: \d+ elements outside"):
        copy[(2,)](torch.zeros(100), torch.zeros(100), 100, shift, BLOCK=64)


def test_a_write_outside_every_tensor_is_found():
    with interpret(), pytest.raises(InterpreterError, match=r"OutOfBounds.*store: 28 elements.*argument 'y'"):
        # y's storage goes on behind it: no other tensor lies there
        copy_unmasked[(2,)](torch.zeros(100), torch.zeros(1000)[:100], 100, BLOCK=64)


def test_two_programs_on_one_element_are_a_race():
    flags, total = torch.ones(128, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with interpret(), pytest.raises(Exception, match=r"touched by two programs.*argument 'total'"):
        count_by_store[(2,)](flags, flags, total, BLOCK=64)


def test_atomics_on_one_element_are_none():
    flags, total = torch.ones(128, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with interpret():
        count_by_atomic[(2,)](flags, flags, total, BLOCK=64)
    assert total.item() == 128


def test_lanes_that_write_different_values_to_one_address_are_a_race():
    index = torch.arange(16, dtype=torch.int32)
    index[3] = 5
    with interpret(), pytest.raises(InterpreterError, match=r"Race.*different values to argument 'y'"):
        scatter[(1,)](torch.arange(16.0), index, torch.zeros(16), BLOCK=16)
    with interpret():
        scatter[(1,)](torch.ones(16), index, torch.zeros(16), BLOCK=16)  # the same value twice is none


def test_uninitialised_memory_is_poisoned(poisoned):
    for made in (torch.empty(5), torch.ones(2).new_empty(5), torch.empty_like(torch.ones(3, dtype=torch.bfloat16))):
        assert made.isnan().all()
    assert (torch.empty(4, dtype=torch.int32) == 2**31 - 1).all()


def test_bfloat16_rounds_as_torch_does(generator):
    x = torch.randn(256, generator=generator).bfloat16()
    y, total = torch.empty_like(x), torch.zeros(1, dtype=torch.bfloat16)
    with interpret():
        double_and_sum[(1,)](x, y, total, BLOCK=256)
    assert torch.equal(y, (x * x) + x)
    assert torch.equal(total[0], x.float().sum().bfloat16())


def test_a_kernel_compiles_after_it_was_interpreted():
    x, y = torch.arange(100.0), torch.zeros(100)
    with interpret():
        copy[(2,)](x, y, 100, 0, BLOCK=64)
    assert torch.equal(x, y)
    with pretend_gpu("sm90") as record:
        copy[(2,)](x, y, 100, 0, BLOCK=64)
    assert [kernel.name for kernel in record.kernels] == ["copy"]
    assert record.kernels[0].files["cubin"].stat().st_size > 0


def test_the_pretend_card_computes():
    x, y = torch.arange(100.0), torch.zeros(100)
    with fake_gpu("sm80") as record:
        copy[(2,)](x, y, 100, 0, BLOCK=64)
    assert torch.equal(x, y)
    assert [(launch.name, launch.grid) for launch in record.launches] == [("copy", (2, 1, 1))]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        torch.nonzero,
        torch.unique,
        lambda x: x.tolist(),
        lambda x: x.cpu(),
    ],
    ids=["item", "bool", "mask", "nonzero", "unique", "tolist", "cpu"],
)
def test_a_wait_for_the_device_is_found(wait):
    with pytest.raises(AssertionError, match="waits for the device"), no_synchronisation():
        wait(torch.ones(3))


def test_work_that_stays_on_the_device_is_no_wait():
    with no_synchronisation() as seen:
        torch.where(torch.ones(3) > 0, torch.arange(3), 0).cumsum(0)
    assert "aten::cumsum" in seen
