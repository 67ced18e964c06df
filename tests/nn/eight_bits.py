"""What tests of networks in eight bits share: pictures, configurations, and a conversion calibrated on the former."""

import torch
import torch.nn.functional as F

import accel
from accel import Perforate

WHOLE = Perforate(keep=1.0, precision="int8")


def pictures(count=6, size=20, seed=1):
    """Smooth ones, so that neighbours say something of each other."""
    small = torch.randn(count, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, size=(size, size), mode="bilinear")


def convert(net, rules=WHOLE, x=None, **how):
    x = pictures() if x is None else x
    return accel.convert_model(net, rules, example_inputs=x[:2], calibration=[x], **how)


FILLS = {
    "whole": WHOLE,
    "nearest": Perforate(keep=0.5, mask="lattice", precision="int8"),
    "weighted": Perforate(keep=0.5, mask="lattice", interpolate="weighted", precision="int8"),
    "zero": Perforate(keep=0.5, interpolate="zero", precision="int8"),
    "fitted": Perforate(keep=0.5, mask="lattice", interpolate="fitted", correct="scale", precision="int8"),
    "refitted": Perforate(keep=0.5, mask="lattice", interpolate="fitted", precision="int8"),
}
