"""Models on another device than the CPU convert there: nothing of theirs meets a tensor that was made on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import accel
from accel import Perforate
from accel.errors import ConversionError
from accel.nn.perforated import PerforatedConv2d
from accel.tests.elsewhere import DEVICE, Device, Elsewhere, fake_sets, moved, to_card


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


@pytest.mark.parametrize("layers", ["convolutions", "linear layers"])
@pytest.mark.parametrize("options", [{"keep": 1.0}, {"keep": 0.5, "mask": "lattice"}], ids=str)
def test_a_network_in_eight_bits_is_refused_on_a_card_in_one_line(layers, options, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, 20, 14, generator=generator)
    config = Perforate(precision="int8", **options)
    fast = accel.convert_model(make_network(), config, example_inputs=x, calibration=[x])
    if layers == "linear layers":
        rules = accel.Rules({"1": Perforate(keep=1.0, precision="int8")})
        net = nn.Sequential(nn.Flatten(), nn.Linear(840, 4)).eval()
        fast = accel.convert_model(net, rules, example_inputs=x, calibration=[x])
    with FakeTensorMode() as mode, torch.no_grad():
        monkeypatch.setattr(PerforatedConv2d, "_build_set", fake_sets(mode, []))
        to_card(fast)
        with pytest.raises(ConversionError, match="eight bits run on the CPU, got an input on cuda") as refusal:
            fast(torch.empty(2, 3, 20, 14, device="cuda"))
    assert "\n" not in str(refusal.value) and ".to('cpu')" in str(refusal.value)
