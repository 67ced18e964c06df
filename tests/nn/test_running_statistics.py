"""Running statistics that a forward in training moves, and nothing else: torch raises no versions for them, and what is
folded into weights, programs and stages must follow all the same."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import ACT, PACT, SACT, Perforate
from accel.zoo.registry import get_model

CONFIGS = {
    "nearest": Perforate(keep=0.5, mask="lattice"),
    "fitted": Perforate(keep=0.5, mask="lattice", interpolate="fitted"),
    "every position": Perforate(keep=1.0, mask="lattice"),
    "int8": Perforate(keep=0.5, mask="lattice", precision="int8"),
    "bf16": Perforate(keep=0.5, mask="lattice", precision="bf16"),
    "adaptive": Perforate(keep=0.5, mask="adaptive"),
}


class Quiet(nn.BatchNorm2d):
    """It counts no batches."""

    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.3, self.eps
        )


def uncounted(channels):
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None
    return norm


NORMS = {"counted": nn.BatchNorm2d, "uncounted": uncounted, "of its own forward": Quiet}


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def follows(net, x, run=None):
    """After two forwards in training the network gives what a copy does, which remembers nothing."""
    run = net if run is None else run
    with torch.no_grad():
        for _ in range(2):
            before = run(x)
        net.train()
        for _ in range(2):
            net(2 * x + 1)
        net.eval()
        got, expected = (getattr(out, "logits", out) for out in (run(x), copy.deepcopy(net)(x)))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(getattr(before, "logits", before), expected, rtol=0.01)


def converted(norm, config):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    data = {"calibration": drawn(4, 3, 12, 12)} if config.needs_calibration else {}
    return accel.convert_model(net.eval(), config, example_inputs=drawn(2, 3, 12, 12), **data)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("norm", NORMS)
def test_converted_layers_follow(norm, config):
    follows(converted(NORMS[norm], CONFIGS[config]), drawn(2, 3, 12, 12))


@pytest.mark.parametrize("norm", NORMS)
def test_compiled_networks_follow(norm):
    net = converted(NORMS[norm], CONFIGS["nearest"])
    follows(net, drawn(2, 3, 12, 12), torch.compile(net, backend="accel"))


@pytest.mark.parametrize("config", [ACT(), SACT(), PACT()])
def test_adaptive_stages_follow(config):
    torch.manual_seed(0)
    x = drawn(2, 3, 16, 16)
    follows(accel.convert_model(get_model("zoo:resnet14_cifar").eval(), config, example_inputs=x), x)
