"""What `accel profile` runs: the model, what stands beside it, on every batch size."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import accel
from accel.cli import common, conversion, models
from accel.cli.profile import ORIGINAL
from accel.cli.profile_report import Findings
from accel.errors import ConfigError
from accel.profiling.flops import macs_of_images
from accel.profiling.peaks import measured_peaks
from accel.running import run_on

if TYPE_CHECKING:
    from accel.cli.models import Resolved


def measure(args: argparse.Namespace, resolved: Resolved) -> Findings:
    """Profiles of all that the command line asks for.

    Raises:
        AccelError: options that make no sense together, or a model that does not run as asked.
    """
    model, baseline, x = _sides(args, resolved)
    if args.dtype or args.baseline:
        x = x.to(getattr(torch, args.dtype or "float32"))
        for side in (side for side in (model, baseline) if side is not None):
            _check(side.to(x.dtype) if args.dtype else side, x[:1])
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    peaks = measured_peaks(x.dtype) if x.device.type == "cpu" else None
    if peaks is None:
        common.note(args, "what the machine reaches at the most is measured on CPUs only: no share of it is shown")
    with torch.inference_mode():
        counts = None if args.data is None else macs_of_images(model, _pictures(args, resolved, x))
        given = {"beside": args.baseline or "its dense form", "compiled": args.compile, "peaks": peaks}
        profiles = {size: accel.profile(model, x[:size], baseline, **given) for size in args.batch}
    return Findings(profiles, counts, peaks, args.by, args.depth)


def _sides(args: argparse.Namespace, resolved: Resolved) -> tuple[nn.Module, nn.Module | None, Tensor]:
    """(the model, what runs beside it, the input of the largest batch), in float32."""
    if resolved.converted:
        conversion.refuse_conversion(args)
    rules = conversion.read_rules(args, resolved.name) if conversion.wants_conversion(args) else None
    if args.baseline == ORIGINAL and rules is None and not resolved.converted:
        raise ConfigError(f"{args.model} has no dense original: say with --baseline MODEL what is to run beside it")
    if args.channels_last and (rules is not None or resolved.converted):
        raise ConfigError("--channels-last is for dense models: what is converted computes in that format anyway")
    most = max(args.batch)
    x, calibration = conversion.example(argparse.Namespace(**{**vars(args), "batch": most}), resolved, rules)
    if len(x) < most:
        raise ConfigError(f"--images has {len(x)} pictures for a batch of {most}: give more, or a smaller --batch-size")
    model, baseline = resolved.model, None
    if rules is not None:
        baseline = model
        model = accel.convert_model(baseline, rules, example_inputs=x, calibration=calibration)
    elif resolved.converted:
        baseline = accel.revert_model(model)
    if args.baseline:
        baseline = models.resolve(args.baseline).model.to(x.device)
    if args.dtype not in (None, "float32") and (inside := _in_bytes(model)):
        raise ConfigError(f"--dtype is what all tensors are, and {inside} is in int8: leave out one of the two")
    return model, baseline, x


def _in_bytes(model: nn.Module) -> str | None:
    """The name of a layer in eight bits."""
    from accel.profiling.flops import SavesMacs

    saving = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, SavesMacs))
    return next((name for name, layer in saving if layer.facts().get("precision") == "int8"), None)


def _check(side: nn.Module, x: Tensor) -> None:
    try:
        run_on(side, x)
    except Exception as error:  # a model's own, of any kind
        reason = " ".join(str(error).split())[:200]
        given = f"{'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}"
        raise ConfigError(
            f"{type(side).__name__} cannot run on {given} ({type(error).__name__}: {reason}): leave out --dtype, or "
            "give another --size or --baseline"
        ) from error


def _pictures(args: argparse.Namespace, resolved: Resolved, like: Tensor) -> Iterator[Tensor]:
    """The inputs made of the pictures of --data, one by one."""
    from accel.zoo.picture_files import find_images, read_each, read_picture

    paths, size = find_images(args.data), tuple(like.shape[2:])
    watched = common.progress(args, paths, "counting")
    for _, picture in read_each(watched, lambda path: read_picture(path, size), str(args.data)):
        yield resolved.prepare(picture[None]).to(like)
