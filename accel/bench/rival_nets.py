"""The rivals of perforation, for benchmarks: the shrunk input, and pruned channels. No part of the package's interface.

Both are dense networks that are simply made cheaper, so a perforated one has to lose less at the same latency.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.errors import ConfigError
from accel.zoo.cifar import BasicBlock, CifarResNet
from accel.zoo.hed import HED


class Shrunk(nn.Module):
    """The network on a smaller picture; a map [N, C, H, W] that it gives is enlarged to the picture's size."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = copy.deepcopy(network), size

    def forward(self, x: Tensor) -> Tensor:
        small = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        out = self.network(small)
        return F.interpolate(out, x.shape[2:], mode="bilinear", align_corners=False) if out.dim() == 4 else out


@torch.no_grad()
def pruned(network: nn.Module, share: float) -> nn.Module:
    """A thinner copy: of every convolution that may lose channels the `share` with the largest L1 norms (Li et al.,
    "Pruning Filters for Efficient ConvNets", ICLR 2017); in residual networks the channels inside the units.

    Raises:
        ConfigError: a network of another kind than HED and the CIFAR ResNets.
    """
    thin = copy.deepcopy(network)
    if isinstance(thin, HED):
        _prune_hed(thin, share)
    elif isinstance(thin, CifarResNet):
        for unit in (module for module in thin.modules() if isinstance(module, BasicBlock)):
            kept = _strongest(unit.conv1, share)
            unit.conv1 = _select(unit.conv1, kept, None)
            unit.bn1 = _select_norm(unit.bn1, kept)
            unit.conv2 = _select(unit.conv2, None, kept)
    else:
        raise ConfigError(f"channel pruning is written for HED and the CIFAR ResNets, not for {type(network).__name__}")
    return thin


def _prune_hed(net: HED, share: float) -> None:
    kept, sides = None, iter(range(len(net.side)))
    for index, layer in enumerate(net.features):
        if isinstance(layer, nn.Conv2d):
            mine = _strongest(layer, share)
            net.features[index] = _select(layer, mine, kept)
            kept = mine
        if index + 1 in net._ends:
            side = next(sides)
            net.side[side] = _select(net.side[side], None, kept)


def _strongest(conv: nn.Conv2d, share: float) -> Tensor:
    """The output channels of the largest L1 norms, ascending."""
    count = max(1, round(share * conv.out_channels))
    return conv.weight.abs().sum((1, 2, 3)).topk(count).indices.sort().values


def _select(conv: nn.Conv2d, outputs: Tensor | None, inputs: Tensor | None) -> nn.Conv2d:
    """The convolution between some of its channels."""
    weight = conv.weight if outputs is None else conv.weight[outputs]
    weight = weight if inputs is None else weight[:, inputs]
    bias = conv.bias is not None
    made = nn.Conv2d(weight.shape[1], weight.shape[0], conv.kernel_size, conv.stride, conv.padding, bias=bias)
    made.weight.copy_(weight)
    if bias:
        made.bias.copy_(conv.bias if outputs is None else conv.bias[outputs])
    return made


def _select_norm(norm: nn.BatchNorm2d, kept: Tensor) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(len(kept), norm.eps, norm.momentum).train(norm.training)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(made, name).copy_(getattr(norm, name)[kept])
    return made
