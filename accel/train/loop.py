"""The training loop, one for every model: AdamW or SGD, a one-cycle schedule, atomic checkpoints, data-parallel under
torchrun.

An interrupted run goes on as if it had not been: batches are a function of the step number, and the learning rate too,
so a checkpoint holds the step, the model's state, the optimiser's moments, and the state of torch's random generators.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from accel.errors import ConfigError, WeightsError
from accel.files import replacing
from accel.train.parallel import is_first, mean_over_processes, synchronised

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SCHEDULES = ("cosine", "constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Attributes: steps; lr, the peak learning rate, reached after `warmup` (fraction of the steps); schedule,
    "cosine", it is lowered to zero along a half cosine, or "constant"; lr_factors, what multiplies it, by pattern
    of parameter names (the first that matches); weight_decay, on tensors of two or more dimensions; optimizer,
    "adamw", or "sgd" with Nesterov momentum 0.9 (what residual networks are published with); freeze_norms, batch
    norms use and keep the statistics they came with; precision, "float32", or "bfloat16": autocast, for GPUs and
    for processors that compute with bfloat16 (with AVX512-BF16 a step of ResNet-32 takes 0.61 of the time, one of
    its SACT form 0.77); checkpoint_every, in steps."""

    steps: int
    lr: float
    lr_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warmup: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    freeze_norms: bool = False
    precision: str = "float32"
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")


def learning_rate(settings: FitSettings, step: int) -> float:
    """The rate of step 0, 1, ..., steps - 1."""
    rise = max(1.0, settings.warmup * settings.steps)
    if step < rise:
        return settings.lr * (step + 1) / rise
    if settings.schedule == "constant":
        return settings.lr
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

    In a process group (see `accel.train.parallel.process_group`) every process calls it with its own share of each
    batch; gradients are averaged, rank 0 writes the checkpoints, and all resume from them.

    Args:
        loss_of_step: draws the batch of a step (deterministically, from the step number) and returns its scalar loss.
        checkpoint: file to continue from where it exists, written every `checkpoint_every` steps and at the end.
        log: called with (step, loss) after every step; the loss is the mean over the processes.

    Raises:
        ConfigError: an unknown optimizer, or a pattern in lr_factors that matches no parameter.
        WeightsError: the checkpoint cannot be read or belongs to another model.
        FloatingPointError: the loss is not finite.
    """
    optimizer = _optimizer(model, settings)
    _warn_of_software(model, settings)
    path = pathlib.Path(checkpoint) if checkpoint is not None else None
    first = _resume(path, model, optimizer) if path is not None and path.exists() else 0
    _training_mode(model, settings)
    parallel = synchronised(model)
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(settings, step)
        with _autocast(model, settings):
            loss = loss_of_step(parallel, step)
        value = mean_over_processes(loss)
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of step {step} is {value}: lower lr={settings.lr:g}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if log is not None:
            log(step, value)
        done = step + 1
        if path is not None and is_first() and (done % settings.checkpoint_every == 0 or done == settings.steps):
            _save(path, done, model, optimizer)
    return model.eval()


def _training_mode(model: nn.Module, settings: FitSettings) -> None:
    model.train()
    if settings.freeze_norms:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _warn_of_software(model: nn.Module, settings: FitSettings) -> None:
    """A step of ResNet-32 takes 16 seconds in bfloat16 and 1.8 in float32 on a Zen 3, which has no bfloat16."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if settings.precision == "bfloat16" and on_cpu and not _cpu_has_bfloat16():
        warnings.warn("this CPU computes bfloat16 in software: precision float32 may be faster by far", stacklevel=3)


def _cpu_has_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _autocast(model: nn.Module, settings: FitSettings) -> torch.autocast:
    precision = PRECISIONS[settings.precision]
    return torch.autocast(next(model.parameters()).device.type, precision, enabled=precision is not torch.float32)


def _optimizer(model: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    groups = _parameter_groups(model, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)
    raise ConfigError(f"optimizer must be adamw or sgd, got {settings.optimizer!r}")


def _parameter_groups(model: nn.Module, settings: FitSettings) -> list[dict]:
    """One group for each pair of (factor of the learning rate, weight decay)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    unused = set(settings.lr_factors)
    for name, parameter in named:
        pattern = next((p for p in settings.lr_factors if fnmatch.fnmatchcase(name, p)), None)
        unused.discard(pattern)
        factor = 1.0 if pattern is None else float(settings.lr_factors[pattern])
        decay = settings.weight_decay if parameter.dim() >= 2 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    if unused:
        some = ", ".join(name for name, _ in named[:4])
        raise ConfigError(f"lr_factors {sorted(unused)[0]!r} matches no parameter: the model's are {some}, ...")
    return [{"params": found, "factor": key[0], "weight_decay": key[1]} for key, found in groups.items()]


def _save(path: pathlib.Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": _random_state()}
    with replacing(path) as partial:
        torch.save(state, partial)


def _resume(path: pathlib.Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        _set_random_state(state["random"])
        return int(state["step"])
    except Exception as error:  # bytes that are no checkpoint can raise anything: struct.error, IndexError, ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path} is not a checkpoint of this model ({reason}): delete it to start anew") from error


def _random_state() -> list[Tensor]:
    """Of the CPU, then of the current CUDA device if there is one."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])
