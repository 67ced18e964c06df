"""`accel plan`: what a conversion would do, layer by layer, without doing it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from accel.cli import common, conversion, models

if TYPE_CHECKING:
    from accel.profiling.layers import Plan


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "plan",
        run,
        "show what a conversion would do, layer by layer",
        "accel plan torchvision:resnet18 --keep 0.5 --mask lattice --size 224",
    )
    conversion.add_options(parser)


def run(args: argparse.Namespace) -> int:
    import accel

    resolved = models.resolve_args(args)
    if resolved.converted:
        common.print_report(plan_of_converted(args, resolved), args)
        return 0
    rules = conversion.read_rules(args, resolved.name)
    x, calibration = conversion.example(args, resolved, rules)
    plan = accel.plan_conversion(resolved.model, rules, example_inputs=x, calibration=calibration)
    common.print_report(plan, args)
    if args.images is not None:
        models.standardise_note(args, resolved)
    return 0


def plan_of_converted(args: argparse.Namespace, resolved: models.Resolved) -> Plan:
    """What was done to a model that is converted already."""
    from accel.convert import counted_layers
    from accel.nn.inference import describe_paths
    from accel.profiling.layers import plan_of
    from accel.running import record_calls

    conversion.refuse_conversion(args)
    x, _ = conversion.example(args, resolved, None)
    calls = record_calls(resolved.model, counted_layers(resolved.model), x)
    return plan_of(resolved.model, x, calls, describe_paths(resolved.model, x))
