"""Compiling and tuning ahead of the first real call."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton


def warmup(model: Callable[..., object], *inputs: object) -> int:
    """Call `model(*inputs)` once, so that every kernel it needs is compiled and tuned before it matters.

    A kernel and config take 0.3 to 0.9 s to compile, and a layer has two or three configs. Compiled code and the
    tuner's choices are kept in triton's cache folder; neither depends on batch or map size, so any input of the right
    dtype will do. Gradients are recorded if they are outside.

    Returns:
        The number of kernels compiled or read from the cache folder; 0 where all were loaded.
    """
    loaded = 0
    previous = triton.knobs.compilation.listener

    def count(**event) -> None:
        nonlocal loaded
        loaded += 1
        if previous is not None:
            previous(**event)

    with triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = count
        model(*inputs)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return loaded
