"""`accel bench`: runs the cases of a TOML file, or a study; what they are is in `accel.bench`."""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys

from accel.bench.compare import compare
from accel.bench.runner import STUDIES, Settings, judge, load_kind, measure, read_cases
from accel.cli import common
from accel.files import write_figure


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "bench",
        run,
        "run benchmark cases: correctness first, sides interleaved",
        "accel bench profiles/cases/vgg16_layers.toml --output rows.jsonl\n"
        "  accel bench profiles/cases/foreign.toml --output rows.jsonl --resume\n"
        "  accel bench mc --output figures/\n"
        "  accel bench --compare before.jsonl rows.jsonl",
    )
    cases = parser.add_mutually_exclusive_group(required=True)
    cases.add_argument(
        "cases", nargs="?", metavar="CASES", help=f"a TOML file of cases, or a study: {', '.join(STUDIES)}"
    )
    cases.add_argument(
        "--static",
        action="store_true",
        help="the study of what compilers make of the Triton kernels for four GPUs; needs none",
    )
    cases.add_argument(
        "--compare",
        nargs=2,
        type=pathlib.Path,
        metavar=("OLD", "NEW"),
        help="two files of rows, of the same cases on the same machine: faster, slower, or inside the noise",
    )
    parser.add_argument("--only", metavar="NAME", help="run the case of this name only")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument(
        "--against", type=pathlib.Path, metavar="DIR", help="study speed: the other checkout of this project, built"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="PATH", help="append the rows here (a study: its folder)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="measure only what --output holds no right row of; the others go"
    )
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    if args.compare:
        common.print_rows(compare(*args.compare), args)
        return 0
    study = "static" if args.static else args.cases
    if args.static or study in STUDIES:
        out_dir = args.output or pathlib.Path(f"bench-{study}")
        against = {"against": args.against} if study == "speed" else {}
        rows = load_kind(study).run(out_dir, args.seed, args.quick, **against)
        print(f"{len(rows)} rows with their tables and figures are in {out_dir}/")
        return 0
    file = read_cases(pathlib.Path(args.cases), args.only)
    watch = functools.partial(common.progress, args, what="measuring")
    settings, kind = Settings(args.seed, args.quick), load_kind(file["kind"])
    rows = measure(file, settings, output=args.output, resume=args.resume, watch=watch)
    if args.output and hasattr(kind, "draw"):
        saved = [json.loads(line) for line in args.output.read_text(encoding="utf-8").splitlines()]
        write_figure(args.output.with_suffix(".png"), kind.draw(saved))
    shown = getattr(kind, "SHOWN", None) if args.format == "table" else None
    common.print_rows([{key: row[key] for key in shown or row if key in row} for row in rows], args)
    if hasattr(kind, "summary") and args.format == "table":
        common.print_rows(kind.summary(rows), args)
    for bar in file.get("bar", []):
        common.note(args, judge(bar, rows))
    wrong = [row for row in rows if not row["correct"]]
    for row in wrong:
        why = row.get("reason") or f"error {row['error']:.3g}, nothing was timed"
        what = "wrong result in" if row.get("done", True) else f"not done: {row['op']} of"
        print(f"accel: {what} {row['case']}: {why}", file=sys.stderr)
    return 1 if wrong else 0
