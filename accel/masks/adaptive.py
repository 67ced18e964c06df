"""A lattice, and in each image the positions whose input deviates most from its local mean; ours."""

from __future__ import annotations

from torch import Tensor, nn

from accel.errors import ConfigError
from accel.fills.contract import Fill
from accel.kernels.local_deviation import local_deviation
from accel.masks.contract import Mask, Site, register
from accel.masks.lattice import lattice

ADAPTIVE_BASE = 1 / 4  # the lattice under an adaptive mask; the rest of keep is chosen from each input


@register
class Adaptive(Mask):
    """`build` gives the staggered quarter lattice, from which the rest is filled in."""

    name = "adaptive"

    def check(self, keep: float, fill: Fill) -> None:
        if keep <= ADAPTIVE_BASE:
            raise ConfigError(f"mask 'adaptive' keeps a quarter lattice and more: keep must exceed 1/4, got {keep!r}")
        if not fill.from_rows:
            raise ConfigError("mask 'adaptive' fills in from its lattice: take interpolate 'nearest' or 'fitted'")

    def lacks(self, layer: nn.Conv2d) -> str | None:
        return None if layer.padding_mode == "zeros" else f"zero padding, got {layer.padding_mode!r}"

    def build(self, keep: float, site: Site) -> Tensor:
        return lattice(ADAPTIVE_BASE, site)

    def score(self, x: Tensor) -> Tensor:
        return local_deviation(x)
