"""What adaptive stages did, carried by the call that ran them.

An adaptive model opens a list when it is called, its stages add to it, and its output takes it; nothing of a call stays
on a module. So threads may share a model, a stage may run several times in one forward, and a forward that raised
leaves nothing behind. Lists nest: an adaptive model inside another one collects what its own stages did.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from accel.errors import ConfigError
from accel.halting import TruncatedGeometric, mean_ponder, mean_units


@dataclasses.dataclass
class StageOutput:
    """What one stage did in one call. Shapes of decisions per position; where whole images halt, without H and W.

    Attributes:
        ponder_cost: [N, H, W], rho = N + R of section 3.1, between 2 and L + 1; differentiable. Of PACT, the number of
            units under the distribution, between 1 and L; differentiable where decisions are relaxed.
        num_units: int32 [N, H, W], units that ran; in training, where every unit runs everywhere, those that evaluation
            would run.
        halting_distribution: [N, L, H, W], weight of each unit's output; sums to 1 over L.
        executed_macs: int64 [N], convolutions of units and halting heads at the positions where they ran.
        dense_macs: those of all units at all positions, without heads, per image.
        name: of the stage, in the model that was made adaptive.
        halting_logits: of PACT, the log odds of halting in a unit that was reached, [N, L - 1, H, W]; None where a
            stage ran in one call of the engine.
    """

    ponder_cost: Tensor
    num_units: Tensor
    halting_distribution: Tensor
    executed_macs: Tensor
    dense_macs: int
    name: str = ""
    halting_logits: Tensor | None = None

    def mean_ponder(self) -> Tensor:
        """Mean of rho over images and positions, see `accel.halting.mean_ponder`; a differentiable scalar."""
        return mean_ponder(self.ponder_cost, self.num_units)

    def mean_units(self) -> Tensor:
        """Mean number of units that ran at the positions of each image, float64 [N]."""
        return mean_units(self.ponder_cost, self.num_units)

    def divergence(self, tau: float) -> Tensor:
        """KL of the halting distribution from PACT's prior, [N, H, W].

        Raises:
            ConfigError: the log odds were not kept.
        """
        if self.halting_logits is None:
            raise ConfigError(
                f"stage {self.name} ran without keeping its log odds, from which the divergence is: run it in "
                'training, or under accel.evaluate_as(net, "relaxed")'
            )
        logits, weights = self.halting_logits.movedim(1, 0), self.halting_distribution.movedim(1, 0)
        return TruncatedGeometric(tau, len(weights)).divergence(logits, weights)

    def price(self, tau: float, kl: float | None) -> Tensor:
        """What the stage adds to the loss, [N, H, W]."""
        return tau * self.ponder_cost if kl is None else kl * self.divergence(tau)


@dataclasses.dataclass
class AdaptiveOutput:
    """Output of an adaptive network.

    Attributes:
        logits: what the network returned before.
        stages: what its stages did, one entry a call, in the order of the calls: a trunk that a forward calls twice
            has its stages here twice, and they weigh as much in `ponder_loss`; a stage that was not called is missing.
        tau: the weight of the ponder cost.
        kl: of PACT, the weight of the divergence from the prior, which then stands in for the ponder cost.
    """

    logits: Tensor
    stages: list[StageOutput]
    tau: float
    kl: float | None = None

    @property
    def executed_share(self) -> float:
        """MACs the stages executed over those of the plain units, in the whole batch; above 1 when nothing halts.

        NaN where no stage ran on any image.
        """
        executed = sum(int(stage.executed_macs.sum()) for stage in self.stages)
        dense = sum(stage.dense_macs * len(stage.executed_macs) for stage in self.stages)
        return executed / dense if dense else math.nan


def answer_of(outputs: object) -> object:
    """What a network returned, without the record of an adaptive one."""
    return outputs.logits if isinstance(outputs, AdaptiveOutput) else outputs


def ponder_loss(output: AdaptiveOutput) -> Tensor:
    """tau times the sum over `output.stages` of the mean ponder cost (arXiv 1612.02297, eq. 7), for the task's loss.

    Of PACT with kl, kl times the sum of the mean divergences.

    Raises:
        ConfigError: decisions of PACT that were drawn or thresholded, of which the loss says nothing to the heads.
    """
    ran = [stage for stage in output.stages if len(stage.ponder_cost)]
    for stage in ran:
        logits = stage.halting_logits
        if logits is not None and logits.requires_grad and not stage.halting_distribution.requires_grad:
            raise ConfigError(
                f"the decisions of stage {stage.name} are not relaxed: ponder_loss would teach its heads nothing; call "
                'accel.expected_loss, or give PACT a Concrete estimator, or run under accel.evaluate_as(net, "relaxed")'
            )
    if output.kl is None:
        return output.tau * sum(stage.mean_ponder() for stage in ran)
    return output.kl * sum(stage.divergence(output.tau).mean() for stage in ran)


Opened = list[tuple[nn.Module | None, list[StageOutput]]]  # the owners whose calls are under way, the innermost last

# (thread, its opened lists). A context that a task took to another thread brings the pair of that thread along.
_opened: contextvars.ContextVar[tuple[int, Opened] | None] = contextvars.ContextVar("accel_stage_outputs", default=None)


def _of_this_thread() -> Opened:
    found = _opened.get()
    # torch.compile lets nobody set a context variable or ask for the thread, but looks the list up at every call
    if found is None or not (torch.compiler.is_compiling() or found[0] == threading.get_ident()):
        found = (threading.get_ident(), [])
        _opened.set(found)
    return found[1]


def open_list(owner: nn.Module | None, _inputs: tuple = ()) -> None:
    """Collect what stages do from now on; a forward pre-hook of adaptive models."""
    _of_this_thread().append((owner, []))


def close_list(owner: nn.Module | None) -> list[StageOutput]:
    """What the stages did since the owner's list was opened; lists that an interrupt left open inside it go as well."""
    opened = _of_this_thread()
    while opened:
        found, outputs = opened.pop()
        if found is owner:
            return outputs
    return []


def add(output: StageOutput) -> None:
    """Say what a stage did, to whoever collects it."""
    opened = _of_this_thread()
    if opened:
        opened[-1][1].append(output)


@contextlib.contextmanager
def recorded_stages() -> Iterator[list[StageOutput]]:
    """Within the block, stages that this thread calls by themselves, outside of their model, add to the list."""
    open_list(None)
    try:
        yield _of_this_thread()[-1][1]
    finally:
        close_list(None)


_of_this_thread()  # so that a compiled model finds the list of the main thread
