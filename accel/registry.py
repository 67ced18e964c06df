"""Kinds of things that a configuration names: every kind is an object, found by its name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from accel.errors import ConfigError, UnknownNameError

Kind = TypeVar("Kind")


class Registry(Generic[Kind]):
    """The kinds there are.

    Args:
        what: they are, for messages.
        first: the names that lists begin with; others follow as they were added.
    """

    def __init__(self, what: str, first: Sequence[str]) -> None:
        self._what, self._first = what, tuple(first)
        self._known: dict[str, Kind] = {}

    def add(self, kind: type[Kind]) -> type[Kind]:
        """Make a kind known as `kind.name`: a decorator of the class, of which one is made, without arguments.

        Raises:
            ConfigError: the name is no string, or taken, or the class lacks what the kind must have.
        """
        name = getattr(kind, "name", None)
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{kind.__name__} needs a name to be known as a {self._what}, got {name!r}: set name")
        if name in self._known:
            raise ConfigError(f"there is a {self._what} {name!r} already: give {kind.__name__} another name")
        if inspect.isabstract(kind):
            lacking = ", ".join(sorted(kind.__abstractmethods__))
            raise ConfigError(f"{kind.__name__} has no {lacking} of its own, which a {self._what} needs: define it")
        self._known[name] = kind()
        return kind

    def find(self, name: object) -> Kind:
        """The kind of this name. UnknownNameError, which lists those there are: none has it."""
        found = self._known.get(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownNameError(f"unknown {self._what} {name!r}: choose one of {', '.join(self.names)}")
        return found

    @property
    def names(self) -> tuple[str, ...]:
        known = tuple(self._known)
        return (*(n for n in self._first if n in known), *(n for n in known if n not in self._first))

    def __iter__(self) -> Iterator[Kind]:
        return map(self._known.__getitem__, self.names)


def import_files(package: str, path: Iterable[str]) -> None:
    """Import every file of a package, so that what it adds to a registry is known."""
    for name in sorted(found.name for found in pkgutil.iter_modules(path)):
        importlib.import_module(f"{package}.{name}")
