"""`accel.finetune`: a converted model learns to give the outputs of the dense one it was made from."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.errors import ConfigError, DataError
from accel.inputs import Batch, batch_for, batches
from accel.nn.perforated import PerforatedConv2d
from accel.profiling.distances import divergence
from accel.running import evaluation, floating_tensors, has_labels
from accel.train.loop import FitSettings, fit

NORM_BATCHES = 50  # batches that the statistics of batch norms are taken from, at most


def finetune(
    model: nn.Module,
    *,
    teacher: nn.Module | None = None,
    data: Iterable | Callable[[int], tuple],
    steps: int = 200,
    lr: float = 1e-5,
    labels: float | None = None,
    features: float = 0.0,
    loss: Callable[[object, object], Tensor] | None = None,
    checkpoint: str | os.PathLike | None = None,
    log: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> nn.Module:
    """Train `model` in place, through its perforated layers and fitted sums; returns it in eval mode.

    The fits themselves stay as the calibration made them. Where there are batch norms, their statistics are taken
    anew at the end: they were those of the dense network, then moving averages over the training.

    Args:
        model: converted; its parameters are trained.
        teacher: the dense original, which must not share parameters with `model`; left as it is. None: labels only.
        data: a re-iterable of batches, tuples (input, labels, ...) among them, see `accel.inputs`, begun again when it
            ends; or the batch of a step as a function of its number, such as `accel.train.batches.PictureBatches`. An
            interrupted run goes on exactly as if it had not been where the same step always gets the same batch.
        steps: batches to train on.
        lr: peak learning rate; 1e-5 suits AdamW on a network whose outputs are still close.
        labels: weight of the cross-entropy with the batch's labels, in [0, 1], distillation having the rest; by default
            0 with a teacher and 1 without.
        features: weight of the relative squared difference between the outputs of the perforated layers and those of
            the same layers of the teacher.
        loss: (outputs, teacher's outputs) -> scalar, instead of `distance`.
        checkpoint: file to go on from, written as training goes; see `accel.train.loop.fit`.
        log: called with (step, loss) after every step.
        settings: more of `accel.train.loop.FitSettings`: weight_decay, optimizer, warmup, ...

    Raises:
        ConfigError: no teacher and no labels, weights out of range, or a teacher that shares parameters.
        DataError: no data, or no labels where they are wanted.
        WeightsError, FloatingPointError: as `fit`.
    """
    share = (0.0 if teacher is not None else 1.0) if labels is None else float(labels)
    _check(model, teacher, share, features)
    batch_of_step = (lambda step: batch_for(model, data(step))) if callable(data) else _Cycle(data, model)
    watched = _pairs(model, teacher) if features else ([], [])

    def loss_of_step(trained: nn.Module, step: int) -> Tensor:
        batch = batch_of_step(step)
        with (
            _outputs_of(watched[0]) as ours,
            _outputs_of(watched[1]) as theirs,
        ):
            outputs, total = batch.run(trained), 0.0
            if share < 1:
                with evaluation(teacher), torch.no_grad():
                    target = batch.run(teacher)
                total = (1 - share) * (loss or distance)(outputs, target)
        if share > 0:
            total = total + share * _cross_entropy(outputs, batch)
        return total + features * sum(map(_relative, ours, theirs)) / len(ours) if ours else total

    fit(model, loss_of_step, FitSettings(steps=steps, lr=lr, **settings), checkpoint=checkpoint, log=log)
    _reestimate(model, (batch_of_step(step) for step in range(min(steps, NORM_BATCHES))))
    return model


def distance(outputs: object, target: object) -> Tensor:
    """How far outputs are from the target: KL(target, ours) of the softmax of logits [N, K], K > 1; of any others,
    and so of maps of probabilities, the mean absolute difference."""
    pairs = list(zip(floating_tensors(outputs), floating_tensors(target)))
    if not pairs:
        raise ConfigError("the model returns no floating tensor: pass loss= that compares its outputs")
    return sum(divergence(ours, theirs, F.l1_loss) for ours, theirs in pairs)


def reestimate_norms(model: nn.Module, data: Iterable) -> None:
    """Replace the statistics of all batch norms by the plain mean over the batches of `data`; nothing else changes.

    A perforated network's activations have other means and variances than the dense one's, so that this alone, without
    any training, wins back part of what was lost.

    Raises:
        DataError: unusable data; the statistics are then what they were.
    """
    _reestimate(model, batches(data, model))


@torch.no_grad()
def _reestimate(model: nn.Module, found: Iterable[Batch]) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    before = [(norm.momentum, copy.deepcopy(norm._buffers)) for norm in norms]
    try:
        with evaluation(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
                norm.train()
            for batch in found:
                batch.run(model)
    except BaseException:
        for norm, (_, statistics) in zip(norms, before):
            for name, tensor in statistics.items():
                norm._buffers[name].copy_(tensor)
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before):
            norm.momentum = momentum


class _Cycle:
    """The batch of a step from data that is begun again whenever it ends."""

    def __init__(self, data: Iterable, model: nn.Module) -> None:
        self.data, self.model, self.step, self.rest = data, model, 0, None

    def __call__(self, step: int) -> Batch:
        if self.rest is None or step < self.step:
            self.rest, self.step = self._forever(), 0
        for batch in self.rest:
            self.step += 1
            if self.step > step:
                return batch
        raise AssertionError("an endless iterator ended")

    def _forever(self) -> Iterator[Batch]:
        while True:
            yield from batches(self.data, self.model, "training")


def _check(model: nn.Module, teacher: nn.Module | None, share: float, features: float) -> None:
    if not 0 <= share <= 1 or features < 0:
        raise ConfigError(f"labels must lie in [0, 1] and features be at least 0, got {share:g} and {features:g}")
    if teacher is None:
        if share < 1 or features:
            raise ConfigError("distillation needs a teacher: pass teacher= the dense model, or train with labels=1")
        return
    own = {parameter.data_ptr() for parameter in model.parameters()}
    if any(parameter.data_ptr() in own for parameter in teacher.parameters()):
        raise ConfigError(
            "teacher and model share parameters, so the teacher would move along: convert without inplace=True, or "
            "pass a copy"
        )


def _pairs(model: nn.Module, teacher: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The perforated layers, and the layers of the same names in the teacher."""
    theirs = dict(teacher.named_modules())
    ours = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PerforatedConv2d)]
    missing = [name for name, _ in ours if name not in theirs]
    if missing or not ours:
        said = f"the teacher has no layer {missing[0]!r}" if missing else "the model has no perforated layer"
        raise ConfigError(f"{said}: leave out features=, or pass the model's own dense original")
    return [layer for _, layer in ours], [theirs[name] for name, _ in ours]


@contextlib.contextmanager
def _outputs_of(layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """The list of the layers' outputs, in the order they run; cloned where an activation overwrites them in place."""
    found: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda _m, _i, out: found.append(out.clone())) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """Squared difference over the variance of the teacher's."""
    return F.mse_loss(ours, theirs) / theirs.var().clamp_min(torch.finfo(theirs.dtype).tiny)


def _cross_entropy(outputs: object, batch: Batch) -> Tensor:
    if not has_labels(outputs, batch.labels):
        raise DataError("labels= needs batches (input, integer labels [N]) and a model that returns logits [N, K]")
    return F.cross_entropy(floating_tensors(outputs)[0], batch.labels)
