"""Halting heads that tell positions apart, for the tests of adaptive stages."""

import torch
from torch import nn

from accel import dense_execution
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
