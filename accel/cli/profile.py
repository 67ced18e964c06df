"""`accel profile`: MACs and milliseconds per layer, of a dense model or of a conversion beside its dense original."""

from __future__ import annotations

import argparse

from accel.cli import common, conversion, models


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "profile",
        run,
        "show MACs and milliseconds per layer, dense and converted side by side",
        "accel profile torchvision:vgg16 --keep 0.5 --size 224 --batch 8",
    )
    conversion.add_options(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    import accel

    resolved = models.resolve_args(args)
    wanted = conversion.wants_conversion(args)
    if resolved.converted:
        conversion.refuse_conversion(args)
    rules = conversion.read_rules(args, resolved.name) if wanted else None
    x, calibration = conversion.example(args, resolved, rules)
    model, baseline = resolved.model, None
    if resolved.converted:
        baseline = accel.revert_model(model)
    elif rules is not None:
        baseline = model
        model = accel.convert_model(baseline, rules, example_inputs=x, calibration=calibration)
    with torch.inference_mode():
        common.print_report(accel.profile(model, x, baseline=baseline), args)
    if args.images is not None:
        models.standardise_note(args, resolved)
    return 0
