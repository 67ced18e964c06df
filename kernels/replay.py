"""Chains of convolutions run as one call of the C engine.

| backward | dtypes  | layouts                         | granularity | limits                        |
|----------|---------|---------------------------------|-------------|-------------------------------|
| none     | float32 | any map in, channels_last out   | image       | 57 inputs and outputs         |
|          | uint8   |                                 |             |                               |

Not an op: an inference routine that other backends do not have. What the calls of `perforated_conv2d`, `interpolate`,
`quantized_conv2d`, `quantized_interpolate`, `quantize`, `max_rows`, `mean_rows`, `join_rows` and `sum_rows` between
some maps gave the engine is recorded once and given to it again, without the way through Python, and small maps group
of images by group, so that they stay in the caches. Within the chain maps may be bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from accel.kernels import dispatch


class Program(Protocol):
    """A recorded chain, for inputs of the shapes that it was recorded with."""

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The chain's outputs for these inputs. ValueError: a NaN or an infinity, where bytes are made of it."""


def prepare_replay(run: Callable[..., Sequence[object]], inputs: Sequence[Tensor]) -> Program | None:
    """Record what `run` does with the first images of the inputs; None where it does more than the engine can repeat.

    Args:
        run: maps [N, C, H, W] on the CPU, fp32 or bytes -> its outputs; every image by itself. It is called at most
            twice.
        inputs: such maps.
    """
    return dispatch.find("cpu", "prepare_replay", "replay")(run, inputs)


def engine_state() -> Hashable:
    """What else a program depends on: it holds while this stays the same."""
    return dispatch.find("cpu", "isa", "replay")(), torch.get_num_threads()
