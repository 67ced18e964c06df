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
    models.add_model(parser)
    conversion.add_conversion(parser)
    conversion.add_input(parser)
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    import accel
    from accel.errors import ConversionError
    from accel.zoo.registry import input_size

    resolved = models.resolve(args.model, args.weights)
    x = conversion.drawn_input(args, args.size or input_size(resolved.name))
    model = resolved.model.to(x.device)
    if resolved.converted and conversion.wants_conversion(args):
        raise ConversionError(f"{args.model} is converted already: leave out --keep, --mask, --interpolate and --rules")
    if resolved.converted:
        measured, baseline = model, accel.revert_model(model)
    elif conversion.wants_conversion(args):
        measured = accel.convert_model(model, conversion.read_rules(args, resolved.name), example_inputs=x)
        baseline = model
    else:
        measured, baseline = model, None
    with torch.inference_mode():
        common.print_report(accel.profile(measured, x, baseline=baseline), args)
    return 0
