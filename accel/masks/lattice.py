"""Regular patterns, ours: the same everywhere, so that what a fit finds at one size serves at any other."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.errors import ConfigError
from accel.fills.contract import Fill
from accel.masks.contract import Mask, Site, register

LATTICE_KEEPS = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)
_PERIOD = 12  # of all lattices, along both axes
_TOLERANCE = 0.01  # so that 0.33 and 0.67 name the thirds


@register
class Lattice(Mask):
    """A quarter, a third, half, two thirds, three quarters or all of the positions."""

    name = "lattice"
    shifts = True

    def check(self, keep: float, fill: Fill) -> None:
        lattice_keep(keep)

    def build(self, keep: float, site: Site) -> Tensor:
        return lattice(lattice_keep(keep), site)


def closest_keep(keep: float) -> float:
    """The lattice fraction that lies closest to `keep`."""
    return min((*LATTICE_KEEPS, 1.0), key=lambda fraction: abs(fraction - keep))


def lattice_keep(keep: float) -> float:
    """The lattice fraction that `keep` names; ConfigError where it names none."""
    closest = closest_keep(keep)
    if abs(closest - keep) > _TOLERANCE:
        raise ConfigError(
            f"mask 'lattice' keeps 1/4, 1/3, 1/2, 2/3 or 3/4 of the positions, got keep={keep:g}: "
            f"choose one of these, or mask='grid' or 'uniform'"
        )
    return closest


def lattice(fraction: float, site: Site) -> Tensor:
    """A regular pattern through position (shift, 0), or (shift % height, 0) on lower maps. Every skipped position has a
    computed one at distance 1 or sqrt 2, but for some on the borders."""
    rows, columns = torch.arange(site.height, device="cpu"), torch.arange(site.width, device="cpu")
    y = ((rows - site.shift % site.height) % _PERIOD).to(torch.int16)[:, None]
    x = (columns % _PERIOD).to(torch.int16)
    if fraction == 1:
        kept = torch.ones(site.height, site.width, dtype=torch.bool, device="cpu")
    elif fraction == 1 / 2:
        kept = (y + x) % 2 == 0  # the checkerboard
    elif fraction == 1 / 3:
        kept = (y + x) % 3 == 0
    elif fraction == 2 / 3:
        kept = (y + x) % 3 != 2
    elif fraction == 1 / 4:
        kept = _quarter(y, x)
    else:
        kept = ~_quarter(y + 1, x)
    return kept.flatten().nonzero().flatten().to(torch.int32)


def _quarter(y: Tensor, x: Tensor) -> Tensor:
    """Every second column of every second row, shifted by one column in every other of these rows."""
    return (y % 2 == 0) & (x % 2 == (y // 2) % 2)
