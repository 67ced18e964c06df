"""An imputer as one safetensors file: weights as tensors, settings and columns as JSON in its header. No pickle."""

from __future__ import annotations

import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from accel.errors import ConfigError, WeightsError
from accel.files import replacing
from accel.vae.columns import Column
from accel.vae.mask_generators import mask_generator

if TYPE_CHECKING:
    from accel.vae.imputer import Imputer

FORMAT, VERSION = "skimconv imputer", 1


def save(imputer: Imputer, path: str | os.PathLike) -> None:
    """WeightsError where the file cannot be written; what was there before stays then."""
    settings = imputer.get_params(deep=False)
    settings["masks"] = None if imputer.masks is None else imputer.masks.to_dict()
    settings["columns"] = None if imputer.columns is None else list(imputer.columns.items())
    if not isinstance(imputer.random_state, (int, np.integer)):
        settings["random_state"] = imputer.seed_
    header = {
        "format": FORMAT,
        "version": VERSION,
        "settings": settings,
        "columns": [column.to_dict() for column in imputer.columns_],
        "seed": imputer.seed_,
        "bounds": imputer.bounds_,
        "features": imputer.n_features_in_,
        "names": list(imputer.feature_names_in_) if hasattr(imputer, "feature_names_in_") else None,
    }
    state = {} if imputer.model_ is None else imputer.model_.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _write(pathlib.Path(path), tensors, json.dumps(header, default=_plain))


def load(kind: type[Imputer], path: str | os.PathLike) -> Imputer:
    """WeightsError for a file that is missing, damaged, or no imputer."""
    header, tensors = _read(pathlib.Path(path))
    try:
        settings = dict(header["settings"])
        settings["masks"] = None if settings["masks"] is None else mask_generator(settings["masks"])
        settings["columns"] = None if settings["columns"] is None else dict(settings["columns"])
        imputer = kind(**settings)
        imputer.columns_ = [Column.from_dict(entry) for entry in header["columns"]]
        imputer.seed_, imputer.bounds_, imputer.n_features_in_ = header["seed"], header["bounds"], header["features"]
        if header["names"] is not None:
            imputer.feature_names_in_ = np.array(header["names"], dtype=object)
        imputer.model_ = imputer._new_model()
        if imputer.model_ is not None:
            imputer.model_.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, ConfigError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} is a damaged imputer ({reason}): save it again") from error
    return imputer


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("skimconv", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise WeightsError(f"cannot read {path} ({error}): expected a file made by Imputer.save") from error
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is no safetensors file ({error}): expected one made by Imputer.save") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise WeightsError(f"{path} holds another model: expected a file made by Imputer.save")
    if header.get("version") != VERSION:
        raise WeightsError(f"{path} is of version {header.get('version')!r}, expected {VERSION}: fit and save it again")
    return header, tensors


def _write(target: pathlib.Path, tensors: dict[str, torch.Tensor], header: str) -> None:
    try:
        with replacing(target) as partial:
            save_file(tensors, partial, {"skimconv": header})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write {target} ({error}): choose a place you may write to") from error


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be saved: settings must be plain numbers, text and lists")
