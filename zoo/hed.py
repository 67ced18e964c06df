"""Holistically-nested edge detection on VGG-16 (Xie and Tu, ICCV 2015): a picture in, an edge map out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (123.68, 116.78, 103.94)  # RGB, of pictures in 0..255; the network takes pictures less this, undivided
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def preprocess(pictures: Tensor) -> Tensor:
    """uint8 RGB [N, 3, H, W] to the float32 input of `HED`."""
    return pictures.float() - torch.tensor(MEAN, dtype=torch.float32, device=pictures.device).view(1, 3, 1, 1)


class HED(nn.Module):
    """Input float32 [N, 3, H, W] by `preprocess`; output [N, 1, H, W], the probability of an edge at each pixel.

    `features` has the layers and names of torchvision's VGG-16 up to the last ReLU, with pools that round up; side
    output k reads the last ReLU of block k through a 1x1 convolution, is enlarged bilinearly to the input's size, and
    `fuse` weighs the five.
    """

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        ends = []
        channels = 3
        for block in _BLOCKS:
            if layers:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        self.side = nn.ModuleList(nn.Conv2d(block[-1], 1, 1) for block in _BLOCKS)
        self.fuse = nn.Conv2d(len(_BLOCKS), 1, 1)
        self._ends = ends

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        sides = []
        start = 0
        for end, side in zip(self._ends, self.side):
            x = self.features[start:end](x)
            sides.append(F.interpolate(side(x), size, mode="bilinear", align_corners=False))
            start = end
        return self.fuse(torch.cat(sides, 1)).sigmoid()
