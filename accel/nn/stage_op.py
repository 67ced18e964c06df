"""adaptive_stage: an adaptive stage in evaluation as torch.compile sees it, one op with outputs of dense shapes.

Which units run where is data, which no compiler can trace; inside of the op the stage runs as it does eagerly, by the
engine where that can. The op names the stage by its identity, on which torch.compile puts a guard. Exported programs,
which may run in other processes, hold the units instead, run densely under their masks.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from accel.kernels.counting import Work, register_macs
from accel.nn.stage_outputs import StageOutput, add, recorded_stages
from accel.nn.witness import unwatched

if TYPE_CHECKING:
    from accel.nn.adaptive import AdaptiveStage

_stages: weakref.WeakValueDictionary[int, AdaptiveStage] = weakref.WeakValueDictionary()


def know(stage: AdaptiveStage) -> None:
    """Let the op find the stage."""
    _stages[id(stage)] = stage


def run_stage(stage: AdaptiveStage, x: Tensor) -> Tensor:
    """What the stage makes of x [N, C, H, W], in one op; what it did is recorded."""
    output, *did = torch.ops.accel.adaptive_stage.default(x, id(stage))
    add(StageOutput(*did, stage._dense_macs(x), stage.name))
    return output


@torch.library.custom_op("accel::adaptive_stage", mutates_args=(), schema="(Tensor x, int stage) -> Tensor[]")
def _run(x, stage):
    with torch.no_grad(), unwatched(), recorded_stages() as outputs:
        output = type(_stages[stage]).forward(_stages[stage], x)  # whoever hooks the stage has been called
    did = outputs[-1]
    tensors = (did.ponder_cost, did.num_units, did.halting_distribution, did.executed_macs)
    return [output.contiguous(memory_format=torch.channels_last), *(tensor.contiguous() for tensor in tensors)]


@_run.register_fake
def _(x, stage):
    stage = _stages[stage]
    channels, *size = stage.output_shape(*x.shape[2:])
    images, positions = x.shape[0], tuple(size) if stage.spatial else ()
    wide = torch.promote_types(x.dtype, torch.float32)
    return [
        torch.empty((images, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last),
        x.new_empty(images, *positions, dtype=wide),
        x.new_empty(images, *positions, dtype=torch.int32),
        x.new_empty(images, len(stage), *positions, dtype=wide),
        x.new_empty(images, dtype=torch.int64),
    ]


def _work(args: Sequence, out: Sequence[Tensor]) -> Work:
    x, stage = args
    dense = x.shape[0] * _stages[stage]._dense_macs(x)
    return Work(x.shape[0], out[-1], dense, dense)


register_macs("adaptive_stage", _work)
