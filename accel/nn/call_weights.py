"""What is made of the tensors that an op is called with, kept for its next call with the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from accel.fills import Fit
from accel.kernels.caches import IdentityCache
from accel.nn.folding import Folded, fold, written
from accel.nn.quantized import KeptIntegers, Quantization

_kept = IdentityCache()


class CallWeights:
    """Attributes: fit, quantization, of a layer that has them; integers, what it computed with last.

    The tensors of the call live on without it: it holds none of them.
    """

    def __init__(self, fit: Fit | None, quantization: Quantization | None) -> None:
        self.fit, self.quantization = fit, quantization
        self.integers = KeptIntegers()
        self._last: tuple[tuple, Folded] | None = None  # replaced as a whole: threads share it

    def folded(self, layer: nn.Conv2d | nn.Linear, fit: Fit | None = None) -> Folded:
        """`fold(layer, None, fit)`, made anew when weight or bias were written to."""
        tensors = layer.weight, layer.bias
        if any(tensor is not None and tensor.is_inference() for tensor in tensors):
            return fold(layer, None, fit)  # nobody counts the writes to these
        now, last = (fit, *map(written, tensors)), self._last
        if last is None or last[0] != now:
            with torch.inference_mode(False):
                last = now, fold(layer, None, fit)
            self._last = last
        return last[1]


def call_weights(
    weight: Tensor, bias: Tensor | None, fit: Sequence[Tensor], quantization: Sequence[Tensor]
) -> CallWeights:
    """Those of a call with these tensors."""

    def make(tensors: tuple) -> CallWeights:
        found, of_bytes = tensors[2 : 2 + len(fit)], tensors[2 + len(fit) :]
        return CallWeights(Fit(*found) if found else None, Quantization.from_flat(of_bytes) if of_bytes else None)

    return _kept.get((weight, bias, *fit, *quantization), len(fit), make)
