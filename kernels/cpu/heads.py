"""Halting heads everywhere, on the engine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import address, empty, require_float32
from accel.kernels.cpu.footprints import chain
from accel.kernels.cpu.stage import Grid
from accel.kernels.stage import StageHead


def head_scores(state: Tensor, head: StageHead, *, logits: bool) -> Tensor:
    """See `accel.kernels.stage.head_scores`."""
    require_float32(state)
    batch, channels, height, width = state.shape
    spatial = head.weight is not None
    grid = Grid((height, width), 1 if spatial else 0)
    frames = F.pad(state, (grid.border,) * 4).contiguous(memory_format=torch.channels_last)
    at, steps = grid.places((height, width)), chain(grid.offsets((3, 3), (1, 1), (1, 1)))
    scores = empty((batch, height, width) if spatial else (batch,))
    weights, bias, pooled = (None if t is None else t.contiguous() for t in (head.weight, head.bias, head.pooled))
    _engine.head_scores(
        record.HEAD_JOB.pack(
            x=frames.data_ptr(), weights=address(weights), bias=bias.data_ptr(),
            pooled=pooled.data_ptr(), scores=scores.data_ptr(), at=at.data_ptr(), steps=steps.data_ptr(),
            step_count=len(steps), images=batch, pixels=grid.pixels, count=height * width, channels=channels,
            bias_step=bias[0].numel() if bias.dim() == 3 else 0, logits=logits, threads=torch.get_num_threads(),
        )
    )  # fmt: skip
    return scores
