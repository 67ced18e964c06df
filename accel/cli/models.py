"""MODEL on the command line: torchvision:vgg16, zoo:resnet20_cifar, a saved folder, file.onnx or file.py:function."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from accel.cli import common, user_models
from accel.errors import AccelError, ConfigError, ConversionError, WeightsError, explain
from accel.files import write_text
from accel.zoo import onnx_models

if TYPE_CHECKING:
    from torch import Tensor, nn

MODEL_HELP = (
    "torchvision:NAME, zoo:NAME ('accel list' names them), a folder saved by convert, file.onnx, or file.py:function"
)
SOURCE_FILE = "source.json"  # beside a saved model: which MODEL it was made from
_SOURCE_SCHEMA = 1
_NAMED = ("torchvision:", "zoo:")


@dataclasses.dataclass(frozen=True)
class Standardise:
    """What a model of the user's own reads: (pixels / scale - mean) / std of RGB; ImageNet's, as torchvision has it.

    Raises:
        ConfigError: not one or three finite values, or a scale or std of 0.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 255.0

    def __post_init__(self) -> None:
        for option, values in (("--mean", self.mean), ("--std", self.std), ("--scale", (self.scale,))):
            if len(values) not in (1, 3) or not all(abs(value) < float("inf") for value in values):
                raise ConfigError(f"{option} is one number, or one each for red, green and blue, got {values}")
            if option != "--mean" and 0 in values:
                raise ConfigError(f"{option} divides, so it must not be 0")

    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 RGB [N, 3, H, W] to float32."""
        import torch

        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pictures.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (pictures.float() / self.scale - mean) / std


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A model and what it reads.

    Attributes:
        name: the registry's, None for a model of the user's own.
        source: file.py:function or file.onnx of a model of the user's own.
        standardise: how that one wants its pictures; models of the registry bring their own preprocessing.
    """

    model: nn.Module
    name: str | None
    converted: bool = False
    source: str | None = None
    standardise: Standardise = Standardise()

    @property
    def prepare(self) -> Callable[[Tensor], Tensor]:
        """uint8 RGB pictures [N, 3, H, W] to the model's float32 input."""
        from accel.zoo.registry import preprocess

        return self.standardise if self.name is None else functools.partial(preprocess, self.name)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width it is usually run at; 224 x 224 for a model of the user's own."""
        from accel.zoo.registry import input_size

        declared = onnx_models.declared_size(self.source) if self._is_onnx else None
        return declared or input_size(self.name)

    @property
    def _is_onnx(self) -> bool:
        return self.source is not None and onnx_models.is_onnx(self.source)

    def check(self, x: Tensor) -> None:
        """Run once on x.

        Raises:
            ConversionError: the model cannot, with the place where it is a file of the user's; or an ONNX file gives
                something else in ONNX Runtime.
        """
        import torch

        folder = None if self.source is None else pathlib.Path(self.source.rpartition(":")[0]).absolute().parent
        try:
            with torch.inference_mode():
                outputs = self.model(x)
        except Exception as error:
            shape, reason = "x".join(map(str, x.shape)), explain(error, folder)
            raise ConversionError(
                f"the model cannot run on an input of {shape} ({reason}): give another --size"
            ) from error
        if self._is_onnx and not self.converted:
            onnx_models.prove(self.source, x, outputs)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--weights", metavar="FILE", help="weights: .safetensors or .pt, or download, or none")
    parser.add_argument(
        "--source", metavar="MODEL", help="file.py:function or file.onnx that a saved folder was made from"
    )
    add_standardise(parser)


def add_standardise(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the pictures of a model of your own")
    group.add_argument(
        "--mean", type=common.numbers, metavar="R,G,B", help="its inputs are (pixels / scale - mean) / std"
    )
    group.add_argument("--std", type=common.numbers, metavar="R,G,B", help="(default: ImageNet's mean and std)")
    group.add_argument("--scale", type=float, metavar="S", help="(default 255)")


def resolve_args(args: argparse.Namespace, weights: str | None = None) -> Resolved:
    """The model that the command line asks for, in eval mode; with `weights` in place of --weights.

    Raises:
        AccelError: as `resolve`, and preprocessing given for a model that brings its own.
    """
    return with_standardise(args, resolve(args.model, weights or args.weights, args.source))


def resolve_dense(args: argparse.Namespace, adaptive: bool = False) -> Resolved:
    """The model that the command line asks to convert, with trained weights where it does not name any.

    Args:
        adaptive: whether a trained adaptive network will do as well, whose units can be put into eight bits.

    Raises:
        AccelError: as `resolve_args` and `trained_weights`, and for a model that is converted already.
    """
    from accel.nn.adaptive import adaptive_stages

    resolved = resolve_args(args, args.weights or trained_weights(args.model))
    taken = adaptive and bool(adaptive_stages(resolved.model)) and not pathlib.Path(args.model).is_dir()
    if resolved.converted and not taken:
        raise ConversionError(f"{args.model} is converted already: give the model it was made from")
    return resolved


def trained_weights(model: str) -> str | None:
    """What --weights means where it is not given: what a network of drawn weights computes is of no use.

    Raises:
        WeightsError: a model of the zoo that brings no weights.
    """
    if model.startswith("torchvision:"):
        return "download"
    if model.startswith("zoo:"):
        from accel.zoo.registry import has_weights

        if not has_weights(model):
            raise WeightsError(f"{model} brings no weights: pass --weights FILE, or --weights none for drawn ones")
    return None


def with_standardise(args: argparse.Namespace, resolved: Resolved) -> Resolved:
    """The model with the preprocessing that the options give.

    Raises:
        ConfigError: it brings its own.
    """
    given = {key: getattr(args, key) for key in ("mean", "std", "scale") if getattr(args, key) is not None}
    if resolved.name is not None and given:
        options = " and ".join(f"--{key}" for key in given)
        raise ConfigError(f"{resolved.name} brings its own preprocessing: leave out {options}")
    return dataclasses.replace(resolved, standardise=dataclasses.replace(resolved.standardise, **given))


def standardise_note(args: argparse.Namespace, resolved: Resolved) -> None:
    """Say what is taken for granted of the pictures that a model of the user's own reads."""
    if resolved.name is None and resolved.standardise == Standardise():
        common.note(args, "the pictures were read as ImageNet's networks do: --mean, --std and --scale say otherwise")


def resolve(spec: str, weights: str | None = None, source: str | None = None) -> Resolved:
    """Build the model that `spec` names, in eval mode. Weights with halting heads make it adaptive.

    Args:
        source: the model that a saved folder was made from, where its own record does not say.

    Raises:
        AccelError: unknown name, missing or foreign weights, or a function that gives no model.
    """
    if pathlib.Path(spec).is_dir():
        return _load_saved(pathlib.Path(spec), weights, source)
    if source is not None:
        raise ConfigError(f"--source says what a saved folder was made from, and {spec} is none: leave it out")
    if spec.startswith(_NAMED):
        return _from_registry(spec, weights)
    if user_models.is_user_model(spec):
        from accel.zoo.registry import load_weights

        model = user_models.build(spec)
        if weights not in (None, "none"):
            load_weights(model, weights)
        return Resolved(model.eval(), None, source=spec)
    if onnx_models.is_onnx(spec):
        if weights not in (None, "none"):
            raise WeightsError(f"{spec} brings its own weights: leave out --weights")
        return Resolved(onnx_models.build(spec).eval(), None, source=spec)
    raise AccelError(f"no model {spec!r}: MODEL is {MODEL_HELP}")


def _from_registry(name: str, weights: str | None) -> Resolved:
    from accel.zoo.registry import get_model, is_adaptive

    kind = _halting_kind(weights)
    if kind is None or is_adaptive(name):
        return Resolved(get_model(name, weights=weights).eval(), name, converted=is_adaptive(name))
    from accel.cli.training import build

    return Resolved(build(name, weights, kind).eval(), name, converted=True)


def _halting_kind(weights: str | None) -> dict | None:
    """What `accel train` made adaptive, as its weights tell by their names; None for weights of a plain network."""
    from accel.zoo.weights_io import read_tensors

    if weights is None or not pathlib.Path(weights).is_file():
        return None
    keys = read_tensors(weights).keys()
    if not any(".halting." in key for key in keys):
        return None
    spatial = any(key.endswith(".halting.pooled.weight") for key in keys)
    kind = {"kind": "sact" if spatial else "act"}
    if any(key.endswith(".sticks") for key in keys):
        kind = {"kind": "pact", "spatial": spatial}
    moved = {"target": 1.0} if any(key.endswith(".tau") for key in keys) else {}  # a target keeps its tau as a buffer
    return {**kind, **moved}


def write_source(folder: pathlib.Path, resolved: Resolved) -> None:
    """Leave in a saved model's folder the MODEL it was made from, and what pictures it reads."""
    record = {"schema": _SOURCE_SCHEMA, "model": resolved.name}
    if resolved.name is None:
        record |= {"source": resolved.source, "standardise": dataclasses.asdict(resolved.standardise)}
    write_text(folder / SOURCE_FILE, json.dumps(record, indent=2) + "\n")


def saved_standardise(folder: pathlib.Path) -> Standardise:
    """What pictures the model in a saved folder reads, as far as its record says.

    Raises:
        WeightsError: the record is damaged.
    """
    given = _read_record(folder).get("standardise") if (folder / SOURCE_FILE).is_file() else None
    if given is None:
        return Standardise()
    try:
        return Standardise(tuple(given["mean"]), tuple(given["std"]), given["scale"])
    except (KeyError, TypeError, ConfigError) as error:
        raise WeightsError(f"{folder / SOURCE_FILE} is damaged ({error!r}): convert the model again") from error


def plain(model: nn.Module) -> nn.Module:
    """What a saved folder is loaded into: of an adaptive network, the one that it was made from."""
    from accel.convert import revert_model
    from accel.nn.adaptive import adaptive_stages

    return revert_model(model) if adaptive_stages(model) else model


def _load_saved(folder: pathlib.Path, weights: str | None, source: str | None) -> Resolved:
    from accel.serialize import load_converted

    if weights is not None:
        raise WeightsError(f"{folder} brings its own weights: leave out --weights")
    dense = resolve(source or _made_from(folder), "none")
    fast = load_converted(folder, plain(dense.model)).eval()
    return dataclasses.replace(dense, model=fast, converted=True, standardise=saved_standardise(folder))


def _made_from(folder: pathlib.Path) -> str:
    """The MODEL that a folder says it was made from.

    A folder may come from a stranger, so it can only name models of the registry, never a Python file to run.
    """
    from accel.serialize import CONFIG

    if not (folder / SOURCE_FILE).is_file():
        inside = folder / "model"
        remedy = f"give {inside}" if (inside / CONFIG).is_file() else "say with --source what it was made from"
        raise WeightsError(f"{folder} holds no {SOURCE_FILE}, so 'accel convert' did not save it: {remedy}")
    record = _read_record(folder)
    name, source = record["model"], record.get("source")
    if not isinstance(name, str) or not name.startswith(_NAMED):
        told = f" {source!r}, if you trust that file" if isinstance(source, str) else " file.py:function or file.onnx"
        raise WeightsError(f"{folder} was made from a model of your own: name it again, with --source{told}")
    return name


def _read_record(folder: pathlib.Path) -> dict:
    path = folder / SOURCE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema, _ = record["schema"], record["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged ({error!r}): convert the model again") from error
    if schema != _SOURCE_SCHEMA:
        raise WeightsError(f"{path} has schema {schema}, this version reads {_SOURCE_SCHEMA}: convert the model again")
    return record
