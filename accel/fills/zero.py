"""Nothing."""

from __future__ import annotations

from torch import Tensor

from accel.fills.contract import Fill, register
from accel.kernels.positions import PositionSet


@register
class Zero(Fill):
    """Zeros, which norms and activations behind the layer see as such."""

    name = "zero"

    def background(self, rows: Tensor, positions: PositionSet) -> Tensor:
        return rows.new_zeros(len(rows), 1, rows.shape[2])
