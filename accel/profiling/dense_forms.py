"""The forms in which a dense network is timed: NCHW, channels_last, and compiled; a rival must beat the fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from accel.inputs import Inputs
from accel.profiling.sides import dense_sides, laid_out
from accel.running import copied, evaluated

COMPILED = "dense_compiled"


def dense_forms(
    model: nn.Module, x: Tensor, compiled: bool = True, *, reset: bool = True
) -> dict[str, Callable[[], object]]:
    """Sides of `model` on x in every form; batch norms are folded in the compiled one."""
    sides = dense_sides(model, x)
    return {**sides, COMPILED: compiled_side(model, x, reset=reset)} if compiled else sides


def compiled_side(model: nn.Module, x: Inputs, *, reset: bool = True) -> Callable[[], object]:
    """A side, to be run in inference mode: a copy of `model` in channels_last, compiled with frozen weights, on x.

    Compiled sides made before are lost, unless `reset` is False: then all count towards the limit of recompilations.
    """
    import torch._inductor.config as inductor

    net = evaluated(copied(model)).to(memory_format=torch.channels_last)
    given = laid_out(x, torch.channels_last)
    if reset:
        torch.compiler.reset()
    with inductor.patch(freezing=True), torch.inference_mode(), torch.no_grad():
        code = torch.compile(net, dynamic=False)
        given.run(code)
    return lambda: given.run(code)
