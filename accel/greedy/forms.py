"""What stands in for layers under a candidate: copies that share their parameters, two convolutions for one, and what
takes as long where only a calibration finds it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from accel.calibrate import fit_layer, quantization_of
from accel.config import PRECISIONS
from accel.convert import Conversion
from accel.errors import DataError
from accel.fills import nearest_fit
from accel.low_rank import LowRankConv2d, Subspace, empty_pair, halved, rank_of, ranks_said, set_ranks
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import Quantization
from accel.running import copied


def timed_like(conversion: Conversion) -> Conversion:
    """A conversion that takes as long and needs no fit."""
    config = conversion.config
    if not config.filling.needs_data:
        return conversion
    return dataclasses.replace(conversion, config=config.filled_by(config.filling.likeness))


def ranks_in(model: nn.Module, conversions: Mapping[str, Conversion]) -> dict[str, int]:
    """The layers of which conversions make two, and the channels between these."""
    return ranks_said(model, {name: made.config for name, made in conversions.items()})


def in_halves(conversions: Mapping[str, Conversion]) -> dict[str, Conversion]:
    """What conversions make of the layers of a network whose low ranks are set: each of the two convolutions in the
    place of a layer has its own."""
    found = {}
    for name, made in conversions.items():
        halves = halved(name, made.config)
        for part, config in halves.items():
            last = part == [*halves][-1]
            found[part] = dataclasses.replace(made, config=config, contiguous=made.contiguous and last)
    return found


def with_ranges(layer: nn.Conv2d | nn.Linear, conversion: Conversion) -> Conversion:
    """The conversion with some range, where bytes need one."""
    if not conversion.config.in_bytes:
        return conversion
    is_linear = isinstance(layer, nn.Linear)
    read, given = (layer.in_features, layer.out_features) if is_linear else (layer.in_channels, layer.out_channels)
    scale = torch.tensor(1 / 32, dtype=torch.float64, device="cpu")
    zero = torch.tensor(0, dtype=torch.int64, device="cpu")
    clip = torch.ones(given, dtype=torch.float32, device="cpu")
    mean = torch.zeros(read, dtype=torch.float32, device="cpu")
    reach = None if is_linear else torch.tensor([[-1.0], [1.0]], dtype=torch.float32, device="cpu").repeat(1, given)
    return dataclasses.replace(conversion, quantization=Quantization(scale, zero, clip, mean, reach))


def with_ranks(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A `shared_copy` with layers of these ranks, of any weights."""
    network = shared_copy(model)
    for pair in set_ranks(network, ranks):
        for parameter in pair.parameters():
            nn.init.constant_(parameter, 1 / parameter[0].numel())
    return network


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules with the very same parameters and buffers: many networks would not fit into memory."""
    return copied(model, (*model.parameters(), *model.buffers()))


def pair_for(layer: nn.Conv2d, name: str, made: Conversion) -> LowRankConv2d:
    """Two convolutions beside the layer, as the conversion wants them, which are still to be fitted: what they give is
    no number, and what that loses infinite."""
    pair = empty_pair(layer, rank_of(layer, made.config.rank))
    _forget(pair, name, made)
    return pair


@torch.no_grad()
def fit_pairs(
    layer: nn.Conv2d, name: str, pairs: Sequence[tuple[Conversion, LowRankConv2d]], x: Tensor, target: Tensor
) -> None:
    """Find the weights of pairs in the place of the layer for what it reads, and fit the second one of each to what the
    first one gives it; those that x tells too little of stay as they were."""
    try:
        subspace = Subspace(layer, nn.Conv2d.forward(layer, x), target)
    except DataError:
        return
    for made, pair in pairs:
        pair.load_state_dict(subspace.pair(pair[0].out_channels).state_dict())
        _adopt(pair, name, made)
        try:
            _fit_halves(pair, x, target)
        except DataError:
            _forget(pair, name, made)


def _fit_halves(pair: LowRankConv2d, x: Tensor, target: Tensor) -> None:
    for half in pair:
        if half.config.in_bytes:
            half.quantization = quantization_of(half, half.layer_name, x)
        if half.config.filling.needs_data:
            half.set_fit(fit_layer(half, x, target))
        x = PerforatedConv2d.forward(half, x)


def _adopt(pair: LowRankConv2d, name: str, made: Conversion) -> None:
    for half, (part, each) in zip(pair, in_halves({name: made}).items()):
        fit = nearest_fit(half.out_channels) if each.config.filling.needs_data else None
        PerforatedConv2d.adopt(half, each.config, part, fit=fit)


def _forget(pair: LowRankConv2d, name: str, made: Conversion) -> None:
    in_numbers = dataclasses.replace(made.config, precision=PRECISIONS[0])  # bytes cannot be none
    _adopt(pair, name, dataclasses.replace(made, config=in_numbers))
    for parameter in pair.parameters():
        nn.init.constant_(parameter, math.nan)
