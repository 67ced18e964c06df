"""Whole networks in eight bits: every map between their first and their last convolution lies in bytes, or is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accel import Perforate
from accel.nn.inference import install, installed
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import Quantization
from accel.zoo.demo_net import DemoResNet
from accel.zoo.hed import HED

models = pytest.importorskip("torchvision.models")
WHOLE = Perforate(keep=1.0, precision="int8")
FITTED = Perforate(keep=0.5, mask="lattice", interpolate="weighted", precision="int8")


class Twice(nn.Sequential):
    """Two 3x3 convolutions, each with a norm and a ReLU."""

    def __init__(self, read: int, given: int) -> None:
        layers = [
            (nn.Conv2d(c, given, 3, padding=1, bias=False), nn.BatchNorm2d(given), nn.ReLU(True)) for c in (read, given)
        ]
        super().__init__(*(layer for row in layers for layer in row))


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv 1505.04597, with norms and padding; enlarged bilinearly, or by transposed
    convolutions."""

    def __init__(self, bilinear: bool) -> None:
        super().__init__()
        enlarge = [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True) for _ in range(2)]
        ups = enlarge if bilinear else [nn.ConvTranspose2d(c, c, 2, 2) for c in (32, 16)]
        self.down = nn.ModuleList([Twice(3, 8), Twice(8, 16), Twice(16, 32)])
        self.ups, self.joint = nn.ModuleList(ups), nn.ModuleList([Twice(48, 16), Twice(24, 8)])
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        maps = []
        for stage in self.down:
            maps.append(stage(self.pool(maps[-1]) if maps else x))
        x = maps.pop()
        for up, joint in zip(self.ups, self.joint):
            x = joint(torch.cat([maps.pop(), up(x)], 1))
        return self.last(x)


NETWORKS = {  # and who reads numbers of a layer in eight bits
    "HED": (HED, {"fuse": ["sigmoid"]}),
    "VGG-16": (lambda: models.vgg.make_layers(models.vgg.cfgs["D"]), {"28": ["30"]}),
    "ResNet-18": (models.resnet18, {"layer4.1.conv2": ["avgpool"]}),
    "ResNet-50": (models.resnet50, {"layer4.2.conv3": ["avgpool"]}),
    "MobileNetV2": (models.mobilenet_v2, {"features.18.0": ["adaptive_avg_pool2d"]}),
    "U-Net": (lambda: UNet(True), {}),
    "U-Net, transposed": (lambda: UNet(False), {"down.2.3": ["ups.0"], "joint.0.3": ["ups.1"]}),
    # the mean over the object is of numbers; the map itself goes on in bytes
    "demo": (lambda: DemoResNet(8), {"stage3.0.conv2": ["mul"], "outline": ["detach", "interpolate_2"]}),
}
LAST = {"HED": "fuse", "VGG-16": "28", "U-Net": "last", "U-Net, transposed": "last", "demo": "outline"}
TRANSPOSED = {"down.2.3", "joint.0.3"}  # read by what has no form in eight bits


def quantized(net: nn.Module, config: Perforate) -> nn.Module:
    """The network in eight bits, its ranges made up: which maps lie in bytes hangs on nothing else."""
    net.eval()
    for name, conv in [(name, each) for name, each in net.named_modules() if type(each) is nn.Conv2d]:
        reach = torch.tensor([[-1.0], [1.0]]).repeat(1, conv.out_channels)
        scale, zero_point = torch.tensor(1 / 32, dtype=torch.float64), torch.tensor(0)
        clip, mean = torch.ones(conv.out_channels), torch.zeros(conv.in_channels)
        made = Quantization(scale, zero_point, clip, mean, reach)
        PerforatedConv2d.adopt(conv, config, name, quantization=made)
    install(net)
    return net


@pytest.mark.parametrize("config", [WHOLE, FITTED], ids=["whole", "weighted"])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_map_between_two_convolutions_makes_a_detour_through_fp32(name, config):
    make, numbers = NETWORKS[name]
    with torch.device("meta") if name in ("VGG-16", "ResNet-50") else torch.device("cpu"):
        net = make()
    net = quantized(net, config)
    (_, path) = installed(net)[0]
    convs = {each for each, module in net.named_modules() if isinstance(module, PerforatedConv2d)}
    last = LAST.get(name, next(iter(numbers), None))
    exempt = TRANSPOSED if "transposed" in name else set()
    assert path.chains.numbers == numbers
    assert set(path.chains.bytes) == convs - {last} - exempt


def test_a_network_calibrated_before_reaches_were_seen_keeps_its_shortcuts_in_fp32():
    net = quantized(models.resnet18(), WHOLE)
    for layer in net.modules():
        if isinstance(layer, PerforatedConv2d):
            tensors = layer.quantization.tensors()
            layer.quantization = Quantization(**{name: t for name, t in tensors.items() if name != "reach"})
    install(net)
    (_, path) = installed(net)[0]
    shortcuts = {f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)}
    assert shortcuts <= path.chains.numbers.keys() and not shortcuts & path.chains.bytes.keys()
