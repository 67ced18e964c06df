"""The public functional API: the ops, and the choice of the backend that runs them."""

from __future__ import annotations

from accel.kernels.dispatch import active_backend, available_backends, use_backend
from accel.kernels.interpolate import interpolate
from accel.kernels.perforated_conv2d import perforated_conv2d

__all__ = ["active_backend", "available_backends", "interpolate", "perforated_conv2d", "use_backend"]
