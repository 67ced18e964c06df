"""The network and the pictures of small searches."""

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 3, padding=1)).eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
