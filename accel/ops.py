"""The public functional API: the ops, and the choice of the backend that runs them."""

from __future__ import annotations

from accel.kernels.active_positions import active_positions
from accel.kernels.dispatch import active_backend, available_backends, use_backend
from accel.kernels.halting_step import halting_step, halting_step_
from accel.kernels.interpolate import interpolate
from accel.kernels.local_deviation import local_deviation
from accel.kernels.masked_conv2d import masked_conv2d, masked_conv2d_
from accel.kernels.perforated_conv2d import perforated_conv2d
from accel.kernels.ponder_cost import ponder_cost
from accel.kernels.quantization import Affine, Requantization
from accel.kernels.quantized_conv2d import quantized_conv2d
from accel.kernels.select_positions import select_positions

__all__ = [
    "Affine",
    "Requantization",
    "active_backend",
    "active_positions",
    "available_backends",
    "halting_step",
    "halting_step_",
    "interpolate",
    "local_deviation",
    "masked_conv2d",
    "masked_conv2d_",
    "perforated_conv2d",
    "ponder_cost",
    "quantized_conv2d",
    "select_positions",
    "use_backend",
]
