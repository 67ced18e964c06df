"""The positions that matter most to the loss, as `accel.impact` measures it (Figurnov et al., NIPS 2016, 3.3)."""

from __future__ import annotations

from torch import Tensor

from accel.errors import ConfigError
from accel.masks.contract import Mask, Site, highest, register


@register
class Impact(Mask):
    """Measured on the dense network."""

    name = "impact"
    needs_data = True

    def build(self, keep: float, site: Site) -> Tensor:
        impact, size = site.impact, (site.height, site.width)
        if impact is None or tuple(impact.shape) != size:
            got = "none" if impact is None else f"one of {'x'.join(map(str, impact.shape))}"
            raise ConfigError(
                f"mask {self.name!r} on a {size[0]}x{size[1]} map needs an impact map of that size, got {got}: "
                "pass calibration data to convert_model"
            )
        return highest(impact.double(), keep)


@register
class IterativeImpact(Impact):
    """Measured on the network as it is converted so far."""

    name = "iterative_impact"
    iterative = True
