"""The value of the nearest computed position (Figurnov et al., NIPS 2016, section 3.1)."""

from __future__ import annotations

from accel.fills.contract import Fill, register


@register
class Nearest(Fill):
    """By the position set's nearest map."""

    name = "nearest"
