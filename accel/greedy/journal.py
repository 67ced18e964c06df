"""What a search has measured, in one file: with it, an interrupted search goes on where it was.

The search is a function of its measurements. A resumed one takes those it finds here and measures the others.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from accel.errors import ConfigError
from accel.files import write_text

SCHEMA = 1


class Journal:
    """Measurements by name, written to `path` after each; in memory only where `path` is None.

    Raises:
        ConfigError: the file belongs to another search, or is damaged.
    """

    def __init__(self, path: pathlib.Path | None, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = json.loads(json.dumps({"schema": SCHEMA, **identity}))
        self.found: dict[str, Any] = {}
        if path is not None and path.exists():
            self.found = self._read(path)

    def has(self, name: str) -> bool:
        return name in self.found

    def get(self, name: str, measure: Callable[[], Any] = lambda: None) -> Any:
        """The measurement called `name`, plain values; taken by `measure` where there is none yet."""
        if name not in self.found:
            self.found[name] = json.loads(json.dumps(measure()))  # what a resumed search will read
            if self.path is not None:
                write_text(self.path, json.dumps({"identity": self.identity, "found": self.found}, indent=1))
        return self.found[name]

    def _read(self, path: pathlib.Path) -> dict[str, Any]:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            identity, found = data["identity"], dict(data["found"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no journal of a search ({error!r}): delete it to search anew") from error
        changed = [key for key in self.identity if identity.get(key) != self.identity[key]]
        if changed:
            raise ConfigError(
                f"{path} belongs to another search ({', '.join(changed)} differ): delete it, or give another folder"
            )
        return found


def fingerprint(model: nn.Module, *tensors: Tensor) -> str:
    """A hash of the model's parameters and buffers, and of the tensors."""
    digest = hashlib.sha256()
    for name, value in (*model.state_dict().items(), *enumerate(tensors)):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
