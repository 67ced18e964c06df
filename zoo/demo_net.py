"""The network of `accel demo`: a small residual network that names the shape in a picture and outlines it.

Wide maps and few layers: almost all of its time goes into 3x3 convolutions, 1.1 GMACs on a 128-pixel picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from accel.zoo.shapes import CLASSES


class DemoOutput(NamedTuple):
    """Attributes: logits [N, classes]; mask [N, 1, H, W], logits of 'this pixel belongs to the object'."""

    logits: Tensor
    mask: Tensor


class Unit(nn.Module):
    """A residual unit: two 3x3 convolutions with batch norm, ReLU after the addition."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DemoResNet(nn.Module):
    """Input float32 [N, 3, H, W] in about -1..1 (`shapes.normalise`), H and W multiples of 8; output `DemoOutput`."""

    def __init__(self, width: int = 64, num_classes: int = len(CLASSES)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.stage1 = nn.Sequential(Unit(width, width), Unit(width, width))
        self.stage2 = nn.Sequential(Unit(width, 2 * width, stride=2))
        self.stage3 = nn.Sequential(Unit(2 * width, 2 * width, stride=2))
        self.classifier = nn.Linear(2 * width, num_classes)
        self.lateral3 = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width))
        self.neck = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.refine = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.outline = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> DemoOutput:
        fine = self.stage1(self.stem(x))
        middle = self.stage2(fine)
        coarse = self.stage3(middle)
        middle = F.relu(middle + F.interpolate(self.lateral3(coarse), scale_factor=2.0, mode="nearest"))
        fine = fine + F.interpolate(self.neck(middle), scale_factor=2.0, mode="nearest")
        mask = self.outline(self.refine(fine))
        logits = self.classifier(_mean_where(coarse, mask))
        return DemoOutput(logits, F.interpolate(mask, scale_factor=2.0, mode="bilinear", align_corners=False))


def _mean_where(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of `features` [N, C, h, w] over the object that `mask` [N, 1, 4h, 4w] outlines in logits: [N, C].

    The object covers a tenth of the picture, so a mean over all of it would mostly describe the background.
    """
    weight = F.avg_pool2d(mask.detach().sigmoid(), 4) + 1e-3  # a blank mask leaves the plain mean
    return (features * weight).sum((2, 3)) / weight.sum((2, 3))


def mask_iou(logits: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of `logits` > 0 with the true masks (0 or 1), per picture: [N, 1, H, W] twice -> [N]."""
    found, true = logits > 0, masks > 0.5
    return (found & true).sum((1, 2, 3)) / (found | true).sum((1, 2, 3)).clamp(min=1)
