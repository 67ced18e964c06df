"""What the verbs share: options, progress bars, tables, and output that is there whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from accel.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from accel.report import Report

FORMATS = ("table", "json", "csv", "md")
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


@contextlib.contextmanager
def output_folder(target: pathlib.Path, marker: str) -> Iterator[pathlib.Path]:
    """A folder to write into that becomes `target` by one rename when the block ends well, and vanishes when it fails.

    An older `target` is replaced only if it is empty or holds the file `marker`, that is, if this command wrote it.

    Raises:
        DataError: `target` cannot be written, or holds somebody else's files.
    """
    target = pathlib.Path(os.path.abspath(target))
    if target.is_dir() and any(target.iterdir()) and not (target / marker).is_file():
        raise DataError(f"{target} holds files that this command did not write: choose another folder, or empty it")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(20, "a file of that name exists")
        partial.mkdir()
    except OSError as error:
        raise DataError(f"cannot write the folder {target} ({error.strerror}): choose another with -o") from error
    try:
        yield partial
        old = partial.with_suffix(".old")
        if target.is_dir():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file under a temporary name, then move it into place.

    Raises:
        DataError: the place cannot be written.
    """
    _write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_figure(path: pathlib.Path, figure: Figure, dpi: int = 80) -> None:
    """The same for a picture: PNG.

    Raises:
        DataError: the place cannot be written.
    """
    _write(path, lambda partial: figure.savefig(partial, format="png", dpi=dpi))


def _write(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise DataError(f"cannot write {path} ({error.strerror}): choose another place") from error


def read_toml(path: pathlib.Path) -> dict:
    """A TOML file as a dict.

    Raises:
        ConfigError: the file cannot be read, or is no TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error


def parse_toml(text: str, source: str) -> dict:
    """TOML as a dict; `source` is what an error calls it.

    Raises:
        ConfigError: it is no TOML.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is no TOML: {error}") from error


def print_rows(rows: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> None:
    """Print rows in the format of --format; their columns are the union of the keys, in order of appearance.

    Values that are dicts have no place in a table: only json shows them.
    """
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict)))
    if args.format == "json":
        print(json.dumps(list(rows), indent=2))
        return
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    if args.format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([columns, *cells])
    elif args.format == "md":
        print("\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells]))
    else:
        widths = [max(map(len, column)) for column in zip(columns, *cells)]
        for line in [columns, ["-" * width for width in widths], *cells]:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


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


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
