"""What this machine reaches at the most, measured: products of matrices by precision, and copies of memory.

The two lines of a roofline (Williams, Waterman and Patterson, CACM 2009): of an operation that multiplies `intensity`
times for every byte that it moves, no more than min(peak, intensity * bandwidth) can be asked.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import torch

_SIDE = 1024  # of the matrices: 1 ms of a core with AVX-512, and they fit into its caches
_COPIED = 64 << 20  # bytes: more than a core's share of the last cache
_RUNS = 9  # or as many as a second has: a half has no fast product on some machines

PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Attributes: gops, operations a nanosecond by precision, a multiply-accumulate being two; gbps, bytes a nanosecond
    that a copy reads and writes."""

    gops: Mapping[str, float]
    gbps: float

    def limit(self, precision: str, intensity: float) -> float:
        """GOP/s that an operation of so many operations a byte can reach."""
        return min(self.gops[precision], intensity * self.gbps)


def measured_peaks(dtype: torch.dtype = torch.float32) -> Peaks:
    """Of the CPU, on torch's threads: fp32, and `dtype` if that is another, by torch's product of matrices, the others
    by this package's engine; the fastest of some runs, so that other work on the machine does not lower a ceiling."""
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cpu").random_()
    copy = torch.empty_like(source)
    gops = {PRECISIONS[kind]: _gops(_product(kind)) for kind in dict.fromkeys((torch.float32, dtype))}
    gops["int8"] = _gops(_product_of_bytes())
    if "bf16" not in gops:
        gops["bf16"] = _gops(_product_in_bf16())
    return Peaks(gops, 2 * _COPIED / _fastest_ns(lambda: copy.copy_(source)))


def _product(dtype: torch.dtype) -> Callable[[], object]:
    matrix = torch.randn(_SIDE, _SIDE, dtype=torch.float32, device="cpu").to(dtype)
    out = torch.empty_like(matrix)
    return lambda: torch.mm(matrix, matrix, out=out)


def _product_in_bf16() -> Callable[[], object]:
    from accel import ops
    from accel.kernels.positions import every_position

    side = int(_SIDE**0.5)
    x = torch.randn(1, _SIDE, side, side, dtype=torch.float32, device="cpu")
    weight = torch.randn(_SIDE, _SIDE, 1, 1, dtype=torch.float32, device="cpu")
    rows, positions = x.contiguous(memory_format=torch.channels_last), every_position(side, side)
    return lambda: ops.perforated_conv2d(rows, weight, None, positions, precision="bf16")


def _product_of_bytes() -> Callable[[], object]:
    from accel import ops
    from accel.kernels.positions import every_position
    from accel.kernels.quantization import Affine, Requantization

    side = int(_SIDE**0.5)
    x = torch.randint(0, 256, (1, _SIDE, side, side), dtype=torch.uint8, device="cpu")
    weight = torch.randint(-127, 128, (_SIDE, _SIDE, 1, 1), dtype=torch.int8, device="cpu")
    level = Affine(1.0, 128)
    to_bytes = Requantization.of(level, torch.ones(_SIDE, dtype=torch.float32, device="cpu"), None, level)
    rows, positions = x.contiguous(memory_format=torch.channels_last), every_position(side, side)
    return lambda: ops.quantized_conv2d(rows, weight, to_bytes, positions)


def _gops(multiply: Callable[[], object]) -> float:
    return 2 * _SIDE**3 / _fastest_ns(multiply)


def _fastest_ns(call: Callable[[], object]) -> float:
    spent = []
    with torch.inference_mode():
        while len(spent) < _RUNS and sum(spent) < 1e9:
            start = time.perf_counter_ns()
            call()
            spent.append(time.perf_counter_ns() - start)
    return min(spent)
