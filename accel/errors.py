"""Errors a user can cause: one clear line that names the thing, what was expected, what was got, and the remedy."""

from __future__ import annotations

import contextlib
import pathlib
import traceback
from collections.abc import Iterator


class AccelError(ValueError):
    """Base of the errors below; the command line prints them as one line and exits with 1."""


class ConfigError(AccelError):
    """A configuration or rule that cannot be obeyed."""


class UnknownNameError(ConfigError):
    """A name that nothing bears here; what does may not have been imported."""


class ConversionError(AccelError):
    """A model that cannot be converted as asked."""


class WeightsError(AccelError):
    """A weights file or converted folder that is missing, corrupt, or belongs to something else."""


class DataError(AccelError):
    """Pictures or data that cannot be read."""


@contextlib.contextmanager
def fitting(what: str) -> Iterator[None]:
    """What fails in the block on values of `what` that no check foresaw is a ConfigError, with its place in the code.

    Errors that say themselves what is wrong pass, and those of the system, of memory and of losses that are no numbers.
    """
    try:
        yield
    except (AccelError, OSError, MemoryError, FloatingPointError):
        raise
    except Exception as error:  # values of any kind make torch and Python raise anything
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"{what} does not fit: {explain(error, pathlib.Path(__file__).parents[1])}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Of torch's allocators, only CUDA's has an exception of its own."""
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def explain(error: BaseException, folder: pathlib.Path | None = None) -> str:
    """The error in one line, with its place in the user's files: those in `folder` or below."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if folder and folder in pathlib.Path(frame.filename).parents]
    place = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    lines = str(error).strip().splitlines()
    return f"{place}{type(error).__name__}{f': {lines[0]}' if lines else ''}"
