"""`accel impute`: fill the gaps of a table, say how far to trust it, and show it."""

from __future__ import annotations

import argparse
import pathlib

from accel.cli import common
from accel.errors import ConfigError
from accel.files import output_folder

REPORT_FILE = "report.html"


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "impute",
        run,
        "fill the gaps of a table, several times over, and report how far to trust it",
        "accel impute data.csv -o out/ -m 10\n"
        "  accel impute data.csv -o out/ --kind grade=ordinal:low,mid,high --kind id=pass --missing '?'",
    )
    parser.add_argument("table", type=pathlib.Path, help="CSV, TSV, parquet or feather, by the ending of its name")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "-m", "--imputations", type=common.positive, default=10, metavar="M", help="completed tables (default 10)"
    )
    parser.add_argument(
        "--kind",
        action="append",
        default=[],
        type=column_kind,
        metavar="COLUMN=KIND",
        help="instead of what is found: real, nonnegative, integer, count, boolean, categorical, "
        "ordinal:first,second,... or pass (handed through unlooked at); may be given several times",
    )
    parser.add_argument(
        "--missing", action="append", default=[], metavar="TEXT", help="text that means missing, beside the usual ones"
    )
    parser.add_argument(
        "--epochs", type=common.positive, metavar="N", help="passes over the table (default: 3000 batches)"
    )
    parser.add_argument("--no-check", action="store_true", help="no second fit, which judges the first: half the time")
    common.add_format(parser)


def column_kind(text: str) -> tuple[str, object]:
    """`age=count` or `grade=ordinal:low,mid,high`, for argparse."""
    name, found, kind = text.rpartition("=")
    if not found or not name or not kind:
        raise argparse.ArgumentTypeError(f"{text!r} is no COLUMN=KIND, such as age=count")
    kind, _, classes = kind.partition(":")
    return name, {"kind": kind, "classes": classes.split(",")} if classes else kind


def run(args: argparse.Namespace) -> int:
    try:
        from accel.vae.imputer import Imputer
    except ModuleNotFoundError as error:
        raise ConfigError(f"accel impute needs {error.name}: pip install 'skimconv[impute]'") from error
    from accel.cli.impute_report import write_report
    from accel.cli.tables import Table

    table = Table(args.table, args.missing)
    imputer = Imputer(dict(args.kind), epochs=args.epochs, random_state=args.seed, verbose=not args.quiet)
    with output_folder(args.output, REPORT_FILE) as folder:
        imputer.fit(table.frame)
        imputer.save(folder / "imputer.safetensors")
        table.write(folder / f"completed{table.ending}", imputer.transform(table.frame))
        completed = imputer.impute(table.frame, args.imputations)
        for number, frame in enumerate(completed, 1):
            table.write(folder / f"imputed_{number:02d}{table.ending}", frame)
        found = None if args.no_check else imputer.calibration_report(table.frame, random_state=args.seed)
        if found is not None:
            found.frame().to_csv(folder / "calibration.csv", index=False)
        write_report(folder / REPORT_FILE, args.table.name, table.frame, imputer, completed, found)
    if found is not None:
        common.print_rows(found.rows, args)
    gaps = int(table.frame.isna().to_numpy().sum())
    common.note(args, f"{gaps} gaps, filled {args.imputations} times: open {args.output / REPORT_FILE}")
    return 0
