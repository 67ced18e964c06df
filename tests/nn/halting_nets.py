"""Halting heads that tell positions apart, and tiny networks of them, for the tests of adaptive stages."""

import torch
from torch import nn

from accel import dense_execution
from accel.config import Halting
from accel.nn.adaptive import make_adaptive
from accel.nn.residual_units import BranchStep, UnitDescription, register_unit
from accel.ops import use_backend


def spread_scores(net: nn.Module, x: torch.Tensor, width: float = 2.0) -> nn.Module:
    """Shift and scale the heads so that their scores on x lie on both sides of one half, `width` deviations apart."""

    def standardise(conv: nn.Module, _inputs: tuple, out: torch.Tensor) -> torch.Tensor:
        gain, shift = width / float(out.std()), float(out.median())
        conv.weight.mul_(gain)
        conv.bias.sub_(shift).mul_(gain)
        return (out - shift) * gain

    handles = [m.register_forward_hook(standardise) for n, m in net.named_modules() if n.endswith("halting.conv")]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return net


def three_ways(net: nn.Module, x: torch.Tensor) -> tuple:
    """What an adaptive net gives as it runs best, unit by unit on the reference, and densely under its mask."""
    with torch.no_grad():
        sparse = net(x)
        with use_backend("reference"):
            one_by_one = net(x)
        with dense_execution(net):
            return sparse, one_by_one, net(x)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


class TinyUnit(nn.Module):
    """A residual unit of one convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


register_unit(TinyUnit, lambda u: UnitDescription((BranchStep(u.body, None, "none"),), "relu", None))


def tiny_net(config: Halting, stages: int = 3, units: int = 3, seed: int = 0, dtype=torch.float64) -> nn.Module:
    """A network of a few units, in evaluation, whose heads tell images and positions apart; for inputs [N, 3, H, W]."""
    torch.manual_seed(seed)
    parts = [nn.Sequential(*(TinyUnit(3) for _ in range(units))) for _ in range(stages)]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).to(dtype)
    net = make_adaptive(model, {str(k): config for k in range(stages)}).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("halting.conv.weight", "halting.pooled.weight", "body.weight")):
                parameter.mul_(2.0)
            if name.endswith("halting.conv.bias"):
                parameter.fill_(-0.5)
    return net
