"""Structs that Python and C share: their layout, what Python packs into them, and how C declares them."""

from __future__ import annotations

import struct
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

LETTERS = {"int64_t": "q", "int32_t": "i", "double": "d"}  # of the struct module; an address is an int64_t


class Record:
    """A C struct. Its fields, of 8 bytes or, in tables of indices, of 4, lie in the order of the list.

    Args:
        text: what the fields mean, a comment in the header.
        groups: (C type, names), in order.

    Attributes:
        fields: C type of each, by name.
    """

    def __init__(self, name: str, text: str, *groups: tuple[str, str]) -> None:
        self.name, self.text, self.groups = name, text, groups
        self.fields = {field: kind for kind, fields in groups for field in fields.split()}
        self._format = "=Q" + "".join(map(_letter, self.fields.values()))

    @property
    def layout(self) -> tuple[tuple[str, str, int], ...]:
        """(name, C type, bytes from the start of the struct) of every field."""
        at, rows = 0, []
        for name, kind in self.fields.items():
            rows.append((name, kind, at))
            at += struct.calcsize(_letter(kind))
        return tuple(rows)

    @property
    def size(self) -> int:
        """In bytes."""
        return struct.calcsize("=" + self._format[2:])

    def pack(self, **given: float) -> bytes:
        """What some calls have in common: 64 bits that say which fields are given, then the struct."""
        self._refuse_unknown(given)
        mask = sum(1 << index for index, name in enumerate(self.fields) if name in given)
        return struct.pack(self._format, mask, *(given.get(name, 0) for name in self.fields))

    def row(self, packed: bytes | None = None, /, **given: float) -> list[float]:
        """All fields in order, for a table of structs: those that `pack` was given, and the rest."""
        if packed is not None:
            mask, *values = struct.unpack(self._format, packed)
            given |= {name: values[i] for i, name in enumerate(self.fields) if mask >> i & 1}
        self._refuse_unknown(given)
        self._refuse_missing(given)
        return [given[name] for name in self.fields]

    def struct(self, packed: bytes | None = None, /, **given: float) -> bytes:
        """The struct, all fields of it given."""
        return struct.pack("=" + self._format[2:], *self.row(packed, **given))

    def table(self, **columns: Tensor) -> Tensor:
        """int32 [n, fields]: n structs, from a column [n] for each field."""
        self._refuse_unknown(columns)
        self._refuse_missing(columns)
        return torch.stack([columns[name] for name in self.fields], 1).to(torch.int32).contiguous()

    def _refuse_unknown(self, given: Mapping[str, object]) -> None:
        for name in given:
            if name not in self.fields:
                raise TypeError(f"{self.name} has no field {name!r}, only {', '.join(self.fields)}")

    def _refuse_missing(self, given: Mapping[str, object]) -> None:
        missing = [name for name in self.fields if name not in given]
        if missing:
            raise TypeError(f"{self.name} misses {', '.join(missing)}")

    def declaration(self) -> str:
        """The struct and the table of its fields, in C."""
        members = []
        for kind, names in self.groups:
            base, star = kind.rstrip(" *"), "*" if kind.endswith("*") else ""
            members += _lines(f"{base} {', '.join(star + name for name in names.split())};", hanging=4)
        return "\n".join(
            [
                comment(self.text),
                "typedef struct {",
                *members,
                f"}} {self.name};",
                macro(
                    f"{self.name}_FIELDS(F)", (f'F({self.name}, "{kind}", {at})' for at, kind in self.fields.items())
                ),
            ]
        )


def comment(text: str) -> str:
    return "/* " + "\n".join(textwrap.wrap(text, 114, subsequent_indent=" * ", break_on_hyphens=False)) + " */"


def enumeration(constants: Mapping[str, int]) -> str:
    values = ", ".join(f"{name} = {value}" for name, value in constants.items())
    return "\n".join(["enum {", *_lines(values), "};"])


def macro(name: str, entries: Iterable[str]) -> str:
    whole = " ".join(entry.replace(" ", "\0") for entry in entries)  # a line ends between entries only
    return " \\\n".join([f"#define {name}", *_lines(whole)]).replace("\0", " ")


def _lines(text: str, hanging: int = 0) -> Sequence[str]:
    return textwrap.wrap(
        text, 116, initial_indent=" " * 4, subsequent_indent=" " * (4 + hanging), break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def _letter(kind: str) -> str:
    return "q" if kind.endswith("*") else LETTERS[kind]
