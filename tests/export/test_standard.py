"""Perforated layers in torch's own operators give what the layers give."""

import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.export.standard import StandardConv, takes_norm
from accel.masks import LATTICE_KEEPS
from accel.nn.folding import normed
from accel.running import one_by_one

SIZE = (13, 17)
GEOMETRIES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "strided apart": {"kernel_size": (5, 2), "stride": (1, 3), "padding": (2, 0)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4},
    "same": {"kernel_size": 4, "padding": "same"},
    "wide padding": {"kernel_size": 3, "padding": 3},
    "no padding": {"kernel_size": 3},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
    "replicate": {"kernel_size": 3, "padding": 1, "stride": 2, "padding_mode": "replicate"},
}
FILLS = {
    "nearest": {},
    "weighted": {"interpolate": "weighted", "neighbors": 5},
    "zero": {"interpolate": "zero"},
    "fitted": {"interpolate": "fitted"},
    "refitted": {"interpolate": "fitted", "correct": "weights"},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "int8"},
    "fitted int8": {"interpolate": "fitted", "precision": "int8"},
}


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def layer_of(config, geometry=GEOMETRIES["3x3"], bias=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, bias=bias, **geometry))
    x = drawn(2, 4, *SIZE)
    data = {"calibration": x} if config.needs_calibration else {}
    return accel.convert_model(net.eval(), config, example_inputs=x, **data)[0], x


def compare(layer, x, norm=None, **close):
    with torch.no_grad(), one_by_one():
        expected = normed(norm, layer(x))
        torch.testing.assert_close(StandardConv(layer, SIZE, norm)(x), expected, **close)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("mask", ["lattice", "uniform"])
def test_every_geometry(geometry, mask):
    compare(*layer_of(Perforate(keep=0.5, mask=mask), GEOMETRIES[geometry]))


@pytest.mark.parametrize("keep", [*LATTICE_KEEPS, 1.0])
@pytest.mark.parametrize("fill", FILLS)
def test_every_lattice_and_fill(keep, fill):
    close = {"rtol": 1e-4, "atol": 1e-4} if "fitted" in fill else {}
    compare(*layer_of(Perforate(keep=keep, mask="lattice", **FILLS[fill])), **close)


@pytest.mark.parametrize("mask", ["uniform", "grid"])
@pytest.mark.parametrize("fill", FILLS)
def test_irregular_sets(mask, fill):
    compare(*layer_of(Perforate(keep=0.4, mask=mask, **FILLS[fill])), rtol=1e-4, atol=1e-4)


def test_sums_of_a_lattice_are_depthwise_convolutions_but_for_its_borders():
    layer, _ = layer_of(Perforate(keep=0.5, mask="lattice", interpolate="fitted"))
    fill = StandardConv(layer, SIZE).fill
    skipped = SIZE[0] * SIZE[1] - len(layer.position_set(*SIZE))
    gathered = sum(len(each.near) // each.weights.shape[1] for each in fill.gathered)
    assert len(fill.shifted) == 2 and 0 < gathered < skipped / 2


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("bias", [True, False])
def test_norms_are_folded_in(fill, bias):
    layer, x = layer_of(Perforate(keep=0.5, mask="lattice", **FILLS[fill]), bias=bias)
    if not takes_norm(layer):
        assert fill == "zero"
        return
    norm = nn.BatchNorm2d(8).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.uniform_(0.5, 1.5)
    # in eight bits and bf16 weights are rounded after the norm was folded in, and the layer itself rounds them before
    close = {"rtol": 0.05, "atol": 0.05} if "int8" in fill else {"rtol": 1e-4, "atol": 1e-4}
    close = {"rtol": 0.02, "atol": 0.02} if fill == "bf16" else close
    compare(layer, x, norm, **close)


def test_positions_chosen_from_the_input():
    for how in ({}, {"interpolate": "weighted", "neighbors": 4}):
        compare(*layer_of(Perforate(keep=0.5, mask="adaptive", **how)))
