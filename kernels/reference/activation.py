"""The activations that the convolution ops apply to the rows they compute."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "none": lambda rows: rows,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # slope 0.01, nn.LeakyReLU's default
    "hardswish": F.hardswish,
    "relu6": F.relu6,
}


def activate(rows: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation](rows)


FUSED_BACKWARD = ("none", "relu")  # the activations whose derivative can be read from their output
