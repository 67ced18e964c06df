"""Convolutions that stay dense in a converted model: fused, on the engine, equal to their modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import accel
from accel import ops
from accel.kernels.reference.activation import ACTIVATIONS
from accel.nn import dense
from accel.nn.inference import describe_paths, installed
from accel.running import observer, one_by_one, replaced_forwards

CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "stem": {"kernel_size": 7, "stride": 2, "padding": 3, "bias": False},
    "1x1": {"kernel_size": 1},
    "lopsided same": {"kernel_size": (2, 4), "padding": "same"},
    "dilated reflect": {"kernel_size": 3, "dilation": 2, "padding": 2, "padding_mode": "reflect"},
    "grouped": {"kernel_size": 3, "groups": 3},
}


def drawn_norm(channels):
    norm = nn.BatchNorm2d(channels).eval()
    nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return norm


def image(channels=3):
    return torch.randn(2, channels, 11, 9, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("activation", ["none", "relu", "hardswish", "relu6"])
@torch.inference_mode()
def test_it_is_the_module_with_what_is_fused(name, activation):
    torch.manual_seed(0)
    conv, norm, x = nn.Conv2d(3, 6, **CONVOLUTIONS[name]), drawn_norm(6), image()
    torch.testing.assert_close(dense.convolve(conv, x, norm, activation), ACTIVATIONS[activation](norm(conv(x))))
    torch.testing.assert_close(dense.convolve(conv, x, None, activation), ACTIVATIONS[activation](conv(x)))


@torch.inference_mode()
def test_where_the_engine_does_not_run_the_module_does():
    conv = nn.Conv2d(3, 6, 3)
    with ops.use_backend("reference"):
        assert torch.equal(dense.convolve(conv, image()), conv(image()))
    assert torch.equal(dense.convolve(conv, image()[0]), conv(image()[0]))
    assert torch.equal(dense.convolve(conv.double(), image().double(), None, "relu"), conv(image().double()).relu())


@torch.inference_mode()
def test_a_changed_weight_is_seen():
    conv, norm = nn.Conv2d(3, 6, 3), drawn_norm(6)
    before = dense.convolve(conv, image(), norm)
    conv.weight.data.mul_(2)
    torch.testing.assert_close(dense.convolve(conv, image(), norm), norm(conv(image())))
    assert not torch.allclose(dense.convolve(conv, image(), norm), before)


def converted():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), drawn_norm(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
    )
    rules = accel.Rules({"0": None, "*": accel.Perforate(keep=0.5)})
    return accel.convert_model(net, rules, example_inputs=image()).eval()


@torch.inference_mode()
def test_norm_and_activation_move_into_a_dense_convolution():
    net = converted()
    assert installed(net)[0][1].chains.dense == {"0": ["norm", "relu"]}
    assert describe_paths(net, image())["0"] == "norm+relu fused, dense"
    fused = net(image())
    with one_by_one():
        torch.testing.assert_close(fused, net(image()))


@torch.inference_mode()
def test_a_hook_that_only_watches_sees_the_convolution():
    net, seen = converted(), []

    def hook(module, inputs, output):
        seen.append(output.shape)

    hook.observes_only = True
    before = net(image())
    net[0].register_forward_hook(hook)
    torch.testing.assert_close(net(image()), before)
    assert seen == [(2, 8, 11, 9)]


def test_an_observer_sees_what_runs_and_a_forward_of_their_own_is_called():
    conv, seen = nn.Conv2d(3, 6, 3).eval(), []

    def around(forward):
        def run(*arguments):
            seen.append(forward)
            return forward(*arguments)

        return run

    with torch.no_grad():
        plain = dense.convolve(conv, image(), None, "relu")
        with replaced_forwards({conv: observer(conv.forward, around)}):
            assert torch.equal(dense.convolve(conv, image(), None, "relu"), plain)
        assert len(seen) == 1
        with replaced_forwards({conv: lambda x: torch.zeros(1)}):
            assert torch.equal(dense.convolve(conv, image(), None, "relu"), torch.zeros(1))
