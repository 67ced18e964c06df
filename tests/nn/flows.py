"""A network whose forward the test writes, over layers that the test names."""

from collections.abc import Callable

import torch
from torch import nn


class Flow(nn.Module):
    """A forward given as a function of the net and its input, over layers given by name."""

    def __init__(self, flow: Callable, **layers: nn.Module):
        super().__init__()
        self.flow = flow
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> object:
        return self.flow(self, x)


def convs(count: int) -> list[nn.Conv2d]:
    """Convolutions of 3x3, from 4 channels to 4."""
    return [nn.Conv2d(4, 4, 3, padding=1) for _ in range(count)]
