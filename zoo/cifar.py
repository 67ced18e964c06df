"""The CIFAR residual networks of He et al. 2016 ("Deep Residual Learning", section 4.2), parameter-free shortcuts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from accel.config import SACT
from accel.nn.adaptive import make_adaptive

DEPTHS = (14, 20, 26, 32, 44, 56, 110)
TARGET = 0.575  # of the stages' MACs: what the packaged SACT network was trained to execute


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the channels that are new; [N, C, H, W] -> [N, 2C, H/2, W/2]."""

    def __init__(self, new_channels: int):
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.new_channels - before))


class BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = PadShortcut(channels - channels_in) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32 x 32 pictures: three stages of n units with 16, 32 and 64 channels.

    Input float32 [N, 3, H, W], standardised with ImageNet's mean and deviation; output logits [N, num_classes].
    """

    def __init__(self, depth: int, num_classes: int = 10):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n >= 1, such as 20, 32 or 110, got {depth}")
        units = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, units, stride=1)
        self.layer2 = _stage(16, 32, units, stride=2)
        self.layer3 = _stage(32, 64, units, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def sact_resnet32(num_classes: int = 10) -> nn.Module:
    """ResNet-32 with SACT in its three stages, as zoo/recipes/resnet32_cifar_sact.toml trains it."""
    config = SACT(tau=0.01, target=TARGET)
    return make_adaptive(CifarResNet(32, num_classes), dict.fromkeys(("layer1", "layer2", "layer3"), config))


def _stage(channels_in: int, channels: int, units: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(units - 1)))
