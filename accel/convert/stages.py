"""What rules say of the convolutions of adaptive stages: all of a stage's units compute in one precision, and at every
position that has not halted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import nn

from accel.config import FP32, INT8, Halting, Perforate
from accel.errors import ConfigError
from accel.nn.adaptive import HaltingHead, adaptive_configs, adaptive_stages

IN_BYTES = Perforate(keep=1.0, precision=INT8)  # of a convolution of a stage in eight bits


def head_convolutions(model: nn.Module) -> set[nn.Module]:
    """Those of halting heads, which stay as they are."""
    heads = (module for module in model.modules() if isinstance(module, HaltingHead))
    return {conv for head in heads for conv in head.modules() if isinstance(conv, nn.Conv2d)}


def inside_stages(
    model: nn.Module, stages: Mapping[str, Halting], names: Mapping[nn.Module, str], assigned: Mapping[str, Perforate]
) -> dict[str, Perforate]:
    """The configurations of the convolutions in the units of stages that are to compute in eight bits.

    Args:
        stages: those that the rules make adaptive; the model may have others.
        names: of the convolutions that rules may speak of.
        assigned: what the rules say of them.

    Raises:
        ConfigError: they say something that a stage cannot do.
    """
    found = {}
    for stage, config in {**adaptive_configs(model), **stages}.items():
        convs = [names[module] for module in model.get_submodule(stage).modules() if module in names]
        said = {name: assigned[name] for name in convs if name in assigned}
        wrong = next((name for name, each in said.items() if not (each.keep == 1 and each.in_bytes)), None)
        if wrong is not None or (stage in stages and said and not config.in_bytes):
            raise ConfigError(
                f"{wrong or next(iter(said))} lies in an adaptive stage and cannot be perforated as well: put a rule "
                "that gives its stage's convolutions None before the one that matches it, or for eight bits give the "
                f"stage precision={INT8!r}"
            )
        if said and stage not in stages and len(said) < len(convs):
            left = next(name for name in convs if name not in said)
            raise ConfigError(
                f"stage {stage!r} computes in one precision, but the rules leave {left!r} in {FP32}: let them "
                "match all of its convolutions, or none"
            )
        if said or (stage in stages and config.in_bytes):
            found |= dict.fromkeys(convs, IN_BYTES) | said
    return found


def note_precision(model: nn.Module) -> None:
    """Let the configurations of the model's stages say in what precision their units compute."""
    for stage in adaptive_stages(model):
        if stage.in_bytes != stage.config.in_bytes:
            stage.config = dataclasses.replace(stage.config, precision=INT8 if stage.in_bytes else FP32)
