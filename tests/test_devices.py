"""Models on another device than the CPU convert there: nothing of theirs meets a tensor that was made on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.tests.elsewhere import DEVICE, Device, Elsewhere, moved


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).eval()


CONFIGS = {
    "nearest": Perforate(keep=0.5),
    "pooling": Perforate(keep=0.5, mask="pooling"),
    "zero": Perforate(keep=0.5, interpolate="zero"),
    "weighted": Perforate(keep=0.5, mask="lattice", interpolate="weighted"),
    "fitted": Perforate(keep=0.5, mask="lattice", interpolate="fitted"),
    "refitted weights": Perforate(keep=0.5, mask="lattice", interpolate="fitted", correct="weights"),
    "impact": Perforate(keep=0.5, mask="impact"),
    "adaptive": Perforate(keep=0.5, mask="adaptive"),
}


@pytest.mark.parametrize("config", list(CONFIGS))
def test_conversion_and_fits_stay_on_the_device(config):
    generator = torch.Generator().manual_seed(1)
    pictures, x = torch.randn(8, 3, 20, 14, generator=generator), torch.randn(2, 3, 20, 14, generator=generator)
    with torch.no_grad(), accel.ops.use_backend("reference"):
        here = accel.convert_model(make_network(), CONFIGS[config], example_inputs=x, calibration=[pictures])(x)
        with Device():
            net = moved(make_network())
            fast = accel.convert_model(
                net, CONFIGS[config], example_inputs=Elsewhere(x), calibration=[Elsewhere(pictures)]
            )
            out = fast(Elsewhere(x))
    assert out.device == DEVICE
    torch.testing.assert_close(out.held, here, rtol=1e-5, atol=1e-6)
