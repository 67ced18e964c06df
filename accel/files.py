"""Files and folders that are there whole or not at all, and TOML as a dict."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


@contextlib.contextmanager
def replacing(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new file to write, which takes the place of `target` when the block ends well and vanishes when it fails.

    Folders that are missing on the way to it are made.

    Raises:
        OSError: the place cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    try:
        partial.touch()
        mode = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        partial.chmod(mode)  # safetensors writes a file that is closed to everybody else
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


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
    partial = _beside(target)
    old = partial.with_suffix(".old")
    try:
        _make_folder(partial, target)
        yield partial
        if target.is_dir():
            target.rename(old)
        partial.rename(target)
    finally:
        if old.is_dir() and not target.exists():  # interrupted between the two
            old.rename(target)
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)


def _make_folder(partial: pathlib.Path, target: pathlib.Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(20, "a file of that name exists")
        partial.mkdir()
    except OSError as error:
        raise DataError(f"cannot write the folder {target} ({error.strerror}): choose another with -o") from error


def _beside(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.partial")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write text in UTF-8.

    Raises:
        DataError: the place cannot be written.
    """
    with _told(path), replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one line of JSON a row.

    Raises:
        DataError: the place cannot be written.
    """
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_figure(path: pathlib.Path, figure: Figure, dpi: int = 80) -> None:
    """Write a PNG.

    Raises:
        DataError: the place cannot be written.
    """
    with _told(path), replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi)


def write_tensors(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors.

    Raises:
        OSError, SafetensorError: the place cannot be written.
    """
    from safetensors.torch import save_file

    with replacing(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
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
