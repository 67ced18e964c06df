"""What the verbs share: options, progress bars and tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from accel.reports.tables import FORMATS, rows_as

if TYPE_CHECKING:
    from accel.reports.tables import Report

_Item = TypeVar("_Item")


def add_verb(
    sub: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
) -> argparse.ArgumentParser:
    """Add the parser of one verb with the options every verb has; `example` ends its --help."""
    parser = sub.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything drawn (default 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no notes")
    return parser


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print tables (default: table)")


def add_minutes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--minutes", type=float, default=10.0, metavar="M", help="time that the search may take (default 10)"
    )


def search_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `accel.search` draws by, how long it may take, in which precision and how it shows that, of a verb with
    --minutes and --precision."""
    return {
        "seed": args.seed,
        "minutes": args.minutes,
        **({} if args.precision is None else {"precision": args.precision}),
        "track": lambda items, what: progress(args, items, what, total=len(items)),
    }


def image_size(text: str) -> tuple[int, int]:
    """`240x320` (height x width) or `224` (square), for argparse."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
        height, width = sides * 2 if len(sides) == 1 else sides
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no image size: give HEIGHTxWIDTH, such as 240x320, or one side")
    return height, width


def numbers(text: str) -> tuple[float, ...]:
    """`0.5` or `0.485,0.456,0.406`, for argparse."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor several with commas between them") from None


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def note(args: argparse.Namespace, message: str) -> None:
    """Say something on stderr that is not the result, unless --quiet."""
    if not args.quiet:
        print(message, file=sys.stderr, flush=True)


def progress(args: argparse.Namespace, items: Iterable[_Item], what: str, total: int | None = None) -> Iterable[_Item]:
    """`items` with a progress bar on stderr; silent with --quiet and where stderr is no terminal."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    silent = args.quiet or not console.is_terminal
    return rich.progress.track(items, what, total=total, console=console, transient=True, disable=silent)


def print_rows(rows: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> None:
    """Print rows in the format of --format."""
    print(rows_as(args.format, rows), end="")


def print_report(
    report: Report, args: argparse.Namespace, summary: Mapping[str, Any] | None = None, lines: Sequence[str] = ()
) -> None:
    """Print a report as --format says, with what holds for the whole: `summary` in json, `lines` under a table."""
    if args.format == "json":
        print(json.dumps({**json.loads(report.to_json()), **({"summary": summary} if summary else {})}, indent=2))
    elif args.format == "csv":
        print(report.to_csv(), end="")
    elif args.format == "md":
        print(report.to_markdown(), *(f"- {line}" for line in lines), sep="\n")
    else:
        print(report, *lines, sep="\n")
