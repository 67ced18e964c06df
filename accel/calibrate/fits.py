"""What calibration data tells of the positions left out, how to fill them in, and of the ranges of bytes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from accel.calibrate.ranges import quantization_of, widened
from accel.calibrate.settling import settle, settle_by_inputs
from accel.config import PRECISIONS, Config, Perforate
from accel.errors import ConfigError, DataError
from accel.fills.fitted import noise
from accel.fills.sums import Fit, nearest_fit
from accel.inputs import Batch, batches, first_pictures
from accel.nn.adaptive import dense_execution
from accel.nn.perforated import PerforatedConv2d, shallow_copy
from accel.nn.quantized import floating
from accel.nn.quantized_linear import QuantizedLinear
from accel.running import evaluation, floating_tensors, one_by_one, replaced_forwards

_DOUBT = 0.02  # of the fits that gain nothing on other pictures pass
LIMIT = 1 << 20  # input pixels that a fit uses


def check_calibration(assigned: Mapping[str, Config], calibration: object) -> None:
    """ConfigError for the first layer, or stage, whose configuration needs calibration data when there is none."""
    for name, config in assigned.items():
        needs = {"precision": config.in_bytes}
        if isinstance(config, Perforate):
            needs = {"mask": config.masking.needs_data, "interpolate": config.filling.needs_data, **needs}
        for field, needs_data in needs.items():
            if needs_data and calibration is None:
                kind = "layer" if isinstance(config, Perforate) else "stage"
                said = f"{field} {getattr(config, field)!r} of {kind} {name!r} needs data"
                raise ConfigError(f"{said}: pass calibration= a loader or list of inputs")


def fit_interpolation(
    model: nn.Module,
    calibration: Iterable,
    limit: int = LIMIT,
    before: Callable[[], object] = lambda: None,
    known: Mapping[str, Tensor] = MappingProxyType({}),
    clips: dict[str, Tensor] | None = None,
) -> None:
    """Fit, in place, every layer of a converted model whose fill needs data, or that computes in eight bits, in the
    order they run.

    What a layer gives in the dense network is the target of its fill's `fit`, see `accel.fills.fitted`. The perforated
    network goes on with what that finds, so that the layers behind are fitted to the inputs they will get.

    This is done twice. At first the last quarter of the pictures (of a single one, of its rows) is left out and judges:
    a channel that nearest filling serves better is left to that, and so is the whole network where its outputs come out
    worse. Then the other channels are fitted on all pictures. A layer that the pictures do not reach, or of which they
    only reach computed positions, is filled in by nearest values.

    In eight bits the range of a layer's input comes first: what it then computes is what is fitted. A layer that the
    pictures do not reach stays in fp32, with a warning. Adaptive stages run densely under their masks.

    Args:
        model: converted; its weights, statistics and modes are left as they are.
        calibration: batches of inputs of one size, see `accel.inputs`.
        limit: input pixels used: the first 13 pictures of 240x320, or 1024 of 32x32; they make one batch.
        before: called before every fit; what it raises ends the work.
        known: what layers give in the dense network for these pictures, where `accel.calibrate.record` found it before.
        clips: as of `quantization_of`, for several networks of the same weights.

    Raises:
        DataError: unusable calibration data, pictures of differing sizes, or no layer is reached.
    """
    convs = {name: layer for name, layer in model.named_modules() if isinstance(layer, PerforatedConv2d)}
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    layers = convs | linears
    fitted = {name: layer for name, layer in convs.items() if layer.config.filling.needs_data}
    quantized = {name: layer for name, layer in convs.items() if layer.config.in_bytes} | linears
    waiting = {name: layer for name, layer in layers.items() if name in fitted or name in quantized}
    pictures = pictures_of_one_size(calibration, model, limit)
    dense = {layer: layer.forward_densely for layer in layers.values()}
    own = {layer: functools.partial(PerforatedConv2d.forward, layer) for layer in convs.values()}
    own |= {layer: functools.partial(_widening, name, layer) for name, layer in quantized.items()}
    left: dict[str, Tensor] = {}  # bool [C], the channels left to nearest filling
    clips = {} if clips is None else clips

    def judge(name: str, x: Tensor, target: Tensor) -> None:
        quantize(name, x)
        if name in fitted:
            found = _judged(layers[name], x, target)
            layers[name].set_fit(found)
            left[name] = found.nearest

    def refit(name: str, x: Tensor, target: Tensor) -> None:
        quantize(name, x)
        if name in left and not left[name].all():
            layers[name].set_fit(_refitted(layers[name], x, target, left[name]))

    def quantize(name: str, x: Tensor) -> None:
        before()
        if name in quantized:
            layers[name].quantization = quantization_of(layers[name], name, x, clips)

    with one_by_one(), dense_execution(model):
        _leave_to_nearest(fitted)
        if fitted:
            unreached = settle(model, pictures, waiting, judge, dense, own, known)
        else:
            unreached = settle_by_inputs(model, pictures, waiting, quantize, own)
        if waiting and len(unreached) == len(waiting):
            name = unreached[0]
            raise DataError(
                f"the calibration data never reaches layer {name!r}: leave it out by a rule {{{name!r}: None}}"
            )
        _leave_in_fp32({name: quantized.pop(name) for name in unreached if name in quantized})
        if not fitted:
            return
        if _loses(model, pictures.part(_known(len(pictures)), len(pictures)), fitted, dense):
            left, again = {}, quantized
        else:
            again = {name: layer for name, layer in waiting.items() if name not in unreached}
        settle(model, pictures, again, refit, dense, own, known)


def _leave_in_fp32(layers: Mapping[str, PerforatedConv2d | QuantizedLinear]) -> None:
    """Layers that nothing is known of, such as heads that only training runs."""
    for layer in layers.values():
        if isinstance(layer, QuantizedLinear):
            layer.release()
        else:
            layer.config = dataclasses.replace(layer.config, precision=PRECISIONS[0])
    if layers:
        warnings.warn(
            f"left in {PRECISIONS[0]}, as the calibration data never reaches them: {', '.join(layers)}", stacklevel=4
        )


def _widening(name: str, layer: PerforatedConv2d | QuantizedLinear, input: Tensor) -> Tensor:
    """The forward of a layer in eight bits that may be called again, with inputs of another range."""
    if getattr(layer, "quantization", None) is None:  # it is left in fp32
        with floating():
            return type(layer).forward(layer, input)
    layer.quantization = widened(layer.quantization, name, input)
    return type(layer).forward(layer, input)


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
    """The fit of one layer by itself, judged as in `fit_interpolation`.

    Args:
        x: [N, C, H, W], what the layer reads in the perforated network.
        target: [N, K, H', W'], its output in the dense network. Of another shape than the layer's own output (such as
            for the boxes that a detector finds in either), it says nothing: nearest filling.
    """
    judged = _judged(layer, x, target)
    return judged if judged.nearest.all() else _refitted(layer, x, target, judged.nearest)


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
        fit, known = _fitted(layer, x[:start], target[:start]), (x[start:], target[start:], slice(None))
    else:
        seen = torch.arange(target[0, 0].numel(), device="cpu") < 3 * target[0, 0].numel() // 4
        fit, known = _fitted(layer, x, target, seen), (x, target, (~seen).to(x.device))
    if fit is None:
        return nearest_fit(layer.out_channels)
    nearest = nearest_fit(layer.out_channels, layer.config.neighbors)
    bar = _error(layer, nearest, *known) + noise(target.float().square().mean((0, 2, 3)).sqrt())
    wins = _error(layer, fit, *known) <= bar  # NaN does not
    return fit.with_nearest(~wins.cpu())


def _refitted(layer: PerforatedConv2d, x: Tensor, target: Tensor, nearest: Tensor) -> Fit:
    """The fit on all pictures, with nearest filling in these channels, bool [K]."""
    found = _fitted(layer, x, target)
    return nearest_fit(layer.out_channels) if found is None else found.with_nearest(nearest)


def _error(layer: PerforatedConv2d, fit: Fit, x: Tensor, target: Tensor, where: Tensor | slice) -> Tensor:
    """[K], the mean squared error of the layer with a fit, at the flat positions `where`."""
    trial = shallow_copy(layer)
    trial.set_fit(fit)
    trial._sets = layer._sets
    difference = PerforatedConv2d.forward(trial, x).float() - target.float()
    return difference.flatten(2)[:, :, where].square().mean((0, 2))


def _fitted(layer: PerforatedConv2d, x: Tensor, target: Tensor, counted: Tensor | None = None) -> Fit | None:
    """What the layer's fill finds on the positions that are `counted`, bool [H' * W'], by default on all."""
    x, target = (value[None] if x.dim() == 3 else value for value in (x, target))
    if counted is None:
        counted = torch.ones(target[0, 0].numel(), dtype=torch.bool, device="cpu")
    return layer.config.filling.fit(layer, x, target, counted)
