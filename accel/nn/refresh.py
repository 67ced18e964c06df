"""The documented answer to writes that torch cannot see."""

from __future__ import annotations

import torch
from torch import nn


def refresh(model: nn.Module) -> None:
    """Let a converted model compute with its parameters and buffers as they are now.

    Torch counts the writes to a tensor, and a converted model follows them by itself. Writes that torch cannot count,
    through `.data`, `.detach().numpy()` or shared memory, need this call. Until then convolutions, and what is folded
    into them, go on with all their values of before; layers without copies of their own, such as nn.Linear, read what
    is there.

    To autograd it is a write: a backward pass of a forward that ran before raises.
    """
    tensors = (*model.parameters(), *model.buffers())
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])
