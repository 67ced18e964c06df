"""file.py:function on the command line: runs a file of the user's, and says in one line what goes wrong in it."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from accel.errors import AccelError, ConversionError, explain

if TYPE_CHECKING:
    from torch import nn


def is_user_model(spec: str) -> bool:
    path, colon, _ = spec.rpartition(":")
    return bool(colon) and path.endswith(".py")


def build(spec: str) -> nn.Module:
    """The model that `file.py:name` gives: a function or a class to call, or a model that is there already.

    Raises:
        AccelError: no such file or name, an error of the user's own, with its place, or something that is no model.
    """
    from torch import nn

    file, _, name = spec.rpartition(":")
    path = pathlib.Path(file).absolute()
    if not path.is_file():
        raise AccelError(f"no file {file}: give file.py:function with a function that returns an nn.Module")
    try:
        found = getattr(_run(path), name, None)
        model = found() if callable(found) and not isinstance(found, nn.Module) else found
    except (Exception, SystemExit) as error:
        raise AccelError(f"{spec} failed: {explain(error, path.parent)}") from error
    if found is None:
        raise AccelError(f"{file} defines no function {name!r}")
    if not isinstance(model, nn.Module):
        raise ConversionError(f"{name} of {file} returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def _run(path: pathlib.Path) -> ModuleType:
    """Execute the file as a module, which may import its neighbours, and by `from .x` those of its package."""
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    sys.path.insert(0, str(folder))  # stays: functions may import as they run
    name = ".".join(parts) if len(parts) > 1 else f"accel_user_{path.stem}"
    if len(parts) > 1:
        importlib.import_module(".".join(parts[:-1]))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    spec.loader.exec_module(module)
    return module
