"""What calibration data tells of the positions left out: how to fill them in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.config import Perforate
from accel.errors import ConfigError, DataError
from accel.kernels.positions import PositionSet, tap_map
from accel.masks import IMPACT_MASKS
from accel.nn.fitted import Fit, classify, common_classes, distance_weights, find_neighbors
from accel.nn.inference import one_by_one
from accel.nn.perforated import PerforatedConv2d
from accel.nn.running import batches, evaluation

_RIDGE = 1e-3  # of the neighbours' mean variance
_WEIGHT_RIDGE = 0.1  # of the patches' mean variance; CIFAR ResNet-32 at keep 1/2 gains as much at 0.01
_SAMPLES = 1 << 12  # per class
LIMIT = 1 << 20  # input pixels that a fit uses
_CHUNK = 1 << 21  # values gathered at a time, 8 MB


def check_calibration(assigned: Mapping[str, Perforate], calibration: object) -> None:
    """ConfigError for the first layer whose configuration needs calibration data when there is none."""
    for name, config in assigned.items():
        for field, wanting in (("mask", IMPACT_MASKS), ("interpolate", ("fitted",))):
            if (given := getattr(config, field)) in wanting and calibration is None:
                raise ConfigError(
                    f"{field} {given!r} of layer {name!r} needs data: pass calibration= a loader or list of inputs"
                )


def fit_interpolation(model: nn.Module, calibration: Iterable, limit: int = LIMIT) -> None:
    """Fit, in place, every layer of a converted model that has interpolate='fitted', in the order they run.

    One forward of a batch whose first half takes the dense path through every convolution and whose second half takes
    the perforated one. Where they part, the dense half is the target of three least-squares problems per output
    channel: scale and shift of the computed positions, and the neighbours' weights and a constant for the skipped
    ones. The perforated half goes on with that fit, so that the layers behind are fitted to the inputs they will get.

    Args:
        model: converted; its weights, statistics and modes are left as they are.
        calibration: inputs of one size, or tuples that start with one.
        limit: input pixels used: the first 13 pictures of 240x320, or 1024 of 32x32; they make one batch.

    Raises:
        DataError: no batch, pictures of differing sizes, or a layer that the model does not call.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, PerforatedConv2d)}
    waiting = {name for name, layer in layers.items() if layer.config.interpolate == "fitted"}
    pictures = pictures_of_one_size(calibration, limit)
    with evaluation(model), one_by_one(), torch.no_grad(), contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            layer.forward = functools.partial(_lockstep, name, layer, waiting)
            stack.callback(layer.__dict__.pop, "forward")
        model(torch.cat([pictures, pictures]))
    if waiting:
        name = min(waiting)
        raise DataError(f"the calibration data never reaches layer {name!r}: leave it out by a rule {{{name!r}: None}}")


def pictures_of_one_size(calibration: Iterable, limit: int = LIMIT) -> Tensor:
    """The first inputs, at least one, of not more than `limit` pixels in all."""
    pictures, taken = [], 0
    for x, *_ in batches(calibration):
        if pictures and x.shape[1:] != pictures[0].shape[1:]:
            shapes = [tuple(part.shape[1:]) for part in (pictures[0], x)]
            raise DataError(f"a model is fitted on pictures of one size, got {shapes}: resize them")
        room = max(limit // (x.shape[-2] * x.shape[-1]), 1) - taken
        pictures.append(x[: max(room, 0)])
        taken += len(pictures[-1])
    return torch.cat(pictures)


def _lockstep(name: str, layer: PerforatedConv2d, waiting: set[str], both: Tensor) -> Tensor:
    """The layer on [dense half, perforated half]; fits it first where it is waiting for that."""
    dense, ours = both.chunk(2)
    target = nn.Conv2d.forward(layer, dense)
    if name in waiting:
        waiting.remove(name)
        layer.set_fit(fit_layer(layer, ours, target))
    return torch.cat([target, PerforatedConv2d.forward(layer, ours)])


def fit_layer(layer: PerforatedConv2d, x: Tensor, target: Tensor) -> Fit | None:
    """The least-squares fit of one layer; None where nothing is skipped.

    Args:
        x: [N, C, H, W], what the layer reads in the perforated network.
        target: [N, K, H', W'], its output in the dense network.
    """
    positions = layer.position_set(*target.shape[2:])
    if positions.is_full:
        return None
    pixels = target.permute(0, 2, 3, 1).flatten(1, 2)
    change = _fit_weights(layer, x, pixels, positions) if layer.config.correct == "weights" else None
    weight = layer.weight if change is None else layer.weight + change
    rows = layer.rows_at(x, positions, weight).view(len(x), len(positions), -1)
    scale, shift = _fit_scale(rows.flatten(0, 1), pixels[:, positions.positions].flatten(0, 1))
    rows = rows * scale + shift
    skipped, chosen, offsets = find_neighbors(positions, layer.config.neighbors)
    classes = common_classes(offsets)
    kind, prior = classify(offsets, classes), distance_weights(offsets, classes)
    generator = torch.Generator().manual_seed(layer.config.seed)
    weights, constants = [], []
    for k, towards in enumerate(prior):
        members = torch.from_numpy((kind == k).nonzero()[0])
        if not len(members):
            members = torch.arange(len(skipped))  # so that the last class is good for borders at other sizes
        members = members[torch.randperm(len(members), generator=generator)[: -(-_SAMPLES // len(x))]]
        found = _fit_sums(rows, pixels, torch.from_numpy(skipped)[members], torch.from_numpy(chosen)[members], towards)
        weights.append(found[0])
        constants.append(found[1])
    return Fit(torch.from_numpy(classes), torch.stack(weights), torch.stack(constants), scale, shift, change)


def _fit_weights(layer: PerforatedConv2d, x: Tensor, pixels: Tensor, positions: PositionSet) -> Tensor:
    """The change of the layer's weight by ridge regression of what its output lacks on the patches it reads.

    Args:
        x: [N, C, H, W], what the layer reads in the perforated network.
        pixels: [N, H' * W', K], the target at every position.
    """
    geometry = (layer.kernel_size, layer.stride, layer.padding_sides(), layer.dilation, layer.padding_mode)
    taps = tap_map(tuple(x.shape[2:]), *geometry)[positions.positions.long()].long()
    features = layer.weight[0].numel()
    generator = torch.Generator().manual_seed(layer.config.seed)
    samples = -(-max(2 * _SAMPLES, 2 * features) // len(x))
    chosen = torch.randperm(len(positions), generator=generator)[:samples]
    inputs = F.pad(x.permute(0, 2, 3, 1).flatten(1, 2), (0, 0, 0, 1))  # the last pixel is the zero padding: tap -1
    patches = inputs[:, taps[chosen]].flatten(0, 1).mT  # [samples, C, taps]
    wanted = pixels[:, positions.positions.long()[chosen]].flatten(0, 1)
    changes = []
    for weight, seen, target in zip(
        layer.weight.flatten(1).chunk(layer.groups),
        patches.chunk(layer.groups, 1),
        wanted.chunk(layer.groups, 1),
    ):
        seen = seen.flatten(1) - seen.flatten(1).mean(0)  # the bias is left to scale and shift
        lacking = target - target.mean(0) - seen @ weight.T
        gram, moment = (seen.T @ seen).double(), (seen.T @ lacking).double()
        ridge = _WEIGHT_RIDGE * gram.diagonal().mean().clamp_min(torch.finfo(x.dtype).tiny)
        gram.diagonal().add_(ridge)
        changes.append(torch.linalg.solve(gram, moment).T)
    return torch.cat(changes).view_as(layer.weight).to(layer.weight)


def _fit_scale(values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(scale [C], shift [C]) of least squares, for values and target [M, C]; scale 1 where a channel is constant."""
    mean, wanted = values.mean(0), target.mean(0)
    variance = (values - mean).square().mean(0)
    covariance = ((values - mean) * (target - wanted)).mean(0)
    scale = torch.where(variance > 0, covariance / variance.clamp_min(torch.finfo(values.dtype).tiny), 1.0)
    return scale, wanted - scale * mean


def _fit_sums(rows: Tensor, pixels: Tensor, skipped: Tensor, chosen: Tensor, towards: Tensor) -> tuple[Tensor, Tensor]:
    """(weights [T, C], constant [C]) by ridge regression of one class of skipped positions, channel by channel.

    Args:
        rows: [N, P, C], corrected values at computed positions.
        pixels: [N, H * W, C], the target.
        skipped, chosen: [F] and [F, T], the sampled positions and the rows of their neighbours.
        towards: [T], the weights that the ridge pulls to.
    """
    count, taps, channels = len(rows) * len(skipped), chosen.shape[1], rows.shape[2]
    middle = rows.mean((0, 1))  # taken off first: single precision then suffices for the sums of products
    gram, sums = rows.new_zeros(channels, taps + 1, taps + 1), rows.new_zeros(channels, taps + 1)
    for part in torch.arange(len(skipped)).split(max(1, _CHUNK // (len(rows) * taps * channels))):
        seen = torch.cat([rows[:, chosen[part]], pixels[:, skipped[part], None]], 2) - middle
        seen = seen.permute(3, 2, 0, 1).flatten(2)  # [C, T + 1, samples]
        gram += seen @ seen.mT
        sums += seen.sum(2)
    mean = (sums / count).double()
    gram = gram.double() / count - mean[:, :, None] * mean[:, None, :]
    gram, moment = gram[:, :-1, :-1], gram[:, :-1, -1]
    mean, wanted = mean[:, :-1], mean[:, -1]
    power = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(rows.dtype).tiny)
    ridge = (_RIDGE + taps / count) * power[:, None, None] * torch.eye(taps, dtype=gram.dtype)
    towards = towards.to(gram).expand(channels, taps)
    pull = moment - (gram @ towards[:, :, None])[:, :, 0]
    weights = towards + torch.linalg.solve(gram + ridge, pull)
    constant = wanted - (weights * mean).sum(1) + middle * (1 - weights.sum(1))
    return weights.T.contiguous().to(rows.dtype), constant.to(rows.dtype)
