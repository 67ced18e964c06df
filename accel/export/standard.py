"""Perforated convolutions in operators that every runtime has, for maps of one size.

Regular sets are convolutions of larger strides, one for each phase of the set; others gather what they read and
multiply it. Sums of neighbours that lie at the same offsets are depthwise convolutions of what was computed. The values
are then put in their places by one gather.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers quantize_per_tensor and dequantize_*

from accel.export.phases import Phase, phases
from accel.export.window import Window, at_taps
from accel.fills import Fill, Fit
from accel.kernels.bf16 import round_bf16
from accel.kernels.positions import Neighbors, PositionSet
from accel.nn.chosen import budget_of, scores
from accel.nn.folding import Folded, fold
from accel.nn.geometry import ConvGeometry, geometry_of
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import STEPS, Quantization

_BYTES = torch.ops.quantized_decomposed


class _Rounded(nn.Module):
    """What a layer in eight bits multiplies, as numbers: runtimes know the pairs of operators for it."""

    def __init__(self, quantization: Quantization, weights: Folded) -> None:
        super().__init__()
        self.of = quantization.input
        made = quantization.integers(weights, self.of)
        self.register_buffer("steps", made.weight.reshape(weights.weight.shape))
        self.register_buffer("scale", made.requantization.multiplier / self.of.scale)
        self.register_buffer("zeros", torch.zeros(len(self.scale), dtype=torch.int64, device="cpu"))
        self.register_buffer("bias", made.requantization.offset)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x, the weight, the bias)."""
        kind = (self.of.scale, self.of.zero_point, 0, 255, torch.uint8)
        x = _BYTES.dequantize_per_tensor(_BYTES.quantize_per_tensor(x, *kind), *kind)
        weight = _BYTES.dequantize_per_channel(self.steps, self.scale, self.zeros, 0, -STEPS, STEPS, torch.int8)
        return x, weight, self.bias


class _Plain(nn.Module):
    """The same of a layer in floating point: nothing changes."""

    def __init__(self, weights: Folded) -> None:
        super().__init__()
        self.register_buffer("weight", weights.weight.detach())
        self.register_buffer("bias", None if weights.bias is None else weights.bias.detach())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return x, self.weight, self.bias


class _InBf16(_Plain):
    """The same of a layer in bf16: what it multiplies is rounded."""

    def __init__(self, weights: Folded) -> None:
        super().__init__(weights)
        self.weight = round_bf16(self.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return x.to(torch.bfloat16).to(x.dtype), self.weight, self.bias


class StandardLinear(nn.Module):
    """A linear layer in eight bits."""

    def __init__(self, quantization: Quantization, weights: Folded) -> None:
        super().__init__()
        self.numbers = _Rounded(quantization, weights)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(*self.numbers(x))


class StandardConv(nn.Module):
    """A perforated convolution, and the batch norm behind it.

    Input [N, C, H, W] of one size; output [N, K, H', W'].
    """

    def __init__(self, layer: PerforatedConv2d, size: tuple[int, int], norm: object = None) -> None:
        """Args:
        size: (H, W).
        norm: what `accel.nn.folding.fold` takes; only where `takes_norm(layer)`.
        """
        super().__init__()
        now = geometry_of(layer)
        self.budget = 0
        positions = layer.position_set(*now.output_size(*size))
        summed = layer.sums_at(positions)
        weights = fold(layer, norm, layer.fit_for(positions) if summed else None, apart=layer.config.in_bytes)
        self.numbers = _numbers(layer, weights)
        self.rows = _Rows(now, size, positions, summed)
        if summed:
            fit = layer.fit_for(positions)
            self.fill: nn.Module = _Sums(fit, layer.neighbors(positions), weights, positions, self.rows)
        elif layer.config.filling.from_rows:
            self.fill = _Nearest(positions, self.rows)
        else:
            self.fill = _Background(layer.config.filling, positions, self.rows)
        if not layer.config.masking.is_static:
            self.exact = Window(now, size, Phase(0, 0, 1, 1, positions.size))
            self.layer, self.lattice, self.budget = _Unread(layer), positions, budget_of(layer, positions)

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.numbers(x)
        out = self.fill(self.rows(*numbers))
        if self.budget:
            score = scores(self.layer.layer, x, self.lattice)
            chosen = torch.zeros_like(score, dtype=torch.bool)
            chosen = chosen.scatter(1, score.topk(self.budget).indices, True)
            out = torch.where(chosen.view(-1, 1, *self.lattice.size), self.exact(*numbers), out)
        return out


def _numbers(layer: PerforatedConv2d, weights: Folded) -> nn.Module:
    """What the layer multiplies."""
    if layer.config.in_bytes:
        return _Rounded(layer.quantization, weights)
    return _InBf16(weights) if layer.config.in_bf16 else _Plain(weights)


def takes_norm(layer: PerforatedConv2d) -> bool:
    """Whether a norm behind the layer can be folded into it: what stands at skipped positions is made of its rows."""
    return layer.config.filling.from_rows


class _Unread:
    """A layer that is no part of the module tree: its geometry and mask are read, its weights are not."""

    def __init__(self, layer: PerforatedConv2d) -> None:
        self.layer = layer


class _Rows(nn.Module):
    """x [N, C, H, W], weight and bias to the convolution at the positions of a set.

    Attributes:
        phases, skipped: the regular parts of the set, and of the positions that it leaves out; none: it is irregular.
        order: int64 [P], flat positions, as the parts that `forward` gives have them.
    """

    def __init__(self, now: ConvGeometry, size: tuple[int, int], positions: PositionSet, summed: bool) -> None:
        """Args:
        summed: phases are wanted, for sums over them. Else a 1x1 convolution does better as a product of the rows that
            it reads: ResNet-50 at a half in ONNX Runtime.
        """
        super().__init__()
        pointwise = now.kernel == (1, 1) and now.groups == 1 and not any(now.padding)
        found = None if pointwise and not (summed or positions.is_full) else phases(positions)
        self.phases, self.skipped = ([], []) if found is None else found
        if self.phases:
            self.windows = [Window(now, size, phase) for phase in self.phases]
            self.order = torch.cat([phase.positions for phase in self.phases])
        else:
            self.order = positions.positions.long()
            self.taps, read = at_taps(now, size, self.order, positions.width)
            self.register_buffer("read", read)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        """[N, K, rows, columns] of each phase; else one, [N, K, P]."""
        if self.phases:
            return [window(x, weight, bias) for window in self.windows]
        return [self.taps(x, weight, bias, self.read)]

    def places(self, positions: PositionSet) -> Tensor:
        """int64 [P], for each row of the set its place in `order`."""
        place = torch.empty(positions.height * positions.width, dtype=torch.int64, device="cpu")
        place[self.order] = torch.arange(len(self.order), device="cpu")
        return place[positions.positions.long()]


def _joined(parts: Sequence[Tensor], more: Sequence[Tensor] = ()) -> Tensor:
    """[N, K, P]"""
    flat = [*(each.flatten(2) for each in parts), *more]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 2)


def _placed(rows: Tensor, places: Tensor) -> Tensor:
    """[N, K, P] to [N, K, H * W]; position by position, as ONNX Runtime gathers single numbers in 4 ns each: ResNet-50
    took 44 ms for them, half of what it takes dense."""
    return rows.mT.index_select(1, places).mT


class _Nearest(nn.Module):
    """Every position has the row of its stand-in."""

    def __init__(self, positions: PositionSet, rows: _Rows) -> None:
        super().__init__()
        self.size = positions.size
        self.register_buffer("nearest", rows.places(positions)[positions.nearest.long()])

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        if parts[0].shape[2:] == self.size:  # a full set
            return parts[0]
        return _placed(_joined(parts), self.nearest).unflatten(2, self.size)


class _Background(nn.Module):
    """Skipped positions have what the fill says."""

    def __init__(self, filling: Fill, positions: PositionSet, rows: _Rows) -> None:
        super().__init__()
        self.filling, self.positions, self.nearest = filling, positions, _Nearest(positions, rows)
        kept = torch.zeros(positions.height * positions.width, dtype=torch.bool, device="cpu")
        kept[positions.positions.long()] = True
        self.register_buffer("kept", kept.view(positions.size))
        self.register_buffer("order", rows.places(positions))

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        rows = _joined(parts).mT.index_select(1, self.order)
        background = self.filling.background(rows, self.positions).mT
        size = self.positions.size if background.shape[2] > 1 else (1, 1)
        return torch.where(self.kept, self.nearest(parts), background.unflatten(2, size))


class _Sums(nn.Module):
    """Skipped positions are weighted sums of computed rows, class by class.

    Where the neighbours of a class lie at the same offsets on a regular set, whole phases are summed by depthwise
    convolutions: what those give at borders, which are of another class, is not read. The other classes are gathered.
    """

    def __init__(self, fit: Fit, neighbors: Neighbors, weights: Folded, positions: PositionSet, rows: _Rows) -> None:
        super().__init__()
        self.size, places = positions.size, rows.places(positions)
        where = torch.full((positions.height * positions.width,), -1, dtype=torch.int64, device="cpu")
        where[rows.order] = torch.arange(len(rows.order), device="cpu")
        end, starts = len(rows.order), neighbors.starts.tolist()
        self.shifted, self.gathered = nn.ModuleList(), nn.ModuleList()
        for k, offsets in enumerate(fit.offsets.tolist()):
            members = torch.zeros(len(where), dtype=torch.bool, device="cpu")
            members[neighbors.skipped[starts[k] : starts[k + 1]].long()] = True
            for phase in rows.skipped:
                at = phase.positions
                if 2 * members[at].sum() < len(at):
                    continue
                towards = [[phase.towards(other, offset) for offset in offsets] for other in rows.phases]
                if all(sum(each is not None for each in tap) == 1 for tap in zip(*towards)):
                    self.shifted.append(_Shifted(phase, rows.phases, towards, weights.sums[k], weights.constant[k]))
                    where[at[members[at]]] = torch.arange(end, end + len(at), device="cpu")[members[at]]
                    end += len(at)
        for k, (start, stop) in enumerate(itertools.pairwise(starts)):
            left = (where[neighbors.skipped[start:stop].long()] < 0).nonzero()[:, 0] + start
            if len(left):
                near = places[neighbors.rows[left].long()]
                self.gathered.append(_Gathered(near, weights.sums[k], weights.constant[k]))
                where[neighbors.skipped[left].long()] = torch.arange(end, end + len(left), device="cpu")
                end += len(left)
        self.register_buffer("where", where)

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        values = _joined([*parts, *(each(parts) for each in self.shifted)])
        if len(self.gathered):
            rows = _joined(parts)
            values = _joined([values], [each(rows) for each in self.gathered])
        return _placed(values, self.where).unflatten(2, self.size)


class _Shifted(nn.Module):
    """The parts to [N, K, rows, columns] of a skipped phase: sums of values at the same offsets from each position."""

    def __init__(
        self,
        phase: Phase,
        others: Sequence[Phase],
        towards: Sequence[Sequence[tuple[int, int] | None]],
        weights: Tensor,
        constant: Tensor,
    ) -> None:
        """Args:
        towards: for each other phase and each of T neighbours, which of its values that is; see `Phase.towards`.
        weights: [T, K], constant: [K].
        """
        super().__init__()
        self.sides: list[tuple[int, tuple[int, ...]]] = []  # (part, what it is padded or cropped by)
        self.kernels = nn.ParameterList()
        for k, (other, found) in enumerate(zip(others, towards)):
            moves = {tap: move for tap, move in enumerate(found) if move is not None}
            if not moves:
                continue
            (top, bottom), (left, right) = ((min(axis), max(axis)) for axis in zip(*moves.values()))
            kernel = torch.zeros(
                len(constant), 1, bottom - top + 1, right - left + 1, dtype=weights.dtype, device="cpu"
            )
            for tap, (i, j) in moves.items():
                kernel[:, 0, i - top, j - left] += weights[tap]
            self.kernels.append(nn.Parameter(kernel, requires_grad=False))
            self.sides.append(
                (k, (-left, phase.columns + right - other.columns, -top, phase.rows + bottom - other.rows))
            )
        self.register_buffer("constant", constant.detach())

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        biases = [self.constant, *[None] * (len(self.sides) - 1)]
        sums = [
            F.conv2d(F.pad(parts[k], sides), kernel, bias, groups=len(kernel))
            for (k, sides), kernel, bias in zip(self.sides, self.kernels, biases)
        ]
        return functools.reduce(torch.add, sums)


class _Gathered(nn.Module):
    """[N, K, P] to [N, K, F]: constant + the sum over T of weights [T, K] times the rows `near` [F, T]."""

    def __init__(self, near: Tensor, weights: Tensor, constant: Tensor) -> None:
        super().__init__()
        self.register_buffer("near", near.T.flatten())
        self.register_buffer("weights", weights.detach().T[:, :, None].contiguous())
        self.register_buffer("constant", constant.detach()[:, None])

    def forward(self, rows: Tensor) -> Tensor:
        near = rows.index_select(2, self.near).unflatten(2, (self.weights.shape[1], -1))
        return (near * self.weights).sum(2) + self.constant
