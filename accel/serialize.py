"""Saving and loading converted models: a folder with config.json and model.safetensors, never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from accel.config import Halting, config_from_dict
from accel.convert import (
    Conversion,
    convert_layers,
    convolutions,
    left_dense,
    perforated_layers,
    plain_convolutions,
    quantize_linears,
    quantized_linears,
)
from accel.convert.layout import lay_out
from accel.errors import ConfigError, ConversionError, UnknownNameError, WeightsError
from accel.files import replacing, write_tensors
from accel.fills import Fit
from accel.low_rank import ranks_of, set_ranks
from accel.masks import Pooling
from accel.nn.adaptive import adaptive_configs, adaptive_stages, adopt_stages, check_stages
from accel.nn.inference import install, refused_parts
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import Quantization
from accel.running import copied

FORMAT = "skimconv converted model"
VERSIONS = 1, 2, 3  # with linear layers in eight bits; with layers of low rank
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_Found = TypeVar("_Found", Fit, Quantization)
# prefixes of what calibration found: no state_dict key holds a colon
_IMPACT, _FIT, _QUANTIZATION = "impact:", "fit:", "quantization:"


def save_converted(model: nn.Module, folder: str | os.PathLike) -> None:
    """Write a converted model: what was done to which layer or stage to config.json, tensors to model.safetensors.

    Each file is complete or absent; one that was there is replaced.

    Raises:
        ConversionError: the model has no converted layer, or state that is no tensor.
        WeightsError: the folder cannot be written.
    """
    layers, linears, stages = perforated_layers(model), quantized_linears(model), adaptive_configs(model)
    if not (layers or linears or stages):
        raise ConversionError(f"this {type(model).__name__} has no converted layer: convert it before saving")
    ranks, (state, aliases) = ranks_of(model), _own_storage(model)
    tensors = state | {key: tensor for name, layer in layers.items() for key, tensor in _calibrated(name, layer)}
    tensors |= {key: tensor for name, layer in linears.items() for key, tensor in _quantized(name, layer.quantization)}
    folder = pathlib.Path(folder)
    try:
        write_tensors(folder / WEIGHTS, tensors)
        config = {
            "format": FORMAT,
            "version": VERSIONS[2 if ranks else bool(linears)],
            "ranks": ranks,
            "layers": {name: _describe(layer) for name, layer in layers.items()},
            "linears": list(linears),
            "stages": {name: config.to_dict() for name, config in stages.items()},
            "contiguous": [name for name, layer in convolutions(model).items() if _is_contiguous(layer)],
            "refused": refused_parts(model),
            "aliases": aliases,
            "sha256": _sha256(folder / WEIGHTS),
        }
        with replacing(folder / CONFIG) as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write to {folder} ({error}): choose a folder you may write to") from error


@torch.inference_mode(False)
def load_converted(folder: str | os.PathLike, model: nn.Module) -> nn.Module:
    """The converted model that `save_converted` wrote, on the architecture of `model`.

    Args:
        folder: what was given to `save_converted`.
        model: the dense model it was converted from, decomposed or not, or a new one of the same architecture; its
            weights do not matter and it is left as it is. The result has its mode, device and own storage.

    Raises:
        WeightsError: a file is missing, corrupt or of another version, or `model` is of another architecture.
    """
    folder = pathlib.Path(folder)
    config = _read_config(folder / CONFIG)
    tensors = _read_tensors(folder / WEIGHTS, config["sha256"])
    impacts = {key.removeprefix(_IMPACT): tensors.pop(key) for key in list(tensors) if key.startswith(_IMPACT)}
    for name, impact in impacts.items():
        if impact.dim() != 2 or not impact.is_floating_point():
            raise WeightsError(
                f"{folder / WEIGHTS} holds a damaged impact map of layer {name!r} ({impact.dtype} of shape "
                f"{tuple(impact.shape)}, expected floating [H, W]): save the converted model again"
            )
    fits = _take(folder, tensors, _FIT, Fit)
    quantizations = _take(folder, tensors, _QUANTIZATION, Quantization)
    state = tensors | {alias: tensors[name] for alias, name in config["aliases"].items() if name in tensors}
    fast = _with_ranks(folder, copied(model), config["ranks"])
    known, layers = convolutions(fast), config["layers"]
    fast = _with_stages(folder, fast, config["stages"])
    _check_same_architecture(folder, state, fast)
    for name in layers:
        if name not in known or left_dense(known[name]) is not None:
            raise WeightsError(
                f"{folder} was made from another model: {type(model).__name__} has no convolution {name!r}"
            )
    for name, conversion in layers.items():
        if conversion.config.filling.needs_data and name not in fits:
            raise WeightsError(f"{folder} lacks the fit of layer {name!r}: save the converted model again")
        if conversion.config.in_bytes and name not in quantizations:
            raise WeightsError(f"{folder} lacks the scales of layer {name!r}: save the converted model again")
        layers[name] = dataclasses.replace(
            conversion,
            impact=impacts.get(name),
            fit=fits.get(name),
            quantization=quantizations.get(name),
            contiguous=name in config["contiguous"],
        )
    convert_layers(fast, layers)
    quantize_linears(fast, _linears(folder, fast, config["linears"], quantizations))
    for stage in adaptive_stages(fast):
        if stage.config.in_bytes and not stage.in_bytes:
            raise WeightsError(f"{folder} lacks the scales of stage {stage.name!r}: save the converted model again")
    fast.load_state_dict(_with_versions(state, fast))
    layers = [layer for name, layer in plain_convolutions(fast).items() if name not in config["contiguous"]]
    lay_out(layers, torch.channels_last)
    install(fast, config["refused"])
    return fast


def _is_contiguous(layer: nn.Conv2d) -> bool:
    """Whether the layer keeps torch's default layout: see `accel.convert.layout`."""
    if isinstance(layer, PerforatedConv2d):
        return layer.contiguous
    return not layer.weight.is_contiguous(memory_format=torch.channels_last)


def _with_versions(state: Mapping[str, Tensor], model: nn.Module) -> OrderedDict[str, Tensor]:
    """The state with what a state_dict says of its modules' versions, which some modules insist on when they load."""
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata
    return versioned


def _calibrated(name: str, layer: PerforatedConv2d) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of what calibration found for a layer."""
    if layer.impact is not None:
        yield _IMPACT + name, layer.impact
    if layer.fit is not None and layer.config.filling.needs_data:
        for field, tensor in layer.fit.tensors().items():
            yield f"{_FIT}{name}:{field}", tensor
    yield from _quantized(name, layer.quantization)


def _quantized(name: str, quantization: Quantization | None) -> Iterator[tuple[str, Tensor]]:
    for field, tensor in () if quantization is None else quantization.tensors().items():
        yield f"{_QUANTIZATION}{name}:{field}", tensor


def _linears(
    folder: pathlib.Path, model: nn.Module, names: Sequence[str], quantizations: Mapping[str, Quantization]
) -> dict[str, Quantization]:
    """What a calibration found for the linear layers in eight bits."""
    known = dict(model.named_modules())
    for name in names:
        if type(known.get(name)) is not nn.Linear:
            raise WeightsError(
                f"{folder} was made from another model: {type(model).__name__} has no linear layer {name!r}"
            )
        if name not in quantizations:
            raise WeightsError(f"{folder} lacks the scales of layer {name!r}: save the converted model again")
    return {name: quantizations[name] for name in names}


def _take(folder: pathlib.Path, tensors: dict[str, Tensor], prefix: str, kind: type[_Found]) -> dict[str, _Found]:
    """What a calibration found, of one kind, by layer; its tensors are taken out."""
    found: dict[str, dict[str, Tensor]] = {}
    for key in [key for key in tensors if key.startswith(prefix)]:
        name, _, field = key.removeprefix(prefix).rpartition(":")
        found.setdefault(name, {})[field] = tensors.pop(key)
    try:
        return {name: kind(**fields) for name, fields in found.items()}
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{folder / WEIGHTS} holds a damaged {prefix.removesuffix(':')} ({error}): save the converted model again"
        ) from error


def _with_ranks(folder: pathlib.Path, model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """`model` with its layers decomposed, in place."""
    try:
        set_ranks(model, ranks)
    except ConfigError as error:
        raise WeightsError(f"{folder} was made from another model: {error}") from error
    return model


def _with_stages(folder: pathlib.Path, model: nn.Module, stages: Mapping[str, Halting]) -> nn.Module:
    """`model` with its stages made adaptive, in place."""
    known = dict(model.named_modules())
    for name in stages:
        if name not in known:
            raise WeightsError(f"{folder} was made from another model: {type(model).__name__} has no stage {name!r}")
    try:
        if stages:
            check_stages(model, stages)
            adopt_stages(model, stages)
        return model
    except ConversionError as error:
        raise WeightsError(f"{folder} was made from another model: {error}") from error


def _describe(layer: PerforatedConv2d) -> dict:
    pooling = None if layer.pooling is None else layer.pooling._asdict()
    return {"config": layer.config.to_dict(), "pooling": pooling}


def _parse(entry: dict) -> Conversion:
    """The inverse of `_describe`."""
    pooling = entry["pooling"]
    if pooling is not None:
        pooling = Pooling(*(tuple(pooling[key]) for key in ("kernel", "stride", "padding")), pooling["ceil_mode"])
    return Conversion(config_from_dict(entry["config"]), pooling)


def _own_storage(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state, aliases): the state_dict with every tensor once and contiguous, and the names of shared ones."""
    state: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ConversionError(f"the state {name!r} is a {type(tensor).__name__}: only tensors can be saved")
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            state[name] = tensor.detach().cpu().contiguous().clone()
    return state, aliases


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unreadable(path: pathlib.Path, error: OSError) -> WeightsError:
    return WeightsError(f"cannot read {path} ({error.strerror}): expected a folder made by save_converted")


def _read_config(path: pathlib.Path) -> dict:
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error}): save the converted model again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise WeightsError(f"{path} is not the config of a converted model: expected a folder made by save_converted")
    if config.get("version") not in VERSIONS:
        raise WeightsError(
            f"{path} is of version {config.get('version')!r}, expected one of {VERSIONS}: convert and save the model "
            "again"
        )
    try:
        config["layers"] = {name: _parse(entry) for name, entry in config["layers"].items()}
        made: dict[str, Halting] = {}  # stages that share a configuration share its estimator
        config["stages"] = {
            name: made.setdefault(json.dumps(entry, sort_keys=True), config_from_dict(entry))
            for name, entry in config["stages"].items()
        }
        before = {"contiguous": [], "refused": {}, "linears": [], "ranks": {}}  # which had none of these
        config = {**before, **config}
        kinds = {"aliases": dict, "sha256": str, **{key: type(value) for key, value in before.items()}}
        if wrong := [key for key, kind in kinds.items() if not isinstance(config[key], kind)]:
            raise TypeError(f"{wrong[0]} of the wrong kind")
    except UnknownNameError as error:
        raise WeightsError(f"{path} names what is not known here ({error}): import what adds it first") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({error}): save the converted model again") from error
    return config


def _read_tensors(path: pathlib.Path, sha256: str) -> dict[str, Tensor]:
    try:
        if _sha256(path) != sha256:
            raise WeightsError(
                f"{path} does not belong to the {CONFIG} beside it, or is damaged: save the converted model again"
            )
        return load_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file ({error}): save the converted model again") from error


def _check_same_architecture(folder: pathlib.Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """WeightsError for the first difference between the saved state and the model's."""
    own = model.state_dict()
    kind = type(model).__name__
    for name in [*own, *state]:
        if name not in own or name not in state:
            where = f"this {kind}" if name not in own else "the saved one"
            raise WeightsError(f"{folder} was made from another model: {where} has no {name!r}")
    for name, tensor in own.items():
        saved = state[name]
        if (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
            raise WeightsError(
                f"{folder} was made from another model: {name!r} is {tuple(saved.shape)} {saved.dtype} there, "
                f"and {tuple(tensor.shape)} {tensor.dtype} in this {kind}"
            )
