"""The ops of the CPU engine: the arguments of `accel.kernels.reference`, fp32 CPU tensors in, fresh tensors out.

Importing this module raises ImportError where the engine was not built. The environment variable ACCEL_CPU_ISA (avx512,
avx2 or portable) forces an instruction set; otherwise the best that the machine can run is used.
"""

from __future__ import annotations

import os

from accel.kernels.cpu import _engine
from accel.kernels.cpu.backward import masked_conv2d_backward, perforated_conv2d_backward
from accel.kernels.cpu.fitted import interpolate_fitted, interpolate_fitted_backward, quantized_interpolate
from accel.kernels.cpu.forward import masked_conv2d, masked_conv2d_, perforated_conv2d
from accel.kernels.cpu.heads import head_scores
from accel.kernels.cpu.quantized import quantize, quantized_conv2d
from accel.kernels.cpu.replay import isa, prepare_replay
from accel.kernels.cpu.sets import (
    active_positions,
    halting_step,
    halting_step_,
    halting_step_backward,
    interpolate,
    interpolate_backward,
    join_rows,
    local_deviation,
    max_rows,
    mean_rows,
    ponder_cost,
    select_positions,
)
from accel.kernels.cpu.stage import plan_stage

__all__ = [
    "active_positions",
    "halting_step",
    "halting_step_",
    "halting_step_backward",
    "head_scores",
    "interpolate",
    "interpolate_backward",
    "interpolate_fitted",
    "interpolate_fitted_backward",
    "isa",
    "join_rows",
    "local_deviation",
    "masked_conv2d",
    "masked_conv2d_",
    "masked_conv2d_backward",
    "max_rows",
    "mean_rows",
    "perforated_conv2d",
    "perforated_conv2d_backward",
    "plan_stage",
    "ponder_cost",
    "prepare_replay",
    "quantize",
    "quantized_conv2d",
    "quantized_interpolate",
    "select_positions",
]

if os.environ.get("ACCEL_CPU_ISA"):
    _engine.set_isa(os.environ["ACCEL_CPU_ISA"])
