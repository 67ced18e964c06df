"""Options of plan, profile and convert: what to keep where, and the input to try it on."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import TYPE_CHECKING

from accel.cli import common, models
from accel.errors import ConfigError
from accel.files import read_toml

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from accel.cli.models import Resolved
    from accel.config import Config, Perforate, Rules

DEFAULT_KEEP = 0.5
_SETTINGS = ("keep", "mask", "interpolate", "precision")
SETTINGS = ", ".join(f"--{name}" for name in _SETTINGS)
CALIBRATED = 12  # pictures that impact maps and fits are made from, at most


def add_conversion(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to keep")
    group.add_argument("--keep", type=float, metavar="K", help="fraction of positions to compute, in (0, 1]")
    group.add_argument("--mask", metavar="KIND", help="which positions ('accel list masks' names the kinds)")
    group.add_argument("--interpolate", metavar="HOW", help="fill of the others ('accel list fills' names them)")
    how = "fp32 (default), bf16, for CPUs with AVX512_BF16, or int8, which is calibrated on --images"
    group.add_argument("--precision", metavar="P", help=how)
    group.add_argument("--rules", type=pathlib.Path, metavar="FILE", help="Rules as .toml or .json, instead of --keep")


def add_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """All that a verb takes which shows what a conversion does; `several`: of several batch sizes."""
    models.add_model(parser)
    add_conversion(parser)
    add_example(parser, several)
    common.add_format(parser)


def add_example(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The options of verbs that make do with a drawn input: what it takes to run on pictures."""
    group = add_input(parser, several)
    group.add_argument(
        "--images",
        type=pathlib.Path,
        metavar="PATH",
        help="a picture or a folder, to run and calibrate on (default: noise)",
    )


def add_input(parser: argparse.ArgumentParser, several: bool = False) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("input")
    group.add_argument("--size", type=common.image_size, metavar="HxW", help="picture size (default: the model's own)")
    batch = {"type": common.positive, "default": 1, "metavar": "N", "help": "pictures at a time (default 1)"}
    if several:
        batch |= {"nargs": "+", "default": [1], "help": "pictures at a time, or several such numbers (default 1)"}
    group.add_argument("--batch", "--batch-size", **batch)
    group.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    return group


def wants_conversion(args: argparse.Namespace, but: str | None = None) -> bool:
    """Whether an option says what to convert and how, `but` not counted."""
    return any(getattr(args, name) is not None for name in (*_SETTINGS, "rules") if name != but)


def refuse_conversion(args: argparse.Namespace) -> None:
    """ConfigError where options ask to convert what is converted already."""
    if wants_conversion(args):
        raise ConfigError(f"{args.model} is converted already: leave out {SETTINGS} and --rules")


def read_rules(args: argparse.Namespace, name: str | None) -> Rules | Perforate:
    """What the options ask for: a rules file, or the model's default rules at --keep, or one config for every layer.

    Raises:
        ConfigError: options that contradict each other, or values that make no sense.
    """
    from accel.config import Perforate

    if args.rules is not None:
        if any(getattr(args, name) is not None for name in _SETTINGS):
            raise ConfigError(f"--rules already says what to keep: leave out {SETTINGS}")
        return _rules_of(args.rules)
    chosen = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    config = Perforate(**{"keep": DEFAULT_KEEP, "seed": args.seed, **chosen})
    if name is None:
        return config
    from accel.zoo.registry import default_rules

    return default_rules(name, config)


def device_of(args: argparse.Namespace) -> torch.device:
    """The device asked for, or cuda where there is one.

    Raises:
        ConfigError: cuda was asked for and is not there.
    """
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device here; leave it out to run on the CPU")
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def example(
    args: argparse.Namespace, resolved: Resolved, rules: Config | Rules | None
) -> tuple[Tensor, list[Tensor] | None]:
    """(input [batch, 3, H, W] to run on, batches to calibrate on): from --images; else noise, and nothing.

    Raises:
        ConfigError: rules that need calibration, and no pictures.
        ConversionError: the model cannot run on the input.
    """
    import torch

    from accel.cli.pictures import read_pictures
    from accel.zoo.picture_files import find_images

    size, batches = args.size or resolved.size, None
    if args.images is not None:
        paths = find_images(args.images, max(args.batch, CALIBRATED))
        pictures, _ = read_pictures(args, paths, size)
        batches = [x.to(device_of(args)) for x in resolved.prepare(pictures).split(args.batch)]
        x = batches[0]
    elif needs_calibration(rules):
        raise ConfigError("what is asked for is calibrated on real pictures: give some with --images")
    else:
        x = torch.randn(args.batch, 3, *size, generator=torch.Generator().manual_seed(args.seed)).to(device_of(args))
    resolved.model.to(x.device)
    resolved.check(x)
    return x, batches


def needs_calibration(rules: Config | Rules | None) -> bool:
    from accel.config import as_rules

    return rules is not None and any(c is not None and c.needs_calibration for c in as_rules(rules).values())


def _rules_of(path: pathlib.Path) -> Rules:
    """Rules from a file: `[[rule]]` tables written by hand, or what `Rules.to_dict` gave.

    A `[[rule]]` has `layers` (a pattern) and either `dense = true` or the fields of Perforate.
    """
    from accel.config import VERSION, Rules, config_from_dict

    data = _read_mapping(path)
    try:
        if "rule" not in data:
            return Rules.from_dict(data)
        rules = {}
        for rule in data["rule"]:
            fields = dict(rule)
            pattern, dense = fields.pop("layers"), fields.pop("dense", False)
            if dense and fields:
                raise ConfigError(f"rule {pattern!r} is dense: leave out {', '.join(fields)}")
            rules[pattern] = None if dense else config_from_dict({"kind": "perforate", "version": VERSION, **fields})
        return Rules(rules)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(f"rules file {path}: {reason}") from error


def _read_mapping(path: pathlib.Path) -> dict:
    if path.suffix != ".json":
        return read_toml(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}, expected an object")
    return data
