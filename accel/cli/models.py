"""MODEL on the command line: torchvision:vgg16, zoo:resnet20_cifar, a saved folder, or file.py:function."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys
from typing import TYPE_CHECKING

from accel.errors import AccelError, ConversionError, WeightsError

if TYPE_CHECKING:
    from torch import nn

MODEL_HELP = "torchvision:NAME, zoo:NAME ('accel list' names them), a folder saved by convert, or file.py:function"
SOURCE_FILE = "source.json"  # beside a saved model: which MODEL it was made from
_SOURCE_SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A model and the name it is known by; `name` is a registry name, or None for a model of the user's own."""

    model: nn.Module
    name: str | None
    converted: bool = False


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--weights", metavar="FILE", help="weights: .safetensors or .pt, or download, or none")


def resolve(spec: str, weights: str | None = None) -> Resolved:
    """Build the model that `spec` names, in eval mode.

    Raises:
        AccelError: unknown name, missing or foreign weights, or a function that gives no model.
    """
    if spec.startswith(("torchvision:", "zoo:")):
        from accel.zoo.registry import get_model, is_adaptive

        return Resolved(get_model(spec, weights=weights).eval(), spec, converted=is_adaptive(spec))
    if pathlib.Path(spec).is_dir():
        return _load_saved(pathlib.Path(spec), weights)
    path, colon, function = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return Resolved(_from_file(pathlib.Path(path), function, weights), None)
    raise AccelError(f"no model {spec!r}: MODEL is {MODEL_HELP}")


def write_source(folder: pathlib.Path, name: str | None) -> None:
    """Leave in a saved model's folder the MODEL it was made from."""
    (folder / SOURCE_FILE).write_text(json.dumps({"schema": _SOURCE_SCHEMA, "model": name}, indent=2) + "\n")


def _load_saved(folder: pathlib.Path, weights: str | None) -> Resolved:
    from accel.serialize import load_converted
    from accel.zoo.registry import get_model

    if weights is not None:
        raise WeightsError(f"{folder} brings its own weights: leave out --weights")
    name = _read_source(folder)
    return Resolved(load_converted(folder, get_model(name, weights="none")).eval(), name, converted=True)


def _read_source(folder: pathlib.Path) -> str:
    path = folder / SOURCE_FILE
    if not path.is_file():
        raise WeightsError(
            f"{folder} holds no {SOURCE_FILE}: it was not saved by 'accel convert'; give its model/ folder"
        )
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
        schema, name = source["schema"], source["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged ({error!r}): convert the model again") from error
    if schema != _SOURCE_SCHEMA:
        raise WeightsError(f"{path} has schema {schema}, this version reads {_SOURCE_SCHEMA}: convert the model again")
    # A saved folder may come from a stranger, so it can only name models of the registry, never a Python file to run.
    if not isinstance(name, str) or not name.startswith(("torchvision:", "zoo:")):
        raise WeightsError(
            f"{folder} was made from a model of your own: use accel.load_converted(folder, model) in Python"
        )
    return name


def _from_file(path: pathlib.Path, function: str, weights: str | None) -> nn.Module:
    from torch import nn

    if not path.is_file():
        raise AccelError(f"no file {path}: give file.py:function with a function that returns an nn.Module")
    spec = importlib.util.spec_from_file_location(f"accel_user_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up there
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        raise AccelError(f"{path} defines no function {function!r}")
    model = build()
    if not isinstance(model, nn.Module):
        raise ConversionError(f"{function} of {path} returned {type(model).__name__}, expected a torch.nn.Module")
    if weights is not None:
        from accel.zoo.registry import load_weights

        load_weights(model, weights)
    return model.eval()
