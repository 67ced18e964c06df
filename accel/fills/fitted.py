"""Sums fitted to calibration data: per channel the weighted sum of neighbours, and a constant, by least squares; ours.

What a layer gives in the dense network is the target of three ridge regressions per output channel: scale and shift of
the computed positions, and the neighbours' weights and a constant for the skipped ones, class by class of these.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from accel.fills.contract import Fill, Layer, register
from accel.fills.sums import Fit, Nearest, classify, distance_weights, find_neighbors
from accel.kernels.positions import PositionSet

_RIDGE = 1e-3  # of the neighbours' mean variance
_WEIGHT_RIDGE = 0.1  # of the patches' mean variance; CIFAR ResNet-32 at keep 1/2 gains as much at 0.01
_CHANGE = 4.0  # times the length of the weights that a change of theirs may reach
_ROUNDING = 16.0  # steps of the floating-point grid, about a mean, that are no signal
_SAMPLES = 1 << 12  # per class
_CHUNK = 1 << 21  # values gathered at a time, 8 MB


@register
class Fitted(Fill):
    """The sums that come nearest to the dense network's output."""

    name = "fitted"

    def fit(self, layer: Layer, x: Tensor, target: Tensor, counted: Tensor) -> Fit | None:
        """None where no computed position counts, or no skipped one."""
        positions = layer.position_set(*target.shape[2:])
        if positions.is_full:
            return None
        pixels = target.permute(0, 2, 3, 1).flatten(1, 2)
        pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        known = counted[positions.positions.long()].nonzero()[:, 0]
        neighbors = find_neighbors(positions, layer.config.neighbors)
        allowed = counted.numpy()[neighbors.skipped]
        if not len(known) or not allowed.any():
            return None
        change = _CHANGES[layer.config.correct](layer, x, pixels, positions, known)
        weight = layer.weight if change is None else layer.weight + change.to(layer.weight)
        rows = layer.rows_at(x, positions.to(x.device), weight).view(len(x), len(positions), -1).to(pixels)
        at = positions.positions.long()[known].to(x.device)
        scale, shift = _fit_scale(rows[:, known.to(x.device)].flatten(0, 1), pixels[:, at].flatten(0, 1))
        sums = _fit_classes(rows * scale + shift, pixels, neighbors, allowed, layer.config.seed)
        offsets, found = torch.from_numpy(neighbors.classes.copy()), (*sums, scale, shift, change)
        return Fit(offsets, *(None if tensor is None else tensor.cpu() for tensor in found))


def _fit_classes(
    rows: Tensor, pixels: Tensor, neighbors: Nearest, allowed: np.ndarray, seed: int
) -> tuple[Tensor, Tensor]:
    """(weights [K, T, C], constant [K, C]), class by class, from samples of the skipped positions that are allowed."""
    skipped, chosen, offsets, classes = neighbors
    kind, prior = classify(offsets, classes), distance_weights(offsets, classes)
    generator = torch.Generator("cpu").manual_seed(seed)
    found = []
    for k, towards in enumerate(prior):
        members = torch.from_numpy(((kind == k) & allowed).nonzero()[0])
        if not len(members):
            members = torch.from_numpy(allowed.nonzero()[0])  # so that the last class serves borders at other sizes
        drawn = torch.randperm(len(members), generator=generator, device="cpu")[: -(-_SAMPLES // len(rows))]
        members = members[drawn]
        where = (torch.from_numpy(array)[members].to(rows.device) for array in (skipped, chosen))
        found.append(_fit_sums(rows, pixels, *where, towards))
    weights, constants = zip(*found)
    return torch.stack(weights), torch.stack(constants)


def _fit_weights(layer: Layer, x: Tensor, pixels: Tensor, positions: PositionSet, known: Tensor) -> Tensor:
    """The change of the layer's weight by ridge regression of what its output lacks on the patches it reads.

    Args:
        x: [N, C, H, W], what the layer reads in the perforated network.
        pixels: [N, H' * W', K], the target at every position.
        known: the rows of `positions` to use.
    """
    places = positions.positions.long()[known]
    taps = layer.tap_map(*x.shape[2:])[places].long()
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
        ridge = _WEIGHT_RIDGE * seen.double().square().sum(0).mean()
        missing, known_by = lacking.double().square().sum(0).mean(), weight.double().square().sum(1).mean()
        ridge = ridge.maximum(missing / (known_by * (2 * _CHANGE) ** 2)).maximum(len(seen) * noise(middle).mean())
        changes.append(ridge_regression(seen, lacking, ridge).T)
    return torch.cat(changes).reshape_as(layer.weight).to(pixels.dtype)


def ridge_regression(seen: Tensor, lacking: Tensor, ridge: Tensor) -> Tensor:
    """float64 [F, K], w of the least |seen @ w - lacking|^2 + ridge |w|^2, for seen [M, F] and lacking [M, K].

    Of fewer samples than features their products are the smaller system; the solution is the same.
    """
    if len(seen) < seen.shape[1]:
        return seen.double().T @ solve_ridge((seen @ seen.T).double(), lacking.double(), ridge)
    return solve_ridge((seen.T @ seen).double(), (seen.T @ lacking).double(), ridge)


def _leave_weights(*_: object) -> None:
    """The weights stay as they are."""


_CHANGES = {"scale": _leave_weights, "weights": _fit_weights}
CORRECTIONS = tuple(_CHANGES)  # what is fitted at computed positions, the quickest first; the first is the default


def _fit_scale(values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(scale [C], shift [C]) of ridge regression, for values and target [M, C]; scale 1 where a channel is constant."""
    mean, wanted = values.mean(0), target.mean(0)
    values, lacking = values - mean, (target - wanted) - (values - mean)
    variance, spread = values.square().mean(0), (target - wanted).square().mean(0)
    ridge = (variance / len(values)).maximum(_faint(variance, spread)).maximum(noise(mean))
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
        seen = seen.permute(3, 2, 0, 1).contiguous().flatten(2)  # [C, T + 1, samples], or the products take 2.6 times
        gram += seen @ seen.mT
        sums += seen.sum(2)
    mean = (sums / count).double()
    gram = gram.double() / count - mean[:, :, None] * mean[:, None, :]
    gram, moment, spread = gram[:, :-1, :-1], gram[:, :-1, -1], gram[:, -1, -1].clamp_min(0)
    mean, wanted = mean[:, :-1], mean[:, -1]
    power = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(0)
    ridge = ((_RIDGE + taps / count) * power).maximum(_faint(power, spread)).maximum(noise(middle).double())
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


def noise(mean: Tensor) -> Tensor:
    """The variance that is rounding: of values about this mean."""
    return (_ROUNDING * torch.finfo(mean.dtype).eps * mean).square()
