"""What a training run leaves to read while it goes on: a CSV file, a line or a progress bar, TensorBoard events."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping

from accel.cli.common import note
from accel.errors import ConfigError
from accel.files import write_text

_SHOW_EVERY = 20  # steps between lines where there is no terminal


@contextlib.contextmanager
def training_log(
    folder: pathlib.Path, steps: int, measured: Mapping[str, float], args: argparse.Namespace
) -> Iterator[Callable[[int, float], None]]:
    """A log function for `fit`: one row per step in folder/loss.csv, TensorBoard scalars with --tensorboard.

    Rows that an interrupted run wrote after its last checkpoint are replaced as the resumed run comes to their steps.

    Args:
        steps: of the whole run, for the progress bar.
        measured: what each step measured besides the loss; read after the step.

    Raises:
        ConfigError: --tensorboard without the package.
    """
    with _shown(steps, args) as show, contextlib.ExitStack() as stack:
        make_writer = _scalar_writer(folder / "tensorboard", stack) if args.tensorboard else None
        sinks: list[Callable[[int, dict[str, float]], None]] = []

        def log(step: int, loss: float) -> None:
            if not sinks:  # the first step is known only now
                sinks.append(_csv_writer(folder / "loss.csv", step, stack))
                sinks.extend([make_writer(step)] if make_writer else [])
            values = {"loss": loss, **measured}
            for sink in sinks:
                sink(step + 1, values)
            show(step + 1, values)

        yield log


def _csv_writer(path: pathlib.Path, first: int, stack: contextlib.ExitStack) -> Callable:
    """Appends rows to the CSV file, of which it keeps the header and the rows of the first `first` steps."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if first and path.exists() else []
    kept = [
        line for k, line in enumerate(lines) if k == 0 or (line.endswith("\n") and int(line.split(",")[0]) <= first)
    ]
    write_text(path, "".join(kept))
    file = stack.enter_context(path.open("a", encoding="utf-8"))
    started = bool(kept)

    def write(done: int, values: Mapping[str, float]) -> None:
        nonlocal started
        if not started:
            print("step", *values, sep=",", file=file)
            started = True
        print(done, *(f"{value:.7g}" for value in values.values()), sep=",", file=file, flush=True)

    return write


def _scalar_writer(folder: pathlib.Path, stack: contextlib.ExitStack) -> Callable[[int], Callable]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard needs the package tensorboard ({error}): pip install 'skimconv[train]'"
        ) from error

    def start(first: int) -> Callable:
        writer = stack.enter_context(SummaryWriter(str(folder), purge_step=first + 1))

        def write(done: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(f"train/{name}", value, done)

        return write

    return start


@contextlib.contextmanager
def _shown(steps: int, args: argparse.Namespace) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A progress bar on a terminal, a line every few steps elsewhere, nothing with --quiet."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    if args.quiet or not console.is_terminal:

        def line(done: int, values: Mapping[str, float]) -> None:
            if done % _SHOW_EVERY == 0:
                note(args, f"step {done}/{steps}  {_summary(values)}")

        yield line
        return
    columns = (rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn())
    text = rich.progress.TextColumn("{task.description}")
    with rich.progress.Progress(*columns, text, console=console, transient=True) as bar:
        task = bar.add_task("", total=steps)
        yield lambda done, values: bar.update(task, completed=done, description=_summary(values))


def _summary(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
