"""Damage to files of every kind, drawn under a seed, and what an error about it has to be: one line."""

from __future__ import annotations

import json

import torch

LARGEST_LINE = 700  # characters
VALUES = [None, -1, 0, 1, 1e308, float("nan"), 10**30, "x", "", [], {}, True, [1, 2, 3], {"kind": "rules"}, [[None]]]


def places(value, path=()):
    """The paths to everything in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def damage_json(data, draw):
    """One value of a nested structure replaced, left out, or put under another name; in place."""
    *path, last = draw.choice(list(places(data)))
    for key in path:
        data = data[key]
    what = draw.randrange(4)
    if what == 0:
        del data[last]
    elif what == 1 and isinstance(data, dict):
        data[f"{last}?"] = data.pop(last)
    else:
        data[last] = draw.choice(VALUES)


def damage_tensors(tensors, draw):
    """One tensor dropped, renamed, or given another dtype, shape or other values; in place."""
    name = draw.choice(sorted(tensors))
    tensor = tensors.pop(name)
    what = draw.randrange(7)
    if what == 1:
        tensors[f"{name}x"] = tensor
    elif what == 2:
        tensors[name] = tensor.to(torch.float16 if tensor.dtype is torch.float32 else torch.float32)
    elif what == 3:
        tensors[name] = tensor.flatten()[: max(1, tensor.numel() // 2)].clone()
    elif what == 4:
        tensors[name] = torch.stack([tensor, tensor])
    elif what > 4:
        value = draw.choice([float("nan"), float("inf"), -1.0, 0.0, 1e30]) if tensor.is_floating_point() else -3
        tensors[name] = torch.full_like(tensor, value)


def damage_bytes(path, draw):
    data = bytearray(path.read_bytes())
    if draw.random() < 0.5:
        data = data[: draw.randrange(len(data))]
    else:
        for _ in range(draw.randrange(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    path.write_bytes(data)


def one_line(error):
    text = str(error)
    assert "\n" not in text.strip() and 0 < len(text) < LARGEST_LINE, text
    return True


def toml(value) -> str:
    """A value as TOML has it; what TOML has no word for, nothing at all, as an empty text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps("" if value is None else value) if isinstance(value, (str, type(None))) else repr(value)


def write_toml(path, tables: dict) -> None:
    path.write_text("".join(f"{json.dumps(name)} = {toml(value)}\n" for name, value in tables.items()))
