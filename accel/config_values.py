"""What configurations of every kind have in common: their version, precisions, and checks of single values."""

from __future__ import annotations

from collections.abc import Iterable

from accel.errors import ConfigError

VERSION = 1
PRECISIONS = FP32, BF16, INT8 = "fp32", "bf16", "int8"  # the first is the default


def check_precision(precision: object, known: Iterable[str] = PRECISIONS) -> None:
    """ConfigError unless it is one of those known."""
    if precision not in known:
        raise ConfigError(f"unknown precision {precision!r}: choose one of {', '.join(known)}")


def check_integer(name: str, value: object, least: int | None = None) -> None:
    """ConfigError unless it is an integer, of at least `least`."""
    fits = type(value) is int and (least is None or value >= least)
    if not fits:
        wanted = "an integer" if least is None else f"an integer of at least {least}"
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")
