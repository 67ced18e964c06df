"""A whole ACT, SACT or PACT stage in evaluation, in one call of the C engine.

| backward | dtypes  | layouts                         | granularity                    | limits                    |
|----------|---------|---------------------------------|--------------------------------|---------------------------|
| none     | float32 | any map in, channels_last out   | image (ACT) or position (SACT) | group * frame below 2**31 |

Not an op: an inference routine that other backends do not have; `accel.halting.run_stage` says what it computes. Small
groups of images go through all units, so that their maps stay in the caches; per unit, the convolutions run at the
active positions only, then the halting head, the step and the accumulation of the output in one pass over these.

Convolutions may be those of `accel.ops.quantized_conv2d`: of bytes, their sums exact. The state, which the last one
of a unit adds to, stays in fp32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from accel.kernels import dispatch
from accel.kernels.quantization import Affine, Requantization


@dataclasses.dataclass(frozen=True, eq=False)
class StageBytes:
    """What a convolution of bytes reads, and what becomes of its sums; a next one reads what its output stands for."""

    input: Affine
    requantization: Requantization


@dataclasses.dataclass(frozen=True, eq=False)
class StageConv:
    """One convolution with its batch norm folded in and the activation behind it (see `masked_conv2d`).

    Attributes: weight [K, C / groups, kh, kw], fp32, or int8 with `bytes`; bias [K], then the requantization's offset;
    stride, padding (symmetric) and dilation (vertical, horizontal).
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str
    bytes: StageBytes | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class StageHead:
    """A halting head with its batch norms folded in: sigmoid(conv3x3(state) + <pooled, mean of state> + bias).

    Attributes: weight [9, C], or None for ACT; bias [H, W] (a batch norm's shift does not reach into the zero padding,
    so it differs along the border), [N, H, W], or [1] for ACT; pooled [C].
    """

    weight: Tensor | None
    bias: Tensor
    pooled: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class StageUnit:
    """Convolutions of the branch in order, the last one's activation acting after the addition; head None: the last."""

    convs: tuple[StageConv, ...]
    head: StageHead | None


@dataclasses.dataclass(frozen=True, eq=False)
class StageResult:
    """output [N, C, H, W]; ponder and units (int32) [N, H, W] or [N]; distribution [N, L, ...]; macs int64 [N]."""

    output: Tensor
    ponder: Tensor
    units: Tensor
    distribution: Tensor
    macs: Tensor


class StagePlan(Protocol):
    """The units of a stage, prepared for one input size."""

    def run(self, x: Tensor, shortcut: Tensor | None, macs_before: int = 0) -> StageResult:
        """Run the stage on x [N, C, H, W]. ValueError: a convolution of bytes reads a NaN or an infinity.

        Args:
            shortcut: what the first unit adds its branch to, shaped like the output; None where a convolution of the
                plan computes it.
            macs_before: MACs per image that the shortcut took.
        """


def plan_stage(
    units: Sequence[StageUnit],
    shortcut: StageConv | None,
    in_size: tuple[int, int],
    *,
    spatial: bool,
    eps: float,
    sticks: bool = False,
) -> StagePlan | None:
    """Prepare a stage; None where the engine cannot run it: depthwise or unpadded convolutions, units of one.

    Args:
        units: the first may change size and width; the others keep both.
        shortcut: the first unit's, a convolution without activation; None if `run` is given its result.
        in_size: (H, W) of the input.
        eps: of scores that add up.
        sticks: PACT, thresholded: a position halts where the head says more than one half, and keeps its state, which
            in the end is the output. Where a head gives NaN, the result's ponder is NaN.
    """
    build = dispatch.find("cpu", "plan_stage", "stage")
    return build(units, shortcut, in_size, spatial=spatial, eps=eps, sticks=sticks)


def head_scores(state: Tensor, head: StageHead, *, logits: bool) -> Tensor:
    """What a head says of state [N, C, H, W] everywhere, [N, H, W] or for ACT [N]: log odds, or their sigmoid.

    Its sums have the order that they have in a whole stage, where the engine computes them at active positions only.
    """
    return dispatch.find("cpu", "head_scores", "heads")(state, head, logits=logits)


def runs_on_engine(x: Tensor) -> bool:
    """Whether stages on this input can run so: float32 on a CPU, the engine built, no other backend forced."""
    return dispatch.active_backend(x) == "cpu" and x.dtype.is_floating_point
