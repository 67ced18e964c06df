"""Models of which others compiled, exported or scripted a part: counted and converted as they are, and left so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import accel
from accel import Perforate

X = torch.randn(2, 3, 12, 12, generator=torch.Generator("cpu").manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
MACS = 144 * (3 * 9 * 8 + 8 * 9 * 16 + 16 * 9 * 16 + 16 * 9 * 8)  # of one picture


def inner():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1)).eval()


def compiled_in_place():
    part = inner()
    part.compile(backend="eager")
    return part


PARTS = {
    "traced": lambda: torch.jit.trace(inner(), X),
    "scripted": lambda: torch.jit.script(inner()),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(inner())),
    "exported": lambda: torch.export.export(inner(), (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module(),
    "compiled": lambda: torch.compile(inner(), backend="eager"),
    "compiled in place": compiled_in_place,
}


@pytest.fixture(params=PARTS)
def net(request):
    """The part before layers in training; whatever is done with it must change neither their mode nor their state."""
    torch.manual_seed(0)
    part = PARTS[request.param]()
    made = nn.Sequential(
        part, nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1)
    )
    before = {name: value.clone() for name, value in made.state_dict().items()}
    modes = [module.training for module in made[1:]]
    yield made
    assert modes == [module.training for module in made[1:]] == [True] * 4
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def outputs(net):
    """Of three calls in evaluation, each layer behind the part in it."""
    for layer in net[1:]:
        layer.eval()
    net.training = False
    with torch.no_grad():
        found = [net(X) for _ in range(3)]
    net.training = True
    for layer in net[1:]:
        layer.train()
    return found


def test_counted(net):
    assert accel.count_macs(net, X) == len(X) * MACS


@pytest.mark.parametrize("precision, near", [("fp32", 1e-5), ("int8", 0.05)])
def test_converted(net, precision, near):
    fast = accel.convert_model(net, Perforate(keep=1.0, precision=precision), example_inputs=X, calibration=[X])
    assert type(fast[2]).__name__ == "PerforatedConv2d" and fast[2].config.precision == precision
    for found, expected in zip(outputs(fast), outputs(net)):
        torch.testing.assert_close(found, expected, rtol=0, atol=near)


def test_searched(net):
    found = accel.search(net, example_inputs=X, calibration=[X], macs=0.8, minutes=0.05)
    assert {"2", "4"} <= found.keys()


def test_shrunk_by_rank(net):
    smaller = accel.decompose_model(net, calibration=[X], ranks={"2": 4})
    assert len(outputs(smaller)) == 3 and accel.count_macs(smaller, X) < len(X) * MACS


def test_a_part_that_refuses_its_mode_is_not_passed_over():
    class Refuses(nn.Conv2d):
        def train(self, mode=True):
            raise NotImplementedError("this layer trains only")

    net = nn.Sequential(Refuses(3, 4, 3), nn.ReLU())
    with pytest.raises(NotImplementedError, match="this layer trains only"):
        accel.count_macs(net, X)
    assert all(module.training for module in net.modules())
