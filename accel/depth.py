"""Residual networks with fewer units: those that matter least are left out, for every picture.

The fixed form of what ACT decides for each picture. Veit, Wilber, Belongie, "Residual networks behave like ensembles of
relatively shallow networks", NIPS 2016 (arXiv 1605.06431), section 4.1: a trained network loses little without a unit.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import nn

from accel.calibrate import pictures_of_one_size
from accel.distill import distance, reestimate_norms
from accel.errors import ConfigError, ConversionError
from accel.inputs import Batch
from accel.nn.residual_units import describe_unit, is_unit
from accel.profiling.flops import count_macs
from accel.running import copied, evaluation, run_eagerly


@run_eagerly()
def shorten_model(
    model: nn.Module, *, calibration: Iterable, units: Sequence[str] = (), macs: float | None = None
) -> nn.Module:
    """A copy of a dense residual network without some of its units; convert it afterwards to perforate it as well.

    A unit that is left out becomes nn.Identity under the same name, and the statistics of the batch norms are taken
    anew on the calibration pictures. With `macs` the units are chosen greedily, by the paper's rule of `accel.search`:
    the one after which the outputs lie nearest to the original's (`accel.distill.distance`), for all the MACs saved.

    Args:
        model: dense, with units that `accel.nn.residual_units` knows; it is left as it is. A unit can be left out if
            it keeps size and width and has no convolution in its shortcut.
        calibration: batches of inputs of one size, see `accel.inputs`; the first 13 pictures of 240x320 are used, or
            1024 of 32x32.
        units: names of units to leave out, patterns allowed.
        macs: share of the model's multiply-accumulates to execute at most, in (0, 1).

    Raises:
        ConfigError: nothing to do, a pattern that matches no such unit, or macs outside (0, 1).
        ConversionError: no unit that can be left out, or more than `macs` is left without all of them.
        DataError: unusable calibration data.
    """
    if macs is not None and not 0 < macs < 1:
        raise ConfigError(f"macs is a share of the dense multiply-accumulates and must lie in (0, 1), got {macs!r}")
    if macs is None and not units:
        raise ConfigError("no unit would be left out: give units=[name] or macs=")
    free = _free_units(model)
    gone = _matching(free, units)
    pictures = pictures_of_one_size(calibration, model)
    if macs is not None:
        gone = _chosen(model, [name for name in free if name not in gone], gone, pictures, macs)
    return _without(model, gone, pictures)


def _free_units(model: nn.Module) -> list[str]:
    """The names of the units that nn.Identity can stand for."""
    found = [name for name, unit in model.named_modules() if name and is_unit(unit) and describe_unit(unit).maskable]
    if not found:
        raise ConversionError(
            f"{type(model).__name__} has no residual unit that could be left out: those that keep size and width, of a "
            "class that accel.nn.residual_units.register_unit knows"
        )
    return found


def _matching(free: Collection[str], patterns: Iterable[str]) -> list[str]:
    gone = []
    for pattern in patterns:
        found = fnmatch.filter(free, pattern)
        if not found:
            raise ConfigError(f"{pattern!r} matches no unit that can be left out: the model's are {', '.join(free)}")
        gone += [name for name in found if name not in gone]
    return gone


def _chosen(model: nn.Module, free: list[str], gone: list[str], pictures: Batch, macs: float) -> list[str]:
    """`gone` and as many of the `free` units as it takes."""
    with evaluation(model), torch.no_grad():
        target = pictures.run(model)
    example = pictures.part(0, 1).inputs
    dense = count_macs(model, example)

    def cost(name: str) -> tuple[float, str]:
        trial = _without(model, [*gone, name], pictures)
        with evaluation(trial), torch.no_grad():
            lost = float(distance(pictures.run(trial), target))
        return lost / (dense - count_macs(trial, example)), name

    left, free, gone = 1.0, list(free), list(gone)
    while (left := count_macs(_without(model, gone), example) / dense) > macs:
        if not free:
            raise ConversionError(f"macs={macs:g} cannot be met: without all these units {left:.3f} are left")
        _, name = min(map(cost, free))
        free.remove(name)
        gone.append(name)
    return gone


def _without(model: nn.Module, gone: Collection[str], pictures: Batch | None = None) -> nn.Module:
    """A copy without these units; with pictures its batch norms know it."""
    short = copied(model)
    left_out = [short.get_submodule(name) for name in gone]
    for name, module in list(short.named_modules(remove_duplicate=False)):  # a shared unit has several names
        if any(module is unit for unit in left_out):
            parent, _, last = name.rpartition(".")
            setattr(short.get_submodule(parent), last, nn.Identity())
    if pictures is not None:
        reestimate_norms(short, [pictures.inputs])
    return short
