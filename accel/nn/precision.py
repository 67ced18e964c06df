"""Which layers can compute in which precision, and what this machine has for it."""

from __future__ import annotations

import torch
from torch import nn

from accel.config import Perforate
from accel.kernels.bf16 import multiplies_bf16
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import why_not_bytes


def why_not(config: Perforate, layer: nn.Conv2d) -> str | None:
    """Why the layer cannot compute in the configuration's precision, or None."""
    if config.in_bytes:
        return why_not_bytes(layer)
    if config.in_bf16 and layer.weight.dtype is not torch.float32:
        return f"has {layer.weight.dtype} weights, and bf16 is made of float32 ones"
    return None


def imitated_bf16(model: nn.Module) -> str | None:
    """One line where layers of a converted model compute in bf16 and nothing here has instructions for it, or None."""
    layers = [layer for layer in model.modules() if isinstance(layer, PerforatedConv2d) and layer.config.in_bf16]
    where = sorted({str(layer.weight.device) for layer in layers if not multiplies_bf16(layer.weight.device)})
    if not where:
        return None
    lacking = "this CPU has no bf16 instructions (AVX512_BF16)" if where == ["cpu"] else f"on {', '.join(where)} too"
    return f"precision 'bf16': {lacking}, numbers are rounded in software: right, but no faster than fp32 here"
