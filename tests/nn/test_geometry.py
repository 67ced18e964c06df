"""Geometry set after construction: what a converted convolution computes is what torch's own computes then."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import accel
from accel import ACT, SACT, Perforate
from accel.nn.geometry import geometry_of
from accel.zoo.registry import get_model

CHANGES = {
    "padding (0, 0)": {"padding": (0, 0)},
    "padding (2, 2)": {"padding": (2, 2)},
    "padding 2": {"padding": 2},
    "padding (1,)": {"padding": (1,)},
    "padding same": {"padding": "same"},
    "padding valid": {"padding": "valid"},
    "padding, a list": {"padding": [0, 2]},
    "stride": {"stride": (2, 1)},
    "stride 2": {"stride": 2},
    "dilation": {"dilation": (2, 2), "padding": (2, 1)},
    "dilation 2": {"dilation": 2},
    "mode": {"padding_mode": "reflect"},
    "mode, and padding that torch does not read": {"padding_mode": "circular", "padding": (0, 0)},
}


def network(kernel: int | tuple[int, int] = 3, mode: str = "zeros") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, kernel, padding=1, padding_mode=mode), nn.ReLU()),
        *(nn.Conv2d(8, 12, kernel, padding=1, padding_mode=mode), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 12, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 5, 3, padding=1)),
    ).eval()


def change(net: nn.Module, names: str, settings: dict) -> None:
    for name in names:
        for attribute, value in settings.items():
            setattr(net[int(name)], attribute, value)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("settings", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_geometry_set_later(when, settings, mode):
    """Before conversion and after it, where the rewritten path has run already."""
    x = torch.randn(2, 3, 15, 12)
    net = network(mode=mode)
    if when == "before":
        change(net, "02", settings)
    fast = accel.convert_model(net, Perforate(keep=1.0), example_inputs=x)
    half = accel.convert_model(net, Perforate(keep=0.5), example_inputs=x)
    with torch.no_grad():
        assert_same(fast(x), net(x))
        if when == "after":
            half(x)
            for model in (net, fast, half):
                change(model, "02", settings)
        assert_same(fast(x), net(x))
        with accel.ops.use_backend("reference"):
            expected = half(x)
        assert_same(half(x), expected)


@pytest.mark.parametrize("settings", [{"padding": (1, 1)}, {"stride": (2, 2)}, {"padding_mode": "reflect"}], ids=str)
def test_a_pointwise_convolution_that_no_longer_is_one(settings):
    """It ran on the rows of the one before."""
    x = torch.randn(2, 3, 15, 12)
    half = accel.convert_model(network(), {"2": Perforate(keep=0.5)}, example_inputs=x)
    with torch.no_grad():
        half(x)
        change(half, "5", settings)
        got = half(x)
        rows = copy.deepcopy(half)
        plain = nn.Sequential(*rows)  # module by module
        assert_same(got, plain(x))


def test_a_pooling_changed_later():
    x = torch.randn(2, 3, 15, 12)
    fast = accel.convert_model(network(), {"2": Perforate(keep=0.5)}, example_inputs=x)
    with torch.no_grad():
        fast(x)
        fast[7].kernel_size, fast[7].stride = (3, 2), (1, 1)
        assert_same(fast(x), nn.Sequential(*copy.deepcopy(fast))(x))


@pytest.mark.parametrize("kernel", [(2, 4), (1, 3)])
def test_same_padding_of_any_kernel(kernel):
    net = network(kernel)
    change(net, "02", {"padding": "same"})
    x = torch.randn(2, 3, 15, 12)
    fast = accel.convert_model(net, Perforate(keep=1.0), example_inputs=x)
    with torch.no_grad():
        assert_same(fast(x), net(x))


def test_the_geometry_is_read_now():
    conv = nn.Conv2d(4, 8, 3, padding=1)
    assert geometry_of(conv).padding == (1, 1, 1, 1)
    conv.padding, conv.stride = [2, 0], 2
    assert geometry_of(conv).padding == (2, 2, 0, 0)
    assert geometry_of(conv).output_size(9, 9) == tuple(conv(torch.randn(1, 4, 9, 9)).shape[2:])
    conv.padding = "same"
    with pytest.raises(ValueError, match="'same' is not supported for strided convolutions"):
        geometry_of(conv)


@pytest.mark.parametrize("config", [ACT(), SACT()], ids=["ACT", "SACT"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_units_with_geometry_set_later(config, when):
    """A number, a word or a list for the same pair: the same stage, fused or unit by unit."""
    x = torch.randn(2, 3, 16, 16)
    outputs = []
    for settings in ({}, {"padding": 1, "dilation": 1}, {"padding": "same"}, {"padding": [1, 1]}):
        torch.manual_seed(0)
        net = get_model("zoo:resnet14_cifar").eval()
        if when == "after":
            net = accel.convert_model(net, config, example_inputs=x)
        for module in net.modules():
            if isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride) == ((3, 3), (1, 1)):
                for attribute, value in settings.items():
                    setattr(module, attribute, value)
        if when == "before":
            net = accel.convert_model(net, config, example_inputs=x)
        with torch.no_grad():
            fused = net(x).logits
            with accel.ops.use_backend("reference"):
                assert_same(net(x).logits, fused)
        outputs.append(fused)
    for other in outputs[1:]:
        assert_same(other, outputs[0])
