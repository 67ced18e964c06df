"""`accel export`: a model, converted or not, as an ONNX file of standard operators or as torch's compiled package."""

from __future__ import annotations

import argparse
import pathlib

from accel.cli import common, conversion, models


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "export",
        run,
        "write a model, converted or not, as ONNX of standard operators, proved in ONNX Runtime, or compiled by torch",
        "accel export out/model -o fast.onnx --size 240x320\n  accel export out/model -o fast.pt2 --size 240x320",
    )
    models.add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=pathlib.Path,
        required=True,
        metavar="FILE",
        help="file to write; one whose name ends in .pt2 holds machine code for CPUs like this one (AOTInductor)",
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="for any number of pictures, not only --batch")
    conversion.add_example(parser)


def run(args: argparse.Namespace) -> int:
    import accel

    resolved = models.resolve_args(args)
    x, _ = conversion.example(args, resolved, None)
    write, reader = accel.export_onnx, "ONNX Runtime"
    if args.output.suffix == ".pt2":
        write, reader = accel.export_package, "the package"
    done = write(resolved.model, args.output, x, dynamic_batch=args.dynamic_batch)
    shape = "x".join(map(str, x.shape)) if not args.dynamic_batch else "x".join(["N", *map(str, x.shape[1:])])
    print(f"{done.path} reads {shape}; {reader}'s outputs differ from the model's by {done.difference:.2g}")
    if done.sparse:
        print(f"{len(done.sparse)} perforated layers compute their positions alone there")
    for name, reason in done.dense.items():
        print(f"{name} is computed at every position there: {reason}")
    return 0
