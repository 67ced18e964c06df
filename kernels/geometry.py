"""The geometry of a call of a convolution: it travels whole through every backend, and is flat in the ops' schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Pair = tuple[int, int]

FIELDS = "SymInt[] in_size, SymInt[] out_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"


class CallGeometry(NamedTuple):
    """Attributes: in_size, (N, H, W) of the input map; out_size, (H, W) of the output; stride and dilation, (vertical,
    horizontal); padding, (top, bottom, left, right); groups; padding_mode, zeros, reflect, replicate or circular."""

    in_size: tuple[int, int, int]
    out_size: Pair
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    groups: int
    padding_mode: str = "zeros"

    @staticmethod
    def of(fields: Sequence) -> CallGeometry:
        """From the fields as an op gets them, lists among them."""
        return CallGeometry(*(tuple(field) if isinstance(field, list) else field for field in fields))

    @property
    def taps(self) -> tuple[Pair, tuple[int, int, int, int], Pair, str]:
        """(stride, padding, dilation, padding_mode): what decides, with the kernel's size, which pixels are read."""
        return self.stride, self.padding, self.dilation, self.padding_mode
