"""`accel plan`: what a conversion would do, layer by layer, without doing it."""

from __future__ import annotations

import argparse

from accel.cli import common, conversion, models


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "plan",
        run,
        "show what a conversion would do, layer by layer",
        "accel plan torchvision:resnet18 --keep 0.5 --mask lattice --size 224",
    )
    models.add_model(parser)
    conversion.add_conversion(parser)
    conversion.add_input(parser)
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    import accel
    from accel.errors import ConversionError
    from accel.zoo.registry import input_size

    resolved = models.resolve(args.model, args.weights)
    if resolved.converted:
        raise ConversionError(f"{args.model} is converted already: 'accel profile {args.model}' shows it")
    x = conversion.drawn_input(args, args.size or input_size(resolved.name))
    plan = accel.plan_conversion(
        resolved.model.to(x.device), conversion.read_rules(args, resolved.name), example_inputs=x
    )
    common.print_report(plan, args)
    return 0
