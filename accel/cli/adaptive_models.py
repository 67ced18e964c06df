"""MODEL of `accel eval` and `accel ponder`: what the other verbs take, and adaptive networks by their weights alone.

The weights that `accel train` writes tell by their names whether they are those of an ACT or a SACT network.
"""

from __future__ import annotations

import pathlib

from accel.cli.models import Resolved, resolve


def resolve_any(spec: str, weights: str | None) -> Resolved:
    """Build the model; weights with halting heads make it adaptive.

    Raises:
        AccelError: unknown name, missing or foreign weights.
    """
    named = spec.startswith(("torchvision:", "zoo:"))
    if not named or weights is None or not pathlib.Path(weights).is_file():
        return resolve(spec, weights)
    from accel.cli.training import build
    from accel.zoo.weights_io import read_tensors

    keys = read_tensors(weights).keys()
    if not any(".halting." in key for key in keys):
        return resolve(spec, weights)
    kind = "sact" if any(key.endswith(".halting.pooled.weight") for key in keys) else "act"
    moved = {"target": 1.0} if any(key.endswith(".tau") for key in keys) else {}  # a target keeps its tau as a buffer
    return Resolved(build(spec, weights, {"kind": kind, **moved}).eval(), spec, converted=True)
