"""One training loop: AdamW or SGD, a one-cycle schedule, atomic checkpoints.

An interrupted run goes on as if it had not been: batches are a function of the step number, and the learning rate too,
so a checkpoint holds nothing but the step, the parameters and the optimiser's moments.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from accel.errors import ConfigError, WeightsError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Attributes: steps; lr, the peak learning rate, reached after `warmup` (fraction of the steps) and lowered to
    zero along a half cosine; weight_decay, on tensors of two or more dimensions; optimizer, "adamw", or "sgd" with
    Nesterov momentum 0.9 (what residual networks are published with); checkpoint_every, in steps."""

    steps: int
    lr: float
    warmup: float = 0.1
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    checkpoint_every: int = 200


def learning_rate(settings: FitSettings, step: int) -> float:
    """The rate of step 0, 1, ..., steps - 1."""
    rise = max(1.0, settings.warmup * settings.steps)
    if step < rise:
        return settings.lr * (step + 1) / rise
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, settings.steps - rise)))


def fit(
    model: nn.Module,
    loss_of_step: Callable[[nn.Module, int], Tensor],
    settings: FitSettings,
    *,
    checkpoint: str | os.PathLike | None = None,
    log: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train `model` in place; returns it in eval mode.

    Args:
        loss_of_step: draws the batch of a step (deterministically, from the step number) and returns its scalar loss.
        checkpoint: file to continue from where it exists, written every `checkpoint_every` steps and at the end.
        log: called with (step, loss) after every step.

    Raises:
        WeightsError: the checkpoint cannot be read or belongs to another model.
        FloatingPointError: the loss is not finite.
    """
    optimizer = _optimizer(model, settings)
    path = pathlib.Path(checkpoint) if checkpoint is not None else None
    first = _resume(path, model, optimizer) if path is not None and path.exists() else 0
    model.train()
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        loss = loss_of_step(model, step)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}: lower lr={settings.lr:g}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if log is not None:
            log(step, loss.item())
        done = step + 1
        if path is not None and (done % settings.checkpoint_every == 0 or done == settings.steps):
            _save(path, done, model, optimizer)
    return model.eval()


def _optimizer(model: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    groups = _parameter_groups(model, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)
    raise ConfigError(f"optimizer must be adamw or sgd, got {settings.optimizer!r}")


def _parameter_groups(model: nn.Module, settings: FitSettings) -> list[dict]:
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _save(path: pathlib.Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    temporary = path.with_name(path.name + ".part")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, temporary)
    os.replace(temporary, path)


def _resume(path: pathlib.Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except Exception as error:  # bytes that are no checkpoint can raise anything: struct.error, IndexError, ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path} is not a checkpoint of this model ({reason}): delete it to start anew") from error
