"""The ops around the convolutions, for cases of kind `gpu`: each against what torch offers for the same result.

* interpolate: rows -> map by the nearest map, against index_select; fitted with 12 neighbours, against the sum of
  gathered and weighted rows.
* halting_step: one unit in place, against the reference.
* ponder_cost: against two sums.
* active_positions: against nonzero, which waits for the device.
* select_positions: against topk, which leaves them in order of score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from accel.bench.runner import Row
from accel.profiling.distances import relative_norm

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from accel.kernels.positions import Neighbors, PositionSet

# Relative norm against the reference in float32: rounding of the output, and for float32 that of tf32's inputs.
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 2e-3}
NEIGHBORS = 12  # of a fitted position: Perforate's default


class Measurement(NamedTuple):
    """What is to be timed: the row so far, its error and the largest allowed, the sides, the rival's name and ours."""

    row: Row
    error: float
    tolerance: float
    sides: dict[str, Callable]
    rival: str
    ours: str


class Maps:
    """What is drawn for a case: maps of the layer's output in NHWC on the device, and scores to halt and select by."""

    def __init__(self, case: Mapping[str, Any], dtype: str, device: str, generator: torch.Generator):
        import torch

        self.generator, self.device, self.dtype = generator, device, getattr(torch, dtype)
        self.tolerance, self.batch, self.size = TOLERANCE[dtype], case["batch"], tuple(case["size"])
        self.values = self.draw(self.batch, case["channels"][1], *self.size)
        self.scores = torch.rand(self.batch, *self.size, generator=generator).to(device)

    def draw(self, *shape: int) -> Tensor:
        import torch

        tensor = torch.randn(shape, generator=self.generator).to(self.device, self.dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    def rows(self, positions: PositionSet) -> Tensor:
        """[N * P, C], the values at the positions of a set."""
        return self.values.permute(0, 2, 3, 1).flatten(1, 2)[:, positions.positions.long()].flatten(0, 1)


def measurements(maps: Maps, keeps: list[float], fractions: list[float]) -> Iterator[Measurement]:
    for keep in keeps:
        if keep < 1:  # of a full set there is nothing to fill in, and nothing to select
            yield nearest(maps, keep)
            yield fitted(maps, keep)
            yield selection(maps, keep)
    for fraction in fractions:
        yield activity(maps, fraction)
    yield halting(maps)
    yield ponder(maps)


def nearest(maps: Maps, keep: float) -> Measurement:
    from accel import ops

    kept = position_set(maps, keep)
    rows = maps.rows(kept)
    images = rows.view(maps.batch, len(kept), -1)

    def call(rows: Tensor) -> Tensor:
        return ops.interpolate(rows, kept)

    sides = {"index_select": lambda: images.index_select(1, kept.nearest), "ours": lambda: call(rows)}
    row = {"op": "interpolate", "keep": round(kept.keep, 4)}
    return Measurement(row, against_reference(call, (rows,)), 0.0, sides, "index_select", "ours")


def fitted(maps: Maps, keep: float) -> Measurement:
    import torch

    call, ours, kept, neighbors = fitted_call(maps, keep)
    rows, weights, constant = ours
    channels = rows.shape[1]
    images, computed, skipped = rows.view(maps.batch, len(kept), -1), kept.positions.long(), neighbors.skipped.long()
    owner = torch.searchsorted(neighbors.starts, torch.arange(len(skipped), device=rows.device), right=True) - 1

    def gathered() -> Tensor:
        out = images.new_empty(maps.batch, maps.size[0] * maps.size[1], channels)
        out[:, computed] = images
        out[:, skipped] = constant[owner] + (weights[owner] * images[:, neighbors.rows]).sum(2)
        return out

    row = {"op": "interpolate_fitted", "keep": round(kept.keep, 4), "neighbors": NEIGHBORS}
    sides = {"gathered": gathered, "ours": lambda: call(*ours)}
    return Measurement(row, against_reference(call, ours), maps.tolerance, sides, "gathered", "ours")


def fitted_call(maps: Maps, keep: float) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], PositionSet, Neighbors]:
    """(the op of rows, weights and constant; these; the set; the neighbours) of a fitted fill by distance."""
    from accel import ops
    from accel.fills.weighted import weighted_by_distance

    kept = position_set(maps, keep, "cpu")
    fit = weighted_by_distance(kept, NEIGHBORS, maps.values.shape[1])
    neighbors, kept = fit.neighbors(kept).to(maps.device), kept.to(maps.device)
    rows = maps.rows(kept)

    def call(rows: Tensor, weights: Tensor, constant: Tensor) -> Tensor:
        return ops.interpolate(rows, kept, neighbors, weights, constant)

    return call, (rows, *(tensor.to(rows) for tensor in (fit.weights, fit.constant))), kept, neighbors


def selection(maps: Maps, keep: float) -> Measurement:
    from accel import ops

    budget, score = max(1, round(keep * maps.scores[0].numel())), maps.scores.to(maps.dtype)
    sides = {
        "topk": lambda: score.flatten(1).topk(budget).indices,
        "ours": lambda: ops.select_positions(score, budget),
    }
    error = different(lambda: ops.select_positions(score, budget).positions)
    return Measurement({"op": "select_positions", "keep": keep}, error, 0.0, sides, "topk", "ours")


def activity(maps: Maps, fraction: float) -> Measurement:
    from accel import ops

    mask = maps.scores < fraction
    sides = {"nonzero": mask.nonzero, "ours": lambda: ops.active_positions(mask)}
    error = different(lambda: ops.active_positions(mask).positions)
    row = {"op": "active_positions", "active": round(float(mask.float().mean()), 4)}
    return Measurement(row, error, 0.0, sides, "nonzero", "ours")


def halting(maps: Maps) -> Measurement:
    import torch

    from accel.kernels.dispatch import use_backend
    from accel.ops import halting_step, halting_step_

    x, h = maps.values, maps.scores / 3
    state = torch.ones_like(h), torch.ones_like(h), torch.zeros_like(h, dtype=torch.int32)

    def call(x: Tensor) -> tuple[Tensor, ...]:
        return halting_step(h, x, *state, torch.zeros_like(x))

    def step_on(*state: Tensor) -> Callable[[], Tensor]:
        output = torch.zeros_like(x)
        return lambda: halting_step_(h, x, *state, output)

    ours, plain = (step_on(*(tensor.clone() for tensor in state)) for _ in range(2))

    def reference() -> Tensor:
        with use_backend("reference"):
            return plain()

    # positions halt after about six calls: from then on both sides do what a halted map costs
    sides = {"reference": reference, "ours": ours}
    error = against_reference(call, (x,))
    return Measurement({"op": "halting_step"}, error, maps.tolerance, sides, "reference", "ours")


def ponder(maps: Maps) -> Measurement:
    import torch

    from accel import ops

    cost, units = 1 + maps.scores, (1 + 5 * maps.scores).to(torch.int32)
    sides = {
        "sums": lambda: (cost.flatten(1).sum(1), units.flatten(1).sum(1)),
        "ours": lambda: ops.ponder_cost(cost, units),
    }
    # both sides add in float64, where float32 numbers between 1 and 2 add up exactly
    error = different(lambda: ops.ponder_cost(cost, units))
    return Measurement({"op": "ponder_cost"}, error, 0.0, sides, "sums", "ours")


def position_set(maps: Maps, keep: float, device: str | None = None) -> PositionSet:
    from accel.masks import build_mask, layer_generator

    generator = layer_generator(0, "bench", *maps.size)
    return build_mask("grid", keep, *maps.size, generator=generator).to(device or maps.device)


def against_reference(call: Callable, tensors: tuple[Tensor, ...] | list[Tensor]) -> float:
    """Largest relative norm of `call`'s results against the same call on the reference backend in float32."""
    from accel.kernels.dispatch import use_backend

    got = call(*tensors)
    with use_backend("reference"):
        expected = call(*(tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in tensors))
    pairs = zip(got, expected) if isinstance(got, tuple) else [(got, expected)]
    return max(relative_norm(one.detach().float(), other.detach()) for one, other in pairs)


def different(call: Callable) -> float:
    """The largest share of elements in which `call`'s results differ from the reference's at all."""
    from accel.kernels.dispatch import use_backend

    got = call()
    with use_backend("reference"):
        expected = call()
    pairs = zip(got, expected) if isinstance(got, tuple) else [(got, expected)]
    return max(float((one != other).float().mean()) for one, other in pairs)
