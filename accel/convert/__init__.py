"""The conversion itself: which layer gets which configuration, and turning layers over and back."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from accel.config import MISSING, Config, Halting, Perforate, Rules, as_rules
from accel.convert.layout import lay_out, settle_layout
from accel.convert.stages import head_convolutions, inside_stages
from accel.errors import ConfigError, ConversionError
from accel.fills import Fit
from accel.masks import Pooling
from accel.nn.adaptive import adaptive_stages, is_stage, make_plain
from accel.nn.graph import pooling_after
from accel.nn.perforated import FOUND, STATE, PerforatedConv2d
from accel.nn.quantized import Quantization, why_not_bytes
from accel.nn.quantized_linear import QuantizedLinear
from accel.nn.tracing import traced_parts
from accel.nn.twin import has_own_forward
from accel.running import copied


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Every convolution of the model by its first full name; a shared one appears once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def plain_convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Those that do what nn.Conv2d does, perforated ones included: see `left_dense`."""
    return {name: layer for name, layer in convolutions(model).items() if left_dense(layer) is None}


def counted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose multiply-accumulates count: convolutions and linear layers, by their first full name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}


def perforated_layers(model: nn.Module) -> dict[str, PerforatedConv2d]:
    """The layers of `model` that a conversion has changed."""
    return {name: layer for name, layer in convolutions(model).items() if isinstance(layer, PerforatedConv2d)}


def quantized_linears(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The linear layers of `model` that a conversion has brought into eight bits."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


def left_dense(layer: nn.Conv2d) -> str | None:
    """Why a rule cannot apply to this convolution, or None."""
    if type_before_parametrizations(layer) not in (nn.Conv2d, PerforatedConv2d):
        return f"is a {type(layer).__name__}, whose own forward would be lost"
    if has_own_forward(layer):
        return "has a forward set on the layer itself, which would be lost"
    taken = [name for name in STATE if name in {**layer._parameters, **layer._buffers, **layer._modules}]
    return f"has a parameter, buffer or module {taken[0]!r}, a name that a converted layer needs" if taken else None


def assign(model: nn.Module, rules: Config | Rules | Mapping) -> dict[str, Perforate]:
    """The configuration of every convolution to convert, by its first full name; those in the units of stages in eight
    bits are among them.

    A shared layer is found under all of its names. What `left_dense` speaks of stays as it is, and so do halting heads.

    Raises:
        ConfigError: a rule that matches no convolution, nor a linear layer that it brings into eight bits.
        ConversionError: a model with nothing to convert, or one in which the rules leave nothing to convert.
    """
    rules = as_rules(rules)
    names, linears = _aliases(model, nn.Conv2d), assign_linears(model, rules)
    if not names and not linears:
        raise ConversionError(f"{type(model).__name__} has no nn.Conv2d: there is nothing to perforate")
    stages = assign_stages(model, rules)
    rules.check_used([*reached(model, rules), *stages])
    heads = head_convolutions(model)
    free = {layer: aliases[0] for layer, aliases in names.items() if left_dense(layer) is None and layer not in heads}
    decided = {name: _decided(rules, names[layer]) for layer, name in free.items()}
    assigned = {name: config for name, config in decided.items() if isinstance(config, Perforate)}
    assigned |= inside_stages(model, stages, free, assigned)
    for layer, name in free.items():
        if name in assigned:
            _check_layer(name, layer, assigned[name])
    if not assigned and not stages and not linears:
        kinds = ", ".join(sorted({left_dense(layer) or type(layer).__name__ for layer in names}))
        raise ConversionError(f"the rules leave every convolution of {type(model).__name__} dense ({kinds})")
    return assigned


def _check_layer(name: str, layer: nn.Conv2d, config: Perforate) -> None:
    """Raise where a convolution cannot compute as it is to."""
    if config.in_bytes and (reason := why_not_bytes(layer)) is not None:
        raise ConversionError(
            f"precision {config.precision!r}: layer {name!r} {reason}; give it fp32 by a rule of its own"
        )
    if (lacking := config.masking.lacks(layer)) is not None:
        raise ConfigError(
            f"mask {config.mask!r} of layer {name!r} needs {lacking}: give it another mask by a rule of its own"
        )


def reached(model: nn.Module, rules: Rules) -> list[str]:
    """All names of the layers that rules may speak of: convolutions, and the linear layers that they bring into eight
    bits or say to leave alone."""
    linears = assign_linears(model, rules)
    found = [*_aliases(model, nn.Conv2d).values()]
    found += [n for n in _aliases(model, nn.Linear).values() if n[0] in linears or _decided(rules, n) is None]
    return [name for aliases in found for name in aliases]


def assign_linears(model: nn.Module, rules: Config | Rules | Mapping) -> dict[str, Perforate]:
    """What the rules say of every linear layer that they bring into eight bits, by its first full name: it has one
    position and keeps it. What `left_in_fp32` speaks of stays as it is."""
    layers = dict(model.named_modules())
    return {name: config for name, config in _linears_meant(model, rules).items() if left_in_fp32(layers[name]) is None}


def linears_left(model: nn.Module, rules: Config | Rules | Mapping) -> dict[str, str]:
    """Why linear layers that the rules mean, by their first full names, stay in fp32."""
    layers = dict(model.named_modules())
    found = {name: left_in_fp32(layers[name]) for name in _linears_meant(model, rules)}
    return {name: f"left in fp32: {reason}" for name, reason in found.items() if reason}


def left_in_fp32(layer: nn.Linear) -> str | None:
    """Why this linear layer cannot be brought into eight bits, or None."""
    if type(layer) not in (nn.Linear, QuantizedLinear):
        return f"is a {type(layer).__name__}, whose own forward would be lost"
    if has_own_forward(layer):
        return "has a forward set on the layer itself, which would be lost"
    return why_not_bytes(layer)


def _linears_meant(model: nn.Module, rules: Config | Rules | Mapping) -> dict[str, Perforate]:
    """The linear layers for which the rules ask for eight bits."""
    found = said_of(model, as_rules(rules), nn.Linear)
    return {name: config for name, config in found.items() if isinstance(config, Perforate) and config.in_bytes}


def _aliases(model: nn.Module, kind: type[nn.Module]) -> dict[nn.Module, list[str]]:
    """All full names of every layer of a kind."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kind):
            names.setdefault(module, []).append(name)
    return names


def said_of(model: nn.Module, rules: Rules, kind: type[nn.Module]) -> dict[str, Config | object | None]:
    """What the rules say of every layer of a kind, by its first full name; MISSING, where they say nothing under any of
    its names."""
    return {aliases[0]: _decided(rules, aliases) for aliases in _aliases(model, kind).values()}


def _decided(rules: Rules, aliases: Sequence[str]) -> Config | object | None:
    """What the first rule that matches any of a layer's names says, or MISSING."""
    for pattern, config in rules.items():
        if any(fnmatch.fnmatchcase(name, pattern) for name in aliases):
            return config
    return MISSING


def assign_stages(model: nn.Module, rules: Config | Rules | Mapping) -> dict[str, Halting]:
    """The configuration of every sequence of residual units that a rule with ACT, SACT or PACT names.

    Raises:
        ConfigError: such a rule names no sequence of residual units.
    """
    rules = as_rules(rules)
    names = [name for name, module in model.named_modules() if is_stage(module)]
    for pattern, config in rules.items():
        if isinstance(config, Halting) and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            some = ", ".join(names) or "none"
            raise ConfigError(f"rule {pattern!r} matches no sequence of residual units: the model's are {some}")
    configs = {name: rules.match(name) for name in names}
    return {name: config for name, config in configs.items() if isinstance(config, Halting)}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """All that turns one convolution into a perforated one; see `PerforatedConv2d` for the fields."""

    config: Perforate
    pooling: Pooling | None = None
    impact: Tensor | None = None
    fit: Fit | None = None
    contiguous: bool = False
    quantization: Quantization | None = None


def with_pooling(model: nn.Module, conversions: Mapping[str, Conversion]) -> dict[str, Conversion]:
    """The conversions, those whose mask asks for it completed by the pooling layer that reads the layer's output.

    It is found where the model, or the part of it that holds the layer, traces.
    """
    wanted = [name for name, conversion in conversions.items() if conversion.config.masking.reads_pooling]
    if not wanted:
        return dict(conversions)
    found = {}
    for _, part, traced in traced_parts(model):
        modules = dict(part.named_modules(remove_duplicate=False))
        for node in traced.graph.nodes:
            if node.op == "call_module":
                found.setdefault(modules[node.target], pooling_after(node, modules))
    layers = convolutions(model)
    complete = {name: dataclasses.replace(conversions[name], pooling=found.get(layers[name])) for name in wanted}
    return {**conversions, **complete}


def convert_layers(model: nn.Module, conversions: Mapping[str, Conversion]) -> None:
    """Turn the named layers of `model`, in place, into perforated ones, and linear ones into those in eight bits."""
    layers = convolutions(model)
    quantize_linears(model, {name: made.quantization for name, made in conversions.items() if name not in layers})
    for name, conversion in conversions.items():
        if name in layers:
            found = {field: getattr(conversion, field) for field in FOUND}
            PerforatedConv2d.adopt(layers[name], conversion.config, name, **found)


def quantize_linears(model: nn.Module, quantizations: Mapping[str, Quantization | None]) -> None:
    """Bring the named linear layers of `model`, in place, into eight bits."""
    for name, quantization in quantizations.items():
        QuantizedLinear.adopt(model.get_submodule(name), name, quantization)


def settle_layouts(
    model: nn.Module,
    calls: Mapping[str, list[tuple[int, ...]]],
    run: Callable[[nn.Module], object],
    weights: bool,
) -> set[str]:
    """The names of the convolutions whose outputs stay contiguous: those that are not called, and for the others see
    `accel.convert.layout.settle_layout`."""
    layers = plain_convolutions(model)
    called = {name: layer for name, layer in layers.items() if calls[name]}
    return (layers.keys() - called.keys()) | settle_layout(model, called, run, weights)


def build_sets(model: nn.Module, calls: Mapping[str, list[tuple[int, ...]]]) -> None:
    """Build the position sets for the recorded output shapes, so that the first run (or a compiler) finds them."""
    for name, layer in perforated_layers(model).items():
        for shape in calls.get(name, ()):  # a stage made adaptive renames its layers
            layer.position_set(*shape[-2:], layer.weight.device)


def revert_model(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The dense model again, with the converted model's current weights.

    Args:
        inplace: turn `model` itself back; otherwise it stays converted and a copy with its own storage, in torch's
            default memory format, is returned.

    Raises:
        ConversionError: the model has no converted layer.
    """
    if not (perforated_layers(model) or quantized_linears(model) or adaptive_stages(model)):
        raise ConversionError(f"this {type(model).__name__} has no converted layer: it is dense already")
    dense = make_plain(model if inplace else copied(model))
    for layer in (*perforated_layers(dense).values(), *quantized_linears(dense).values()):
        layer.release()
    if not inplace:
        lay_out(convolutions(dense).values(), torch.contiguous_format)
    return dense
