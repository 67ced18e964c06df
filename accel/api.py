"""The thin top: planning and converting a model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from accel.calibrate import check_calibration, fit_interpolation
from accel.config import MISSING, Config, Perforate, Rules, as_rules
from accel.convert import (
    Conversion,
    assign,
    assign_linears,
    assign_stages,
    build_sets,
    convert_layers,
    convolutions,
    counted_layers,
    left_dense,
    linears_left,
    plain_convolutions,
    quantize_linears,
    reached,
    said_of,
    settle_layouts,
    with_pooling,
)
from accel.convert.layout import warn_of_faulty_gradients
from accel.convert.proof import prove
from accel.convert.stages import note_precision
from accel.errors import ConfigError, ConversionError
from accel.greedy.search import search
from accel.impact import all_impacts
from accel.inputs import Inputs, counted
from accel.nn.adaptive import adopt_stages, check_stages, dense_execution
from accel.nn.inference import describe_paths, install, installed
from accel.profiling.layers import Plan, plan_of
from accel.running import cloned, copied, record_calls, run_eagerly, run_on


def plan_conversion(
    model: nn.Module,
    rules: Config | Rules | Mapping,
    *,
    example_inputs: Inputs,
    calibration: Iterable | None = None,
    loss: Callable[[object, tuple], Tensor] | None = None,
    verify: bool = True,
) -> Plan:
    """What `convert_model` with the same arguments would do, layer by layer; the model is left as it is.

    Raises:
        ConfigError, ConversionError, DataError: as `convert_model`.
    """
    fast, calls = _convert(model, rules, example_inputs, calibration, loss, inplace=False, verify=verify)
    notes = {name: reason for name, layer in convolutions(fast).items() if (reason := left_dense(layer))}
    notes |= linears_left(model, rules)
    return plan_of(fast, cloned(example_inputs), calls, {**describe_paths(fast, example_inputs), **notes})


def convert_model(
    model: nn.Module,
    rules: Config | Rules | Mapping,
    *,
    example_inputs: Inputs,
    calibration: Iterable | None = None,
    loss: Callable[[object, tuple], Tensor] | None = None,
    inplace: bool = False,
    verify: bool = True,
) -> nn.Module:
    """A model perforated, or made adaptive, as the rules say; parameters keep their names and values.

    `Perforate` goes to convolutions; where it has a target (speedup, max_drop or macs) instead of keep, `accel.search`
    finds what is best for the layers it matches. `ACT`, `SACT` and `PACT` go to sequences of residual units; such a
    model returns an `AdaptiveOutput`. Those of an adaptive model are brought into eight bits by rules that give all of
    their convolutions `Perforate(keep=1.0, precision="int8")`; their halting heads stay in fp32.

    Args:
        model: any module with nn.Conv2d inside. It is left as it is, and shares no storage with the result, unless
            `inplace`.
        rules: one configuration for every convolution (or stage), or Rules by module name.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments that the model runs on.
        calibration: a re-iterable of batches, see `accel.inputs`; impact masks, interpolate 'fitted', precision 'int8'
            and targets need it.
        loss: what impact is measured against, (outputs, batch) -> scalar; see `accel.impact.default_loss`.
        inplace: convert `model` itself, whose parameters stay where they are; bring it to channels_last for speed.
        verify: compare the converted model on the example with what it was made from, see `accel.convert.proof`; it
            takes a few runs more. False skips that, for huge models, with a warning.

    Raises:
        ConfigError: a rule that matches nothing, or a mask that needs calibration data and got none.
        ConversionError: no convolution, a stage that cannot be adaptive, a model that does not run on the example, or
            a layer that computes something else there than torch does.
        DataError: unusable example inputs or calibration data.
    """
    return _convert(model, rules, example_inputs, calibration, loss, inplace, verify)[0]


@run_eagerly()
@torch.inference_mode(False)  # what is made there has tensors whose writes nobody counts: packed anew at every call
def _convert(
    model: nn.Module,
    rules: Config | Rules | Mapping,
    example_inputs: Inputs,
    calibration: Iterable | None,
    loss: Callable[[object, tuple], Tensor] | None,
    inplace: bool,
    verify: bool,
) -> tuple[nn.Module, dict[str, list[tuple[int, ...]]]]:
    """The converted model, and the calls of its counted layers on the example; all is checked before a change."""
    calibration = counted(calibration, model, example_inputs)
    rules = _searched(model, as_rules(rules), example_inputs, calibration, loss)
    assigned, stages, linears = assign(model, rules), assign_stages(model, rules), assign_linears(model, rules)
    check_calibration(stages, calibration)
    check_calibration(assigned | linears, calibration)
    units = {f"{name}.{key}": unit for name in stages for key, unit in model.get_submodule(name).named_children()}
    calls = record_calls(model, counted_layers(model), example_inputs, units)
    if stages:
        check_stages(model, stages, calls)
    fast = model if inplace else copied(model)
    run = functools.partial(run_on, example_inputs=example_inputs)
    with dense_execution(fast):
        contiguous = settle_layouts(fast, calls, run, weights=not inplace)
    conversions = {name: Conversion(config, contiguous=name in contiguous) for name, config in assigned.items()}
    conversions = all_impacts(model, with_pooling(model, conversions), calibration, loss)
    convert_layers(fast, conversions)
    quantize_linears(fast, dict.fromkeys(linears))
    warn_of_faulty_gradients({n: layer for n, layer in plain_convolutions(fast).items() if n not in conversions})
    if stages:
        adopt_stages(fast, stages)
    if linears or any(config.filling.needs_data or config.in_bytes for config in assigned.values()):
        fit_interpolation(fast, calibration)
    note_precision(fast)
    install(fast)
    build_sets(fast, calls)
    if verify:
        prove(fast, run)
    else:
        for _, path in installed(fast):
            path.verify = False
        warnings.warn("verify=False: the converted model was not compared with what it was made from", stacklevel=3)
    return fast, calls


def _searched(
    model: nn.Module,
    rules: Rules,
    example_inputs: Inputs,
    calibration: Iterable | None,
    loss: Callable[[object, tuple], Tensor] | None,
) -> Rules:
    """The rules, after a search where one of them has a target: it goes over the layers that this rule decides."""
    targets = {config for config in rules.values() if isinstance(config, Perforate) and config.target}
    if not targets:
        return rules
    if len(targets) > 1 or not all(config is None or isinstance(config, Perforate) for config in rules.values()):
        raise ConfigError(
            "a target such as speedup= speaks of the whole network: give one, and no ACT, SACT or PACT beside it"
        )
    (config,) = targets
    aim, value = config.target
    if calibration is None:
        raise ConfigError(f"{aim} is searched for on real inputs: pass calibration= a loader or list of inputs")
    rules.check_used(reached(model, rules))
    said = said_of(model, rules, nn.Conv2d) | said_of(model, rules, nn.Linear)
    decided = {name: None if each is MISSING else each for name, each in said.items() if each != config}
    found = search(
        model,
        example_inputs=example_inputs,
        calibration=calibration,
        **{aim: value},
        rules=decided or None,
        precision=config.precision,
        seed=config.seed,
        loss=loss,
    )
    if not any(isinstance(chosen, Perforate) for chosen in found.values()):
        raise ConversionError(
            f"{aim}={value:g} is best met by the model as it is, every convolution dense: use it so, or ask for more"
        )
    return found
