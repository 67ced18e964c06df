"""What calibration data tells of the positions left out: how to fill them in."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from scipy.special import stdtrit
from torch import Tensor, nn

from accel.config import Perforate
from accel.errors import ConfigError, DataError
from accel.inputs import Batch, batches, first_pictures
from accel.kernels.positions import PositionSet, tap_map
from accel.masks import IMPACT_MASKS
from accel.nn.fitted import Fit, classify, common_classes, distance_weights, find_neighbors, nearest_fit
from accel.nn.geometry import geometry_of
from accel.nn.perforated import PerforatedConv2d, shallow_copy
from accel.nn.settling import settle
from accel.running import evaluation, floating_tensors, one_by_one, replaced_forwards

_RIDGE = 1e-3  # of the neighbours' mean variance
_WEIGHT_RIDGE = 0.1  # of the patches' mean variance; CIFAR ResNet-32 at keep 1/2 gains as much at 0.01
_CHANGE = 4.0  # times the length of the weights that a change of theirs may reach
_ROUNDING = 16.0  # steps of the floating-point grid, about a mean, that are no signal
_SAMPLES = 1 << 12  # per class
_DOUBT = 0.02  # of the fits that gain nothing on other pictures pass
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


def fit_interpolation(
    model: nn.Module, calibration: Iterable, limit: int = LIMIT, before: Callable[[], object] = lambda: None
) -> None:
    """Fit, in place, every layer of a converted model that has interpolate='fitted', in the order they run.

    What a layer gives in the dense network is the target of three least-squares problems per output channel: scale and
    shift of the computed positions, and the neighbours' weights and a constant for the skipped ones. The perforated
    network goes on with that fit, so that the layers behind are fitted to the inputs they will get.

    This is done twice. At first the last quarter of the pictures (of a single one, of its rows) is left out and judges:
    a channel that nearest filling serves better is left to that, and so is the whole network where its outputs come out
    worse. Then the other channels are fitted on all pictures. A layer that the pictures do not reach, or of which they
    only reach computed positions, is filled in by nearest values.

    Args:
        model: converted; its weights, statistics and modes are left as they are.
        calibration: batches of inputs of one size, see `accel.inputs`.
        limit: input pixels used: the first 13 pictures of 240x320, or 1024 of 32x32; they make one batch.
        before: called before every fit; what it raises ends the work.

    Raises:
        DataError: unusable calibration data, pictures of differing sizes, or no layer is reached.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, PerforatedConv2d)}
    waiting = {name: layer for name, layer in layers.items() if layer.config.interpolate == "fitted"}
    pictures = pictures_of_one_size(calibration, model, limit)
    dense = {layer: layer.forward_densely for layer in layers.values()}
    own = {layer: functools.partial(PerforatedConv2d.forward, layer) for layer in layers.values()}
    left: dict[str, Tensor] = {}  # bool [C], the channels left to nearest filling

    def judge(name: str, x: Tensor, target: Tensor) -> None:
        before()
        found = _judged(layers[name], x, target)
        layers[name].set_fit(found)
        left[name] = found.nearest

    def refit(name: str, x: Tensor, target: Tensor) -> None:
        if not left[name].all():
            before()
            fit = _least_squares(layers[name], x, target)
            layers[name].set_fit(fit.with_nearest(left[name]))

    with one_by_one():
        _leave_to_nearest(waiting)
        unreached = settle(model, pictures, waiting, judge, dense, own)
        if waiting and len(unreached) == len(waiting):
            name = unreached[0]
            raise DataError(
                f"the calibration data never reaches layer {name!r}: leave it out by a rule {{{name!r}: None}}"
            )
        if _loses(model, pictures.part(_known(len(pictures)), len(pictures)), waiting, dense):
            return
        settle(model, pictures, {name: waiting[name] for name in left}, refit, dense, own)


def _leave_to_nearest(layers: Mapping[str, PerforatedConv2d]) -> None:
    for layer in layers.values():
        layer.set_fit(nearest_fit(layer.out_channels))


@torch.no_grad()
def _loses(
    model: nn.Module, pictures: Batch, fitted: Mapping[str, PerforatedConv2d], dense: Mapping[nn.Module, Callable]
) -> bool:
    """Whether the outputs are not surely nearer to the dense ones than under nearest filling; then that is left."""
    fits = {name: layer.fit for name, layer in fitted.items()}
    with evaluation(model):
        with replaced_forwards(dense):
            target = floating_tensors(pictures.run(model))
        ours = _distances(floating_tensors(pictures.run(model)), target, len(pictures))
        _leave_to_nearest(fitted)
        nearest = _distances(floating_tensors(pictures.run(model)), target, len(pictures))
    if is_lost(ours, nearest):
        return True
    for name, fit in fits.items():
        fitted[name].set_fit(fit)
    return False


def is_lost(ours: Tensor, nearest: Tensor) -> bool:
    """Whether, of two losses for each picture, [N], the first is not surely smaller, by Student's t.

    One or two pictures tell nothing of their spread: each of them must gain.
    """
    gain = nearest - ours
    if len(gain) < 3:
        return not bool((gain >= 0).all())  # NaN is not
    doubt = float(stdtrit(len(gain) - 1, 1 - _DOUBT)) * gain.std() / len(gain) ** 0.5
    return not bool(gain.mean() >= doubt)


def _distances(outputs: list[Tensor], target: list[Tensor], count: int) -> Tensor:
    """[N], for every picture the mean squared difference, relative to the target's, summed over the outputs that can be
    compared; of one that does not count the pictures, it is the same for all."""
    total = torch.zeros(count, dtype=torch.float32, device="cpu")
    for a, b in zip(outputs, target):
        if a.shape != b.shape or not b.numel():
            continue
        squares = (a.float() - b.float()).square() / b.float().square().mean().clamp_min(
            torch.finfo(torch.float32).tiny
        )
        total += (squares.flatten(1).mean(1) if len(b.shape) > 1 and len(b) == count else squares.mean()).cpu()
    return total


def pictures_of_one_size(calibration: Iterable, model: nn.Module, limit: int = LIMIT) -> Batch:
    """The first pictures, at least one, of not more than `limit` pixels in all."""
    found = batches(calibration, model)
    first = next(found)
    everything = (dataclasses.replace(batch, rest=()) for batch in itertools.chain([first], found))
    return first_pictures(everything, max(limit // first.pixels, 1))


@torch.no_grad()
def fit_layer(layer: PerforatedConv2d, x: Tensor, target: Tensor) -> Fit:
    """The least-squares fit of one layer by itself, judged as in `fit_interpolation`.

    Args:
        x: [N, C, H, W], what the layer reads in the perforated network.
        target: [N, K, H', W'], its output in the dense network. Of another shape than the layer's own output (such as
            for the boxes that a detector finds in either), it says nothing: nearest filling.
    """
    judged = _judged(layer, x, target)
    return judged if judged.nearest.all() else _least_squares(layer, x, target).with_nearest(judged.nearest)


def _known(pictures: int) -> int:
    """How many of the pictures are fitted on before the others judge; of a single one, it is some of its rows."""
    return pictures - -(-pictures // 4) if pictures > 1 else 0


def _judged(layer: PerforatedConv2d, x: Tensor, target: Tensor) -> Fit:
    """The fit without the last quarter of the pictures, with nearest filling in the channels that lose on them."""
    x, target = (value[None] if x.dim() == 3 else value for value in (x, target))
    if not len(x) or target.shape != (len(x), layer.out_channels, *layer.output_size(*x.shape[2:])):
        return nearest_fit(layer.out_channels)
    start = _known(len(x))
    if start:
        fit, known = _least_squares(layer, x[:start], target[:start]), (x[start:], target[start:], slice(None))
    else:
        seen = torch.arange(target[0, 0].numel(), device="cpu") < 3 * target[0, 0].numel() // 4
        fit, known = _least_squares(layer, x, target, seen), (x, target, (~seen).to(x.device))
    if fit is None:
        return nearest_fit(layer.out_channels)
    nearest = nearest_fit(layer.out_channels, layer.config.neighbors)
    bar = _error(layer, nearest, *known) + _noise(target.float().square().mean((0, 2, 3)).sqrt())
    wins = _error(layer, fit, *known) <= bar  # NaN does not
    return fit.with_nearest(~wins.cpu())


def _error(layer: PerforatedConv2d, fit: Fit, x: Tensor, target: Tensor, where: Tensor | slice) -> Tensor:
    """[K], the mean squared error of the layer with a fit, at the flat positions `where`."""
    trial = shallow_copy(layer)
    trial.set_fit(fit)
    trial._sets = layer._sets
    difference = PerforatedConv2d.forward(trial, x).float() - target.float()
    return difference.flatten(2)[:, :, where].square().mean((0, 2))


def _least_squares(layer: PerforatedConv2d, x: Tensor, target: Tensor, counted: Tensor | None = None) -> Fit | None:
    """The fit on the positions that are `counted`, bool [H' * W']; None if there are none, computed or skipped."""
    x, target = (value[None] if x.dim() == 3 else value for value in (x, target))
    positions = layer.position_set(*target.shape[2:])
    if positions.is_full:
        return None
    if counted is None:
        counted = torch.ones(len(positions.nearest), dtype=torch.bool, device="cpu")
    pixels = target.permute(0, 2, 3, 1).flatten(1, 2)
    pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    known = counted[positions.positions.long()].nonzero()[:, 0]
    skipped, chosen, offsets = find_neighbors(positions, layer.config.neighbors)
    allowed = counted.numpy()[skipped]
    if not len(known) or not allowed.any():
        return None
    change = _fit_weights(layer, x, pixels, positions, known) if layer.config.correct == "weights" else None
    weight = layer.weight if change is None else layer.weight + change.to(layer.weight)
    rows = layer.rows_at(x, positions.to(x.device), weight).view(len(x), len(positions), -1).to(pixels)
    at = positions.positions.long()[known].to(x.device)
    scale, shift = _fit_scale(rows[:, known.to(x.device)].flatten(0, 1), pixels[:, at].flatten(0, 1))
    rows = rows * scale + shift
    classes = common_classes(offsets)
    kind, prior = classify(offsets, classes), distance_weights(offsets, classes)
    generator = torch.Generator("cpu").manual_seed(layer.config.seed)
    weights, constants = [], []
    for k, towards in enumerate(prior):
        members = torch.from_numpy(((kind == k) & allowed).nonzero()[0])
        if not len(members):
            members = torch.from_numpy(allowed.nonzero()[0])  # so that the last class serves borders at other sizes
        drawn = torch.randperm(len(members), generator=generator, device="cpu")[: -(-_SAMPLES // len(x))]
        members = members[drawn]
        where = (torch.from_numpy(array)[members].to(x.device) for array in (skipped, chosen))
        found = _fit_sums(rows, pixels, *where, towards)
        weights.append(found[0])
        constants.append(found[1])
    found = (torch.stack(weights), torch.stack(constants), scale, shift, change)
    return Fit(torch.from_numpy(classes), *(None if tensor is None else tensor.cpu() for tensor in found))


def _fit_weights(layer: PerforatedConv2d, x: Tensor, pixels: Tensor, positions: PositionSet, known: Tensor) -> Tensor:
    """The change of the layer's weight by ridge regression of what its output lacks on the patches it reads.

    Args:
        x: [N, C, H, W], what the layer reads in the perforated network.
        pixels: [N, H' * W', K], the target at every position.
        known: the rows of `positions` to use.
    """
    now = geometry_of(layer)
    geometry = (now.kernel, now.stride, now.padding, now.dilation, now.padding_mode)
    places = positions.positions.long()[known]
    taps = tap_map(tuple(x.shape[2:]), *geometry)[places].long()
    features = layer.weight[0].numel()
    generator = torch.Generator("cpu").manual_seed(layer.config.seed)
    samples = -(-max(2 * _SAMPLES, 2 * features) // len(x))
    chosen = torch.randperm(len(places), generator=generator, device="cpu")[:samples]
    inputs = F.pad(x.permute(0, 2, 3, 1).flatten(1, 2), (0, 0, 0, 1)).to(pixels)  # last, the zero padding: tap -1
    patches = inputs[:, taps[chosen].to(x.device)].flatten(0, 1).mT  # [samples, C, taps]
    wanted = pixels[:, places[chosen].to(x.device)].flatten(0, 1)
    changes = []
    for weight, seen, target in zip(
        layer.weight.flatten(1).to(pixels).chunk(layer.groups),
        patches.chunk(layer.groups, 1),
        wanted.chunk(layer.groups, 1),
    ):
        middle = seen.flatten(1).mean(0)
        seen = seen.flatten(1) - middle  # the bias is left to scale and shift
        lacking = target - target.mean(0) - seen @ weight.T
        gram, moment = (seen.T @ seen).double(), (seen.T @ lacking).double()
        ridge = _WEIGHT_RIDGE * gram.diagonal().mean()
        missing, known_by = lacking.double().square().sum(0).mean(), weight.double().square().sum(1).mean()
        ridge = ridge.maximum(missing / (known_by * (2 * _CHANGE) ** 2)).maximum(len(seen) * _noise(middle).mean())
        changes.append(solve_ridge(gram, moment, ridge).T)
    return torch.cat(changes).view_as(layer.weight).to(pixels.dtype)


def _fit_scale(values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(scale [C], shift [C]) of ridge regression, for values and target [M, C]; scale 1 where a channel is constant."""
    mean, wanted = values.mean(0), target.mean(0)
    values, lacking = values - mean, (target - wanted) - (values - mean)
    variance, spread = values.square().mean(0), (target - wanted).square().mean(0)
    ridge = (variance / len(values)).maximum(_faint(variance, spread)).maximum(_noise(mean))
    scale = 1 + (values * lacking).mean(0) / (variance + ridge)
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
    size = max(1, _CHUNK // (len(rows) * taps * channels))
    for at, near in zip(skipped.split(size), chosen.split(size)):
        seen = torch.cat([rows[:, near], pixels[:, at, None]], 2) - middle
        seen = seen.permute(3, 2, 0, 1).flatten(2)  # [C, T + 1, samples]
        gram += seen @ seen.mT
        sums += seen.sum(2)
    mean = (sums / count).double()
    gram = gram.double() / count - mean[:, :, None] * mean[:, None, :]
    gram, moment, spread = gram[:, :-1, :-1], gram[:, :-1, -1], gram[:, -1, -1].clamp_min(0)
    mean, wanted = mean[:, :-1], mean[:, -1]
    power = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(0)
    ridge = ((_RIDGE + taps / count) * power).maximum(_faint(power, spread)).maximum(_noise(middle).double())
    towards = towards.to(gram).expand(channels, taps)
    pull = moment - (gram @ towards[:, :, None])[:, :, 0]
    weights = towards + solve_ridge(gram, pull[:, :, None], ridge)[:, :, 0]
    constant = wanted - (weights * mean).sum(1) + middle * (1 - weights.sum(1))
    return weights.T.contiguous().to(rows.dtype), constant.to(rows.dtype)


def solve_ridge(gram: Tensor, moment: Tensor, ridge: Tensor) -> Tensor:
    """The solution w of (gram + ridge) w = moment, for float64 [..., n, n], [..., n, k] and [...].

    Zero where there is none: a ridge of zero, or values that are not finite.
    """
    gram = gram.clone()
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
    factor, failed = torch.linalg.cholesky_ex(gram)
    solved = torch.cholesky_solve(moment, factor)
    fine = solved.isfinite().flatten(-2).all(-1) & (failed == 0)
    return torch.where(fine[..., None, None], solved, 0.0)


def _faint(power: Tensor, spread: Tensor) -> Tensor:
    """The ridge of values that vary less than their target does, so that no fit magnifies by more than 3.2."""
    return _RIDGE * spread.square() / power.clamp_min(torch.finfo(power.dtype).tiny)


def _noise(mean: Tensor) -> Tensor:
    """The variance that is rounding: of values about this mean."""
    return (_ROUNDING * torch.finfo(mean.dtype).eps * mean).square()
