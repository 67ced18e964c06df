"""Stages of drawn units of many shapes, for the tests of whole stages on the engine."""

import torch
import torch.nn.functional as F
from torch import nn

from accel.config import ACT, PACT, SACT
from accel.nn.adaptive import AdaptiveStage, dense_execution
from accel.nn.stage_outputs import StageOutput, recorded_stages


class Unit(nn.Module):
    """A residual unit in the layout that `describe_unit` knows."""

    def __init__(self, channels_in, channels, hidden, kernels, stride=1, dilation=1, groups=1, project=False):
        super().__init__()
        widths = [channels_in, *[hidden] * (len(kernels) - 1), channels]
        for k, kernel in enumerate(kernels, 1):
            spatial = kernel > 1
            step = {"stride": stride if k == len(kernels) - 1 else 1, "dilation": dilation if spatial else 1}
            pad = (kernel - 1) // 2 * step["dilation"]
            inner = groups if 1 < k < len(kernels) else 1
            conv = nn.Conv2d(widths[k - 1], widths[k], kernel, padding=pad, groups=inner, bias=k % 2 == 0, **step)
            setattr(self, f"conv{k}", conv)
            setattr(self, f"bn{k}", nn.BatchNorm2d(widths[k]))
        self.count = len(kernels)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x):
        out = x
        for k in range(1, self.count + 1):
            out = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(out))
            out = F.relu(out) if k < self.count else out
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def stage_of(config, channels_in, channels, hidden, kernels, units=4, stride=1, seed=0, **more) -> AdaptiveStage:
    torch.manual_seed(seed)
    project = stride != 1 or channels_in != channels
    first = Unit(channels_in, channels, hidden, kernels, stride, project=project, **more)
    others = [Unit(channels, channels, hidden, kernels, **more) for _ in range(units - 1)]
    stage = AdaptiveStage.adopt(nn.Sequential(first, *others), config).eval()
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    for unit in list(stage)[:-1]:
        unit.halting.conv.weight.data.mul_(3)
        unit.halting.conv.bias.data.fill_(-0.5)
    return stage


def run_both_ways(stage: AdaptiveStage, x: torch.Tensor) -> list[tuple[torch.Tensor, StageOutput]]:
    """(output, record) of the engine, which runs, and of dense execution under the mask, which did as much."""
    with torch.no_grad(), recorded_stages() as did:
        out = stage(x)
        assert stage._fused._plans[tuple(x.shape[2:])] is not None
        with dense_execution(stage):
            expected_out = stage(x)
    got, expected = did
    assert torch.equal(got.num_units, expected.num_units)
    assert torch.equal(got.executed_macs, expected.executed_macs)
    return [(out, got), (expected_out, expected)]


BASIC, BOTTLENECK = (3, 3), (1, 3, 1)
SHAPES = {
    "basic": {"channels_in": 16, "channels": 16, "hidden": 16, "kernels": BASIC},
    "basic, odd widths": {"channels_in": 5, "channels": 5, "hidden": 7, "kernels": BASIC},
    "basic, smaller": {"channels_in": 6, "channels": 20, "hidden": 9, "kernels": BASIC, "stride": 2},
    "bottleneck": {"channels_in": 24, "channels": 40, "hidden": 8, "kernels": BOTTLENECK},
    "bottleneck, smaller": {"channels_in": 24, "channels": 72, "hidden": 16, "kernels": BOTTLENECK, "stride": 2},
    "grouped": {"channels_in": 16, "channels": 16, "hidden": 12, "kernels": BOTTLENECK, "groups": 3},
    "dilated": {"channels_in": 8, "channels": 8, "hidden": 8, "kernels": BASIC, "dilation": 2},
    "three windows": {"channels_in": 8, "channels": 8, "hidden": 8, "kernels": (3, 5, 3)},
}


CONFIGS = {
    "ACT": ACT(eps=0.05),
    "SACT": SACT(eps=0.05),
    "PACT, images": PACT(spatial=False),
    "PACT, positions": PACT(),
}
