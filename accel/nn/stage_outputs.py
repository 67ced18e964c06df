"""What ACT and SACT stages did, carried by the call that ran them.

An adaptive model opens a list when it is called, its stages add to it, and its output takes it; nothing of a call stays
on a module. So threads may share a model, a stage may run several times in one forward, and a forward that raised
leaves nothing behind. Lists nest: an adaptive model inside another one collects what its own stages did.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn


@dataclasses.dataclass
class StageOutput:
    """What one stage did in one call. Shapes for SACT; ACT has no H and W.

    Attributes:
        ponder_cost: [N, H, W], rho = N + R of section 3.1, between 2 and L + 1; differentiable.
        num_units: int32 [N, H, W], units that ran.
        halting_distribution: [N, L, H, W], weight of each unit's output; sums to 1 over L.
        executed_macs: int64 [N], convolutions of units and halting heads at the positions where they ran.
        dense_macs: those of all units at all positions, without heads, per image.
        name: of the stage, in the model that was made adaptive.
    """

    ponder_cost: Tensor
    num_units: Tensor
    halting_distribution: Tensor
    executed_macs: Tensor
    dense_macs: int
    name: str = ""


@dataclasses.dataclass
class AdaptiveOutput:
    """Output of an adaptive network.

    Attributes:
        logits: what the network returned before.
        stages: what its stages did, one entry a call, in the order of the calls: a trunk that a forward calls twice
            has its stages here twice, and they weigh as much in `ponder_loss`; a stage that was not called is missing.
        tau: the weight of the ponder cost.
    """

    logits: Tensor
    stages: list[StageOutput]
    tau: float

    @property
    def executed_share(self) -> float:
        """MACs the stages executed over those of the plain units, in the whole batch; above 1 when nothing halts.

        NaN where no stage ran on any image.
        """
        executed = sum(int(stage.executed_macs.sum()) for stage in self.stages)
        dense = sum(stage.dense_macs * len(stage.executed_macs) for stage in self.stages)
        return executed / dense if dense else math.nan


def ponder_loss(output: AdaptiveOutput) -> Tensor:
    """tau times the sum over `output.stages` of the mean ponder cost (arXiv 1612.02297, eq. 7), for the task's loss."""
    return output.tau * sum(stage.ponder_cost.mean() for stage in output.stages if len(stage.ponder_cost))


class _Open(NamedTuple):
    """A list that stages add to now; its owner is the model whose call it belongs to."""

    owner: nn.Module | None
    outputs: list[StageOutput]
    outer: _Open | None


class _Thread(threading.local):  # not a ContextVar, which torch.compile(fullgraph=True) does not let anyone set
    innermost: _Open | None = None


_thread = _Thread()


def open_list(owner: nn.Module | None, _inputs: tuple = ()) -> None:
    """Collect what stages do from now on; a forward pre-hook of adaptive models."""
    _thread.innermost = _Open(owner, [], _thread.innermost)


def close_list(owner: nn.Module | None) -> list[StageOutput]:
    """What the stages did since the owner's list was opened; lists that an interrupt left open inside it go as well."""
    found = _thread.innermost
    while found is not None and found.owner is not owner:
        found = found.outer
    if found is None:
        return []
    _thread.innermost = found.outer
    return found.outputs


def add(output: StageOutput) -> None:
    """Say what a stage did, to whoever collects it."""
    if _thread.innermost is not None:
        _thread.innermost.outputs.append(output)


@contextlib.contextmanager
def recorded_stages() -> Iterator[list[StageOutput]]:
    """Within the block, stages that this thread calls by themselves, outside of their model, add to the list."""
    open_list(None)
    try:
        yield _thread.innermost.outputs
    finally:
        close_list(None)
