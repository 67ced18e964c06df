"""Converted networks through the Triton launchers on a pretend card, against the same networks on the reference."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import accel
from accel.kernels.dispatch import use_backend
from accel.kernels.positions import PositionSet
from accel.kernels.triton.interpolate import segments
from accel.kernels.triton.warmup import warmup
from accel.profiling.kernel_catalogue import launches
from accel.profiling.pretend_gpu import pretend_gpu
from accel.tests.triton_tools.fake_gpu import fake_gpu
from accel.tests.triton_tools.interp_switch import interpret
from accel.tests.triton_tools.synchronisation import no_synchronisation


def on_pretend_card(target: str, call):
    """The result of `call` by the Triton launchers, and the names of the kernels that ran."""
    with fake_gpu(target) as record, use_backend("triton"):
        return call(), [launch.name for launch in record.launches]


def test_a_half_precision_network(generator, poisoned, assert_close):
    torch.manual_seed(0)
    x = torch.randn(1, 64, 6, 6, generator=generator).bfloat16()
    model = nn.Sequential(nn.Conv2d(64, 32, 1), nn.ReLU()).eval().bfloat16()
    fast = accel.convert_model(model, accel.Perforate(keep=0.5), example_inputs=x)
    with torch.inference_mode():
        got, kernels = on_pretend_card("sm90", lambda: fast(x))
        with use_backend("reference"):
            assert_close(got, fast.double()(x.double()))
    assert got.dtype == torch.bfloat16 and kernels == ["gather_gemm"]


def test_autocast(cuda_autocast):
    """On a card the op computes in autocast's dtype, like torch's convolution (shapes and dtypes alone, no card)."""
    with FakeTensorMode():
        conv = nn.Conv2d(64, 32, 1, device="cuda")
        x = torch.empty(1, 64, 6, 6, device="cuda")
        everywhere = PositionSet.full(6, 6).to("cuda")
        assert accel.ops.perforated_conv2d(x, conv.weight, conv.bias, everywhere).dtype == torch.float16


def test_training_step(generator, poisoned, assert_close):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 7, 7, generator=generator)
    model = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, stride=2))
    fast = accel.convert_model(model, accel.Perforate(keep=0.5), example_inputs=x)

    def gradients():
        fast.zero_grad()
        fast(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in fast.parameters()]

    with use_backend("reference"):
        expected = gradients()
    with interpret(), use_backend("triton"):
        got = gradients()
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("op", launches(torch.float16))
def test_no_launcher_waits_for_the_device(op):
    call = launches(torch.float16)[op]
    with pretend_gpu("sm90") as record, no_synchronisation():
        call()
    assert record.launches


def test_position_sets_are_kept_per_size_and_device():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    fast = accel.convert_model(nn.Sequential(conv), accel.Perforate(keep=0.5), example_inputs=torch.zeros(1, 4, 6, 6))
    assert fast[0].position_set(6, 6) is fast[0].position_set(6, 6)
    assert fast[0].position_set(6, 6, "meta").positions.device.type == "meta"


def test_segments_are_computed_once_per_map():
    nearest = torch.tensor([0, 1, 0, 2], dtype=torch.int32)
    assert segments(nearest, 3) is segments(nearest, 3)
    starts, order = segments(nearest, 3)
    assert starts.tolist() == [0, 2, 3, 4] and order.tolist() == [0, 2, 1, 3]


def test_warmup_leaves_nothing_to_compile(generator):
    x = torch.randn(1, 8, 6, 6, generator=generator).half()
    model = nn.Sequential(nn.Conv2d(8, 8, 1)).eval().half()
    fast = accel.convert_model(model, accel.Perforate(keep=0.5), example_inputs=x)
    with pretend_gpu("sm90"), use_backend("triton"), torch.inference_mode():
        assert warmup(fast, x) > 1  # every config of the tuner
        assert warmup(fast, x) == 0
        assert warmup(fast, torch.zeros(3, 8, 9, 5).half()) == 0  # neither batch nor map size is in the key
