"""Positions drawn at random (Figurnov et al., "PerforatedCNNs", NIPS 2016, section 3.3)."""

from __future__ import annotations

from torch import Tensor

from accel.masks.contract import Mask, Site, highest, noise, register


@register
class Uniform(Mask):
    """Every set of so many positions is as likely as any other."""

    name = "uniform"

    def build(self, keep: float, site: Site) -> Tensor:
        return highest(noise(site), keep)
