"""How the stages of a PACT network decide, in this thread or task: by their mode, or as an estimator needs.

In evaluation they halt where that is likelier than not. In training decisions are relaxed where the estimator is
Concrete, else drawn.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from accel.config import PACT, Halting
from accel.errors import ConfigError, ConversionError
from accel.halting import AddedScores, Policy, Sticks, thresholded
from accel.mc.relaxed import BinaryRelaxation
from accel.running import one_by_one

if TYPE_CHECKING:
    from accel.nn.adaptive import AdaptiveStage

MODES = ("relaxed", "sampled", "thresholded")
EVALUATION = Sticks(thresholded)


class Choice(Protocol):
    """Who decides for some stages.

    Attributes:
        leads: whether a forward under it is a step of training, which moves the tau of a target.
    """

    leads: bool

    def policy(self, config: PACT) -> Sticks:
        """Called once at every call of a stage."""


class Mode:
    """One of `MODES`."""

    leads = True

    def __init__(self, name: str, generator: torch.Generator | None = None) -> None:
        self.name, self.generator = name, generator

    def policy(self, config: PACT) -> Sticks:
        if self.name == "thresholded":
            return EVALUATION
        if self.name == "sampled":
            return Sticks(self.sampled)
        temperature = config.temperature
        return Sticks(
            lambda logits, _: BinaryRelaxation.soft(self.latent(logits), temperature), not config.spatial, plans=True
        )

    def sampled(self, logits: Tensor, remainder: Tensor) -> Tensor:
        return BinaryRelaxation.hard(self.latent(logits.detach())).to(remainder.dtype)

    def latent(self, logits: Tensor) -> Tensor:
        """Log odds with logistic noise: relaxed decisions, and those drawn, from the same random numbers."""
        return BinaryRelaxation.latent(logits, self.generator)


_DEFAULTS = {name: Mode(name) for name in MODES}
_choices: contextvars.ContextVar[tuple[tuple[frozenset, Choice], ...]] = contextvars.ContextVar(
    "accel_decisions", default=()
)


def chosen(stage: nn.Module) -> Choice | None:
    """Who was asked to decide for a stage, last."""
    return next((choice for stages, choice in reversed(_choices.get()) if stage in stages), None)


def policy_of(stage: AdaptiveStage) -> Policy:
    """The policy of a call that a stage is about to run."""
    config = stage.config
    if not isinstance(config, PACT):
        return stage._fused.policy
    return decisions_of(stage, config)


def decisions_of(stage: nn.Module, config: PACT) -> Sticks:
    """The same of a module under PACT."""
    choice = chosen(stage)
    if choice is None:
        trained = "relaxed" if config.relaxes else "sampled"
        choice = _DEFAULTS[trained if stage.training else "thresholded"]
    return choice.policy(config)


def evaluation_policy(config: Halting) -> Policy:
    """The policy of evaluation, which the engine knows."""
    return EVALUATION if isinstance(config, PACT) else AddedScores(config.eps, freezes=config.spatial)


@contextlib.contextmanager
def decide_by(stages: Collection[nn.Module], choice: Choice) -> Iterator[None]:
    """Within the block, in this thread or task, the choice decides for the stages."""
    token = _choices.set((*_choices.get(), (frozenset(stages), choice)))
    try:
        with one_by_one():  # a rewritten forward is compared with the own one, which would draw other decisions
            yield
    finally:
        _choices.reset(token)


@contextlib.contextmanager
def evaluate_as(net: nn.Module, mode: str) -> Iterator[None]:
    """Within the block, in this thread or task, the PACT stages of a network decide in one of three ways.

    Args:
        mode: "relaxed", as Concrete trains (at its temperature, or 2/3); "sampled", decisions drawn from their
            probabilities; "thresholded", halting where that is likelier than not, which is what `eval()` does.

    Raises:
        ConfigError: another mode.
        ConversionError: the network has no PACT stage.
    """
    if mode not in MODES:
        raise ConfigError(f"unknown mode of evaluation {mode!r}: choose one of {', '.join(MODES)}")
    with decide_by(pact_stages(net), _DEFAULTS[mode]):
        yield


def pact_stages(net: nn.Module) -> list[nn.Module]:
    """The stages and cells of a network under PACT; ConversionError where there is none."""
    found = [module for module in net.modules() if isinstance(getattr(module, "config", None), PACT)]
    if not found:
        raise ConversionError(f"{type(net).__name__} has no PACT stage: convert it with accel.PACT(...) first")
    return found
