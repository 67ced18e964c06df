"""The recorded segments of a converted model, and its inference path without them."""

import pytest
import torch
from torch import nn

from accel.nn.inference import installed
from accel.nn.replay import Segment


def segments(net: nn.Module) -> list[Segment]:
    values = installed(net)[0][1].rewritten.fast.__globals__.values()
    return [value.__self__ for value in values if isinstance(getattr(value, "__self__", None), Segment)]


def programs(net: nn.Module) -> list:
    return [program for segment in segments(net) for program in segment._programs.values()]


def unrecorded(net: nn.Module, x: torch.Tensor) -> object:
    """What the inference path computes call by call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segment, "_may_replay", lambda self, inputs: False)
        with torch.no_grad():
            return net(x)
