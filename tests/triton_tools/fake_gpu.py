"""The package's pretend card with numbers: what a launch computes comes from the checked interpreter."""

from __future__ import annotations

import contextlib

from accel.profiling.pretend_gpu import Record, pretend_gpu

from .interp_switch import interpret, interpreted


def _execute(kernel, grid, args) -> None:
    with interpret():
        interpreted(kernel)[grid](*args)


def fake_gpu(target: str = "sm90") -> contextlib.AbstractContextManager[Record]:
    """Compile every launch for `target`, then run it in the interpreter on the CPU tensors."""
    return pretend_gpu(target, _execute)
