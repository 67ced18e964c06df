"""`accel search`: what to keep of which layer, so that the network is as fast as asked and loses the least."""

from __future__ import annotations

import argparse
import pathlib

from accel.cli import common, learning, models

_LABELLED = 4096  # pictures of a data set that a search may read


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "search",
        run,
        "find what to keep of which layer (positions, ranks) for a speed-up, by measured time; goes on where it was",
        "accel search zoo:hed_vgg16 --weights hed.safetensors --images photos/ --speedup 2 -o found/\n"
        "  accel convert zoo:hed_vgg16 --weights hed.safetensors --images photos/ --rules found/rules.json -o out/",
    )
    models.add_model(parser)
    target = parser.add_argument_group("target").add_mutually_exclusive_group(required=True)
    target.add_argument("--speedup", type=float, metavar="S", help="times faster than the fastest dense form")
    target.add_argument("--max-drop", type=float, metavar="D", help="the most that may be lost, see accel.search")
    target.add_argument("--macs", type=float, metavar="M", help="share of the dense MACs to execute; needs no clock")
    common.add_minutes(parser)
    parser.add_argument("--precision", metavar="P", help="of the layers: fp32 (default), bf16 or int8")
    parser.add_argument("--dense", action="append", default=[], metavar="PATTERN", help="leave these layers alone")
    learning.add_pictures(parser)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="folder for rules, trace and plot")
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    import accel
    from accel.cli.search_report import PAGE, page
    from accel.files import write_text
    from accel.greedy.trace import NETWORKS, PLOT, RULES, STEPS

    resolved = models.resolve_dense(args)
    batches = learning.learn_from(args, resolved).batches
    if callable(batches):
        batches = [batches(step) for step in range(min(batches.epochs.steps, max(1, _LABELLED // batches.batch)))]
    first = batches[0]
    found = accel.search(
        resolved.model,
        example_inputs=first[0] if isinstance(first, tuple) else first,
        calibration=batches,
        speedup=args.speedup,
        max_drop=args.max_drop,
        macs=args.macs,
        rules=dict.fromkeys(args.dense) or None,
        folder=args.output,
        **common.search_options(args),
    )
    write_text(args.output / PAGE, page(args.model, _asked(args), found, args.output / PLOT))
    total = found.report.total
    said = [f"{key} {total[key]:.4g}" for key in ("speedup", "drop", "loss") if key in total]
    lines = [
        f"the whole network: {', '.join(said)}",
        f"the best of {len(found.tried)} measured in {total['minutes']:.1f} min: {total['start']}",
    ]
    common.print_report(found.report, args, lines=lines)
    models.standardise_note(args, resolved)
    common.note(
        args, f"{RULES} (for accel convert --rules), {PAGE}, {STEPS}, {NETWORKS} and {PLOT} are in {args.output}/"
    )
    return 0


def _asked(args: argparse.Namespace) -> str:
    if args.speedup is not None:
        return f"a network {args.speedup:g} times as fast as the fastest dense form"
    if args.max_drop is not None:
        return f"the fastest network that loses at most {args.max_drop:g}"
    return f"{args.macs:g} of the dense multiply-accumulates"
