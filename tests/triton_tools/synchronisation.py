"""Finds host synchronisation: code that needs a number which, on a GPU, the host would have to wait for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

# Operators that bring a number, or a size that depends on numbers, to the host; item() and bool() are the first.
OPERATORS = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",  # indexing with a mask calls it
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::equal",
}
# What reads a CPU tensor without an operator, and would copy one from a GPU.
METHODS = ("tolist", "numpy", "cpu", "__array__")


@contextlib.contextmanager
def no_synchronisation() -> Iterator[set[str]]:
    """AssertionError where the block waits for the device; yields the names of its operators, filled at its end.

    A profiler watches, not a dispatch mode: ops that skip torch's dispatcher in plain inference still skip it, and what
    they call inside is seen.
    """
    seen: set[str] = set()

    def forbid(name: str):
        def wait(self, *args, **kwargs):
            raise AssertionError(f"Tensor.{name} waits for the device")

        return wait

    with pytest.MonkeyPatch.context() as patch, profile(activities=[ProfilerActivity.CPU]) as watched:
        for name in METHODS:
            patch.setattr(torch.Tensor, name, forbid(name))
        yield seen
    seen |= {event.key for event in watched.key_averages()}
    waits = sorted(seen & OPERATORS)
    if waits:
        raise AssertionError(f"{', '.join(waits)} waits for the device")
