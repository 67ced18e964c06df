"""Training a VAEAC on a table: averaged weights, early stopping by the importance-weighted bound on fixed masks."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from accel.errors import DataError
from accel.vae.mask_generators import MaskGenerator
from accel.vae.vaeac import VAEAC

_CHECKS = 20  # looks at the validation rows in a training
_SAMPLES = 10  # of the bound that chooses; their noise is the same at every look
_LEAST_VALIDATION = 20  # rows: the bound of fewer is noise, and training goes on to its end
_AVERAGE = 0.995  # weights are averaged over some 200 steps
_CLIP = 1.0  # gradient norm: cells of 20 deviations and more are common in tables


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how: steps of batch rows each, Adam's peak learning rate, share of rows held out, looks without
    improvement after which it stops."""

    steps: int
    batch: int
    lr: float
    validation: float
    patience: int


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training found: the bound on the validation rows at every look (nats per row; empty without such rows),
    and the number of steps after which the weights that were kept stood."""

    bounds: list[float]
    steps: int


def train(
    model: VAEAC,
    cells: Tensor,
    masks: MaskGenerator,
    settings: Training,
    generator: torch.Generator,
    tick: Callable[[], object] = lambda: None,
) -> Trained:
    """Train `model` in place on cells [N, D], NaN where missing; leave the best averaged weights in it.

    Args:
        generator: of everything drawn.
        tick: called after every step.

    Raises:
        DataError: the loss is no longer finite.
    """
    order = torch.randperm(len(cells), generator=generator, device=cells.device)
    held = round(settings.validation * len(cells))
    held = held if held >= _LEAST_VALIDATION else 0
    validation, rows = cells[order[:held]], cells[order[held:]]
    hidden = masks(validation, generator) if held else None
    best = average = copy.deepcopy(model)
    kept = Trained([], 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    every = max(1, settings.steps // _CHECKS)
    for step in range(1, settings.steps + 1):
        _set_lr(optimizer, settings, step)
        count = min(settings.batch, len(rows))
        chosen = torch.randint(len(rows), (count,), generator=generator, device=cells.device)
        _step(model, optimizer, rows[chosen], masks, generator, step)
        with torch.no_grad():
            share = 1 - min(_AVERAGE, step / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
        tick()
        if held and (step % every == 0 or step == settings.steps):
            bound = _validate(average, validation, hidden)
            if not kept.bounds or bound > max(kept.bounds):
                best, kept = copy.deepcopy(average), Trained([*kept.bounds, bound], step)
            else:
                kept = Trained([*kept.bounds, bound], kept.steps)
            if len(kept.bounds) - 1 - kept.bounds.index(max(kept.bounds)) >= settings.patience:
                break
    if not held:
        best, kept = average, Trained([], settings.steps)
    model.load_state_dict(best.state_dict())
    return kept


def _set_lr(optimizer: torch.optim.Optimizer, settings: Training, step: int) -> None:
    """A short rise, then half a cosine down to nothing."""
    share = step / settings.steps
    factor = share / 0.05 if share < 0.05 else 0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95))
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * factor


def _step(
    model: VAEAC,
    optimizer: torch.optim.Optimizer,
    rows: Tensor,
    masks: MaskGenerator,
    generator: torch.Generator,
    step: int,
) -> None:
    loss = model.loss(rows, masks(rows, generator), generator=generator)
    if not loss.isfinite():
        raise DataError(
            f"the loss is {loss.item()} after {step} steps: lower learning_rate, or look for values far from all others"
        )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimizer.step()


@torch.no_grad()
def _validate(model: VAEAC, cells: Tensor, hidden: Tensor) -> float:
    fixed = torch.Generator(device=cells.device).manual_seed(0)
    return model.iwae(cells, hidden, _SAMPLES, generator=fixed).mean().item()
