"""Masks: which output positions of a layer are computed, and the exact nearest computed position of every other.

Figurnov et al., "PerforatedCNNs", NIPS 2016, sections 3.1 (interpolation) and 3.3 (masks); the lattices are ours.
Every mask is a function of the keep fraction, the map size and a seeded generator, and keeps at least one position.
`accel.masks.contract` says what a mask is; `MASKS` and `IMPACT_MASKS` name those there are.
"""

from __future__ import annotations

from accel.masks.adaptive import ADAPTIVE_BASE
from accel.masks.contract import (
    Mask,
    Pooling,
    Site,
    build_mask,
    find,
    highest,
    impact_names,
    layer_generator,
    names,
    noise,
    register,
)
from accel.masks.lattice import LATTICE_KEEPS, lattice_keep
from accel.masks.nearest import nearest_map
from accel.masks.pooling import pooling_coverage
from accel.registry import import_files

__all__ = [
    "ADAPTIVE_BASE",
    "LATTICE_KEEPS",
    "Mask",
    "Pooling",
    "Site",
    "build_mask",
    "find",
    "highest",
    "lattice_keep",
    "layer_generator",
    "names",
    "nearest_map",
    "noise",
    "pooling_coverage",
    "register",
]

import_files(__name__, __path__)


def __getattr__(name: str) -> tuple[str, ...]:
    """MASKS and IMPACT_MASKS, which grow."""
    if name == "MASKS":
        return names()
    if name == "IMPACT_MASKS":
        return impact_names()
    raise AttributeError(f"module 'accel.masks' has no attribute {name!r}")
