"""The `accel` command: finds the verb, runs it, and turns errors a user can cause into one line.

Exit codes: 0 done, 1 failure, 2 bad usage, 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

import accel
from accel.errors import AccelError, is_out_of_memory

# Each verb module defines add_parser(sub) and run(args) -> int and imports torch only inside run, so --help is quick.
VERB_MODULES = (
    "accel.cli.demo",
    "accel.cli.env",
    "accel.cli.listing",
    "accel.cli.plan",
    "accel.cli.profile",
    "accel.cli.convert",
    "accel.cli.search",
    "accel.cli.export",
    "accel.cli.finetune",
    "accel.cli.bench",
    "accel.cli.train",
    "accel.cli.eval",
    "accel.cli.ponder",
    "accel.cli.impute",
    "accel.cli.inpaint",
)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, without the place in the code."""
    print(f"accel: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints take one line instead of the usage block."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ('{self.prog} --help' shows the usage)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="accel", description="Convolutional networks that compute only where it matters.")
    parser.add_argument("--version", action="version", version=f"skimconv {accel.__version__}")
    sub = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in VERB_MODULES:
        importlib.import_module(name).add_parser(sub)
    return parser


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Within the block an interrupt comes again, a moment later, where Python had to drop it: what `__del__` and the
    callbacks of weakref raise goes nowhere."""
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; `argv` defaults to the command line."""
    try:
        with _interruptible():
            return _run(argv)
    except KeyboardInterrupt:
        print("accel: interrupted", file=sys.stderr)
        return 130


def _run(argv: Sequence[str] | None) -> int:
    """The exit code of a verb; its errors of the user's doing are said in one line."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse leaves this way after --help (0) and bad usage (2)
        return int(stop.code or 0)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return args.run(args)
    except BrokenPipeError:  # the reader of our output went away (`accel list | head`): nothing to say, nobody to hear
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (AccelError, OSError, FloatingPointError) as error:  # the last: a loss that is not finite
        print(f"accel: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise  # not the user's doing: its place in the code is wanted
        print("accel: out of memory: give a smaller --batch or --size", file=sys.stderr)
        return 1
