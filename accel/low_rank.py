"""Low-rank convolutions: one convolution becomes two, with fewer channels between them.

Zhang, Zou, He, Sun, "Accelerating very deep convolutional networks for classification and detection", PAMI 2016 (arXiv
1505.06798): the responses of a layer lie near a subspace, so that d of K filters, and a 1x1 convolution that spreads
them, reproduce it. Here their linear solution, in its asymmetric form: each layer is solved for the inputs that it will
get, against the outputs of the dense network. Figurnov et al., NIPS 2016, section 4.3: it adds up with perforation.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from accel.calibrate import pictures_of_one_size, settle
from accel.config import Perforate
from accel.errors import ConfigError, ConversionError, DataError
from accel.fills.fitted import solve_ridge
from accel.inputs import Batch
from accel.nn.geometry import geometry_of
from accel.profiling.flops import count_macs
from accel.running import copied, evaluation, record_calls, run_eagerly

_ROWS = 1 << 14  # output positions that a layer is solved on
_RIDGE = 1e-3  # of the mean variance of the responses


class LowRankConv2d(nn.Sequential):
    """A convolution of fewer channels and one of 1x1 behind it, in the place of one."""


@run_eagerly()
def decompose_model(
    model: nn.Module,
    *,
    calibration: Iterable,
    ranks: Mapping[str, int | None] | None = None,
    macs: float | None = None,
) -> nn.Module:
    """A copy of a dense model with low-rank convolutions; convert it afterwards to perforate it as well.

    A decomposed layer becomes `LowRankConv2d(convolution without bias to d channels, 1x1 convolution)`. With `macs` the
    ranks are chosen greedily by the paper's rule: the product over layers of the variance kept, for the MACs saved.

    Args:
        model: dense; it is left as it is. Only plain nn.Conv2d of one group can be decomposed.
        calibration: batches of inputs of one size, see `accel.inputs`; the first 13 pictures of 240x320 are used, or
            1024 of 32x32.
        ranks: d of the layers whose name matches a pattern, None to leave them whole; the first match wins.
        macs: share of the model's multiply-accumulates to execute, in (0, 1), which the layers that no pattern matches
            are decomposed for; without it they are left whole.

    Raises:
        ConfigError: nothing to do, a rank that its layer does not have, a pattern that matches nothing, or macs outside
            (0, 1).
        ConversionError: rank 1 everywhere is still more than `macs`.
        DataError: unusable calibration data, or a layer that it does not reach.
    """
    if macs is not None and not 0 < macs < 1:
        raise ConfigError(f"macs is a share of the dense multiply-accumulates and must lie in (0, 1), got {macs!r}")
    layers = {n: m for n, m in model.named_modules() if type(m) is nn.Conv2d and m.groups == 1}
    given = _given_ranks(layers, ranks or {})
    if type(model) is nn.Conv2d:
        raise ConfigError("the model is a single convolution: put it into an nn.Sequential")
    pictures = pictures_of_one_size(calibration, model)
    low = copied(model)
    chosen = {name: rank for name, rank in given.items() if rank is not None}
    if macs is not None:
        free = [name for name in layers if name not in given]
        chosen |= _chosen_ranks(low, free, pictures, macs, chosen)
    if not chosen:
        raise ConfigError("no layer would be decomposed: give ranks={pattern: rank} or macs=")
    decompose(low, pictures, chosen)
    return low


def decompose(
    model: nn.Module,
    pictures: Batch,
    ranks: Mapping[str, int],
    before: Callable[[], object] = lambda: None,
    known: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Make two convolutions of each of the named ones, in place, in the order they run.

    Args:
        before: called before every layer; what it raises ends the work, and the model is as it was.
        known: what layers give in the dense network for these pictures, where `accel.calibrate.record` found it before.

    Raises:
        DataError: the pictures do not reach a layer.
    """
    waiting = {name: layer for name, layer in model.named_modules() if name in ranks}
    pairs: dict[nn.Module, LowRankConv2d] = {}

    def solve(name: str, x: Tensor, target: Tensor) -> None:
        before()
        layer = waiting[name]
        pairs[layer] = Subspace(layer, nn.Conv2d.forward(layer, x), target).pair(ranks[name])

    own = {layer: functools.partial(_run_pair, pairs, layer) for layer in waiting.values()}
    if unreached := settle(model, pictures, waiting, solve, {}, own, known):
        raise DataError(f"the calibration data never reaches layer {unreached[0]!r}: leave it whole by rank None")
    _put_in(model, pairs)


def rank_of(layer: nn.Conv2d, rank: int | float) -> int:
    """The channels between the two convolutions for a `rank` of `accel.Perforate`; 0, where none are few enough."""
    if isinstance(rank, int):
        return rank if rank <= layer.out_channels else 0
    return int(rank * layer.weight.numel() / _macs_per_rank(layer) + 1e-9)


def share_of(layer: nn.Conv2d, rank: int | float | None) -> float:
    """The share of the layer's multiply-accumulates that its two convolutions execute; 1 without a rank."""
    return 1.0 if rank is None else rank_of(layer, rank) * _macs_per_rank(layer) / layer.weight.numel()


def why_not_low_rank(layer: nn.Conv2d, rank: int | float) -> str | None:
    """Why the layer cannot become two convolutions of this rank, or None."""
    if type(layer) is not nn.Conv2d:
        return f"is a {type(layer).__name__}, and only a plain nn.Conv2d is decomposed"
    if layer.groups != 1:
        return f"has {layer.groups} groups"
    if rank_of(layer, rank) < 1:
        return f"of {layer.out_channels} channels has no rank {rank:g}"
    return None


def ranks_said(model: nn.Module, assigned: Mapping[str, Perforate]) -> dict[str, int]:
    """What configurations say of the ranks of convolutions, by name.

    Raises:
        ConversionError: one cannot have it.
    """
    ranks = {}
    for name, config in assigned.items():
        if config.rank is None:
            continue
        layer = model.get_submodule(name)
        if (reason := why_not_low_rank(layer, config.rank)) is not None or not name:
            reason = reason or "is the whole model: put it into an nn.Sequential"
            raise ConversionError(f"rank {config.rank:g}: layer {name!r} {reason}; leave rank out by a rule of its own")
        ranks[name] = rank_of(layer, config.rank)
    return ranks


def halved(name: str, config: Perforate) -> dict[str, Perforate]:
    """What the configuration of a layer says of the two convolutions in its place, by their names: the first one hands
    over its rows as they are, the second one fills in."""
    if config.rank is None:
        return {name: config}
    second = dataclasses.replace(config, rank=None)
    return {f"{name}.0": second.filled_by("nearest"), f"{name}.1": second}


def ranks_of(model: nn.Module) -> dict[str, int]:
    """The rank of every layer of a model that was decomposed."""
    return {name: each[0].out_channels for name, each in model.named_modules() if isinstance(each, LowRankConv2d)}


@torch.no_grad()
def set_ranks(model: nn.Module, ranks: Mapping[str, int]) -> list[LowRankConv2d]:
    """Put layers of these ranks in the place of the model's, whose weights are still to be written; these layers.

    Raises:
        ConfigError: a name that is not of a plain nn.Conv2d of one group, or a rank that it cannot have.
    """
    known, pairs = dict(model.named_modules(remove_duplicate=False)), {}
    for name, rank in ranks.items():
        layer = known.get(name)
        if isinstance(layer, LowRankConv2d) and layer[0].out_channels == rank:
            continue
        if type(layer) is not nn.Conv2d or layer.groups != 1:
            raise ConfigError(f"no convolution of one group is called {name!r}")
        if type(rank) is not int or not 1 <= rank <= layer.out_channels:
            raise ConfigError(f"layer {name!r} has ranks from 1 to {layer.out_channels}, got {rank!r}")
        pairs[layer] = empty_pair(layer, rank)
    _put_in(model, pairs)
    return [*pairs.values()]


def _put_in(model: nn.Module, pairs: Mapping[nn.Module, LowRankConv2d]) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):  # a shared layer has several names
        if module in pairs:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, pairs[module].train(module.training))


def _given_ranks(layers: Mapping[str, nn.Conv2d], ranks: Mapping[str, int | None]) -> dict[str, int | None]:
    """The rank, or None, of every layer that a pattern matches."""
    for pattern in ranks:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
            some = ", ".join(layers) or "none"
            raise ConfigError(f"rank {pattern!r} matches no convolution of one group: the model's are {some}")
    given = {}
    for name, layer in layers.items():
        pattern = next((pattern for pattern in ranks if fnmatch.fnmatchcase(name, pattern)), None)
        if pattern is None:
            continue
        given[name] = rank = ranks[pattern]
        if rank is not None and not 1 <= rank <= layer.out_channels:
            raise ConfigError(f"layer {name!r} has ranks from 1 to {layer.out_channels}, got {rank!r}")
    return given


def _run_pair(pairs: Mapping[nn.Module, LowRankConv2d], layer: nn.Module, input: Tensor) -> Tensor:
    return pairs[layer](input)


class Subspace:
    """The two convolutions, of any rank, that bring the response of a layer nearest to a target in the mean square.

    Both are [N, K, H, W], or [K, H, W]; a target of another shape than the response says nothing.

    Reduced-rank regression: the best full matrix M from response to target, then the leading directions U of what it
    explains; U' M goes into the first convolution, U into the second. Where both agree M is the identity and U the
    principal components.

    Raises:
        DataError: no response, or one that is not finite.
    """

    @torch.no_grad()
    def __init__(self, layer: nn.Conv2d, response: Tensor, target: Tensor) -> None:
        seen, wanted = _rows(response), _rows(target if target.shape == response.shape else response)
        if not seen.numel() or not (seen.isfinite().all() and wanted.isfinite().all()):
            raise DataError(
                "a layer whose rank is to be found gives nothing, or no finite numbers, on the calibration data: mend "
                "the pictures, or leave the layer whole"
            )
        self._layer, self._middle, self._aim = layer, seen.mean(0), wanted.mean(0)
        seen, wanted = seen - self._middle, wanted - self._aim
        gram = seen.T @ seen
        ridge = _RIDGE * torch.maximum(gram.diagonal().mean(), wanted.square().sum(0).mean())
        full = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        self._full = full + solve_ridge(gram, seen.T @ (wanted - seen), ridge).T
        self._directions = torch.linalg.eigh(self._full @ gram @ self._full.T).eigenvectors

    @torch.no_grad()
    def pair(self, rank: int) -> LowRankConv2d:
        layer, leading = self._layer, self._directions[:, -rank:]
        inner = leading.T @ self._full
        middle = self._middle if layer.bias is None else self._middle - layer.bias.double()
        found = empty_pair(layer, rank)
        found[0].weight.copy_((inner @ layer.weight.flatten(1).double()).view_as(found[0].weight))
        found[1].weight.copy_(leading[:, :, None, None])
        found[1].bias.copy_(self._aim - leading @ inner @ middle)
        return found


def empty_pair(layer: nn.Conv2d, rank: int) -> LowRankConv2d:
    """Of this rank in the place of the layer, its weights still to be written."""
    kept = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    now, make = geometry_of(layer), functools.partial(nn.utils.skip_init, nn.Conv2d, **kept)
    first = make(layer.in_channels, rank, now.kernel, now.stride, dilation=now.dilation, bias=False)
    for name in ("padding", "padding_mode", "_reversed_padding_repeated_twice"):  # whichever torch reads
        setattr(first, name, getattr(layer, name))
    return LowRankConv2d(first, make(rank, layer.out_channels, 1))


def _rows(out: Tensor) -> Tensor:
    """float64 [rows, K]: evenly spread output positions of [N, K, H, W] or [K, H, W]."""
    rows = out.movedim(-3, -1).flatten(0, -2)
    return rows[:: max(1, len(rows) // _ROWS)].double()


def _chosen_ranks(
    model: nn.Module, names: Iterable[str], pictures: Batch, macs: float, given: Mapping[str, int]
) -> dict[str, int]:
    """Ranks of the named layers, so that the model with them and those given executes at most the share `macs`.

    Every step takes the last direction of the layer where that loses the least of the product over layers of the
    variance kept, for the multiply-accumulates saved.
    """
    example, layers = pictures.part(0, 1).inputs, dict(model.named_modules())
    pixels = {
        name: sum(shape[-2] * shape[-1] for shape in shapes)
        for name, shapes in record_calls(model, {name: layers[name] for name in (*names, *given)}, example).items()
    }
    whole = {name: pixels[name] * layers[name].weight.numel() for name in pixels}
    each = {name: pixels[name] * _macs_per_rank(layers[name]) for name in pixels}
    dense = count_macs(model, example)
    cost = dense - sum(whole[name] - rank * each[name] for name, rank in given.items())
    variances = _variances(model, [name for name in names if pixels[name]], pictures)
    ranks = {name: layers[name].out_channels for name in variances}  # all of them: the layer is whole
    costs = {name: whole[name] for name in variances}
    while cost > macs * dense:
        steps = []
        for name, kept in variances.items():
            most = -(-whole[name] // each[name]) - 1  # the highest rank that saves anything
            rank = min(ranks[name] - 1, most)
            if rank >= 1:
                lost = 1 - kept[rank] / kept[ranks[name]] if kept[ranks[name]] else 0.0
                steps.append((lost / (costs[name] - rank * each[name]), name, rank))
        if not steps:
            raise ConversionError(f"macs={macs:g} cannot be met: at rank 1 everywhere {cost / dense:.3f} are left")
        _, name, rank = min(steps)
        cost -= costs[name] - rank * each[name]
        ranks[name], costs[name] = rank, rank * each[name]
    return {name: rank for name, rank in ranks.items() if rank < layers[name].out_channels}


def _macs_per_rank(layer: nn.Conv2d) -> int:
    """Of one output position and one channel between the two convolutions."""
    return layer.weight[0].numel() + layer.out_channels


def _variances(model: nn.Module, names: Iterable[str], pictures: Batch) -> dict[str, list[float]]:
    """Of every layer, at index d the variance of its responses that their first d principal directions keep."""
    found: dict[str, list[float]] = {}

    def watch(name: str):
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            rows = _rows(output)
            centered = rows - rows.mean(0)
            parts = torch.linalg.eigvalsh(centered.T @ centered / len(rows)).flip(0).clamp_min(0)
            found[name] = [0.0, *parts.cumsum(0).tolist()]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        with evaluation(model), torch.no_grad():
            pictures.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return found
