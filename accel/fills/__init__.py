"""Fills: what stands at the positions that are not computed.

`accel.fills.contract` says what a fill is; `FILLS` names those there are.
"""

from __future__ import annotations

from accel.fills.contract import Fill, find, laid_over, names, register
from accel.fills.fitted import CORRECTIONS
from accel.fills.sums import Fit, nearest_fit
from accel.registry import import_files

__all__ = ["CORRECTIONS", "Fill", "Fit", "find", "laid_over", "names", "nearest_fit", "register"]

import_files(__name__, __path__)


def __getattr__(name: str) -> tuple[str, ...]:
    """FILLS, which grow."""
    if name == "FILLS":
        return names()
    raise AttributeError(f"module 'accel.fills' has no attribute {name!r}")
