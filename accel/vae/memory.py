"""Tables larger than memory, said before they are tried."""

from __future__ import annotations

import pathlib

from accel.errors import DataError

_MEMORY_FILE = pathlib.Path("/proc/meminfo")


def available_bytes() -> int | None:
    """What the machine can still give; None where it does not say (only Linux does)."""
    if not _MEMORY_FILE.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMORY_FILE.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def need_memory(wanted: int, what: str) -> None:
    """DataError where `what` needs `wanted` bytes and the machine has fewer."""
    available = available_bytes()
    if available is not None and wanted > available:
        raise DataError(
            f"{what} need about {wanted / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free: take fewer rows at a time"
        )
