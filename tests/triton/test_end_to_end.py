"""Converted networks through the Triton launchers on a pretend card, against the same networks on the reference."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import vgg
from torchvision.models.resnet import Bottleneck

import accel
from accel.kernels.dispatch import use_backend
from accel.kernels.positions import PositionSet
from accel.kernels.triton import halting_step
from accel.kernels.triton.interpolate import segments
from accel.kernels.triton.warmup import warmup
from accel.profiling.kernel_catalogue import launches
from accel.profiling.pretend_gpu import pretend_gpu
from accel.tests.triton_tools.fake_gpu import fake_gpu
from accel.tests.triton_tools.interp_switch import interpret


def vgg_block() -> nn.Module:
    """VGG-16 up to its second pooling layer: 3 -> 64 -> 64 -> pool -> 128 -> 128 -> pool."""
    return vgg.make_layers(vgg.cfgs["D"][:6])


def resnet_block() -> nn.Module:
    """A stage like ResNet-50's second, of two units: 1x1, 3x3 of stride 2 and 1x1 convolutions around a shortcut."""
    shortcut = nn.Sequential(nn.Conv2d(64, 128, 1, stride=2, bias=False), nn.BatchNorm2d(128))
    return nn.Sequential(Bottleneck(64, 32, 2, shortcut), Bottleneck(128, 32))


def randomise_norms(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Statistics that are not the initial ones, or folding them would change nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def on_pretend_card(target: str, call):
    """The result of `call` by the Triton launchers, and the names of the kernels that ran."""
    with fake_gpu(target) as record, use_backend("triton"):
        return call(), [launch.name for launch in record.launches]


@pytest.mark.parametrize(
    ("build", "channels", "size", "target"),
    [(vgg_block, 3, 20, "sm80"), (resnet_block, 64, 14, "sm90")],
    ids=["vgg16", "resnet50"],
)
def test_converted_networks(build, channels, size, target, generator, poisoned, assert_close):
    torch.manual_seed(0)
    model = randomise_norms(build(), generator)
    x = torch.randn(2, channels, size, size, generator=generator)
    fast = accel.convert_model(model, accel.Perforate(keep=0.5), example_inputs=x)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    with torch.inference_mode():
        with use_backend("reference"):
            expected = fast.double()(x.double())
        got, kernels = on_pretend_card(target, lambda: fast.float()(x))
        with use_backend("reference"):
            full = model(x)
    assert kernels.count("gather_gemm") == convolutions
    assert_close(got, expected)
    assert (got - full).norm() > 0.01 * full.norm()  # it did perforate


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


@pytest.fixture
def cuda_autocast():
    """torch.autocast("cuda") turns itself off where there is no card; this is what it sets."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


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


def test_sact(generator, poisoned, assert_close):
    """A SACT stage runs sparse: the same outputs and the same halting at every position."""
    torch.manual_seed(0)
    shortcut = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32))
    units = nn.Sequential(Bottleneck(16, 8, 1, shortcut), Bottleneck(32, 8), Bottleneck(32, 8))
    model = nn.Sequential(randomise_norms(units, generator), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(2, 16, 9, 7, generator=generator)
    net = accel.convert_model(model, accel.SACT(tau=0.01), example_inputs=x).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == 1 and module.bias is not None:
            nn.init.normal_(module.weight, 0, 0.3)
            nn.init.constant_(module.bias, 0.0)  # about half of the positions halt early
    with torch.inference_mode():
        with use_backend("reference"):
            expected = net(x)
        got, kernels = on_pretend_card("sm90", lambda: net(x))
    assert {"gather_gemm", "place_active", "step"} <= set(kernels)
    assert torch.equal(got.stages[0].num_units, expected.stages[0].num_units)
    assert expected.stages[0].num_units.unique().numel() > 1
    assert_close(got.logits, expected.logits.double())
    assert_close(got.stages[0].ponder_cost, expected.stages[0].ponder_cost.double())


class _Synchronisation(TorchDispatchMode):
    """Raises at operations that bring a number from the device to the host."""

    WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten._unique", "aten.masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(self.WAITS):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", launches(torch.float16))
def test_no_launcher_waits_for_the_device(op):
    call = launches(torch.float16)[op]
    with pretend_gpu("sm90") as record, _Synchronisation():
        call()
    assert record.launches


def test_the_synchronisation_check_finds_one():
    with _Synchronisation(), pytest.raises(AssertionError, match="waits for the device"):
        halting_step.torch.ones(3).nonzero()


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
