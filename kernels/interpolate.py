"""interpolate: compact rows -> a dense map; skipped positions get the row of their stand-in, or a fitted weighted sum.

| form    | backward                 | dtypes   | layouts                        | granularity | limits            |
|---------|--------------------------|----------|--------------------------------|-------------|-------------------|
| nearest | yes, and twice           | floating | rows in, channels_last map out | position    | H * W below 2**31 |
| fitted  | rows, weights, constant, | floating | rows in, channels_last map out | position    | H * W below 2**31 |
|         | residual                 |          |                                |             |                   |

Figurnov et al. 2016, arXiv 1504.08362 (the nearest computed position stands in for a perforated one). The fitted form
is ours: per channel, weights of the neighbours and a constant, by least squares (`accel.fills.fitted`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.kernels.checks import autocast, check_activation, check_device, check_same, check_shape, sizes
from accel.kernels.dispatch import define, implementation, is_direct, needs_grad
from accel.kernels.positions import Neighbors, PositionSet
from accel.kernels.reference.activation import FUSED_BACKWARD, activate


def interpolate(
    rows: Tensor,
    positions: PositionSet,
    neighbors: Neighbors | None = None,
    weights: Tensor | None = None,
    constant: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Fill every position of the map: from its stand-in (`positions.nearest`), or as a weighted sum of neighbours.

    Args:
        rows: [N * P, C], floating, the values at the P computed positions of each of N images, image-major.
        positions: the static set, on the device of `rows`.
        neighbors: for every skipped position of the set, T rows and a class out of K; None: the stand-in's row.
        weights, constant: [K, T, C] and [K, C], dtype of `rows`; skipped position f of class k gets
            constant[k] + sum over t of weights[k, t] * rows[neighbors.rows[f, t]].
        residual: [N, C, H, W], dtype of `rows`, added at every position before the activation.
        activation: applied last, to computed and skipped positions; see `accel.ops.perforated_conv2d`.

    Returns:
        [N, C, H, W], channels_last, dtype of `rows`.

    Raises:
        ValueError: `rows` is not 2-D, its length is no multiple of P, the weights are of another shape or given
            without neighbors, or something lies on another device.
        TypeError: dtypes that differ.
    """
    _check_rows("interpolate", rows, positions)
    check_device("interpolate", rows, "positions", positions.nearest)
    check_activation("interpolate", activation)
    rows, weights, constant, residual = autocast(rows, weights, constant, residual)
    batch, size = sizes(rows)[0] // len(positions), (positions.height, positions.width)
    gradients = needs_grad(rows, weights, constant, residual)
    fused = activation if activation in FUSED_BACKWARD or not gradients else "none"
    if neighbors is None:
        if weights is not None or constant is not None:
            raise ValueError("interpolate: weights and constant belong to neighbors: give all three or none")
        arguments, fused = (rows, positions.nearest, batch, size), "none"
        run = implementation("interpolate", rows) if is_direct(rows) else _INTERPOLATE
    else:
        check_fitted("interpolate", rows, positions, neighbors, weights, constant)
        if residual is not None:
            check_shape("interpolate", "residual", residual, (batch, rows.shape[1], *size))
            check_same("interpolate", rows, residual=residual)
        sets = (positions.positions, neighbors.skipped, neighbors.rows, neighbors.starts)
        arguments = (rows, *sets, weights, constant, batch, size, fused, residual)
        direct = is_direct(rows, weights, constant, residual)
        run = implementation("interpolate_fitted", rows, "interpolate") if direct else _FITTED
    out = run(*arguments)
    if neighbors is None and residual is not None:
        out = out + residual
    return out if fused == activation else activate(out, activation)


def _check_rows(op, rows, positions):
    if rows.dim() != 2 or len(rows) % len(positions):
        raise ValueError(f"{op}: rows must be [N * {len(positions)}, C], got shape {tuple(rows.shape)}")


def check_fitted(op, rows, positions, neighbors, weights, constant):
    """ValueError where rows, neighbours, weights and constant do not fit the set and each other."""
    _check_rows(op, rows, positions)
    if weights is None or constant is None:
        raise ValueError(f"{op}: neighbors come with weights and constant: give all three or none")
    total = positions.height * positions.width
    if len(neighbors.skipped) + len(positions) != total:
        raise ValueError(
            f"{op}: {len(positions)} computed and {len(neighbors.skipped)} skipped positions do not make up "
            f"a {positions.height}x{positions.width} map: build the neighbours from this very set"
        )
    shape = (neighbors.classes, neighbors.rows.shape[1], rows.shape[1])
    check_shape(op, "weights", weights, shape)
    check_shape(op, "constant", constant, (shape[0], shape[2]))
    check_same(op, rows, weights=weights, constant=constant)
    check_device(op, rows, "neighbors", neighbors.rows)


def _fake_map(rows, batch, size):
    shape = (batch, rows.shape[1], *size)
    return torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=torch.channels_last)


def _fake_fitted_backward(grad, rows, positions, skipped, neighbors, starts, weights):
    return torch.empty_like(rows), torch.empty_like(weights), weights.new_empty(weights.shape[0], weights.shape[2])


FITTED_LISTS = "Tensor positions, Tensor skipped, Tensor neighbors, Tensor starts, Tensor weights"
_interpolate = define(
    "interpolate",
    "(Tensor rows, Tensor nearest, SymInt batch, SymInt[] size) -> Tensor",
    lambda rows, nearest, batch, size: _fake_map(rows, batch, size),
)
_fitted = define(
    "interpolate_fitted",
    f"(Tensor rows, {FITTED_LISTS}, Tensor constant, SymInt batch, SymInt[] size, str activation, "
    "Tensor? residual=None) -> Tensor",
    lambda rows, _p, _s, _n, _t, _w, _c, batch, size, *_: _fake_map(rows, batch, size),
    module="interpolate",
)
define(
    "interpolate_fitted_backward",
    f"(Tensor grad, Tensor rows, {FITTED_LISTS}) -> (Tensor, Tensor, Tensor)",
    _fake_fitted_backward,
    module="interpolate",
)


@torch.library.custom_op(
    "accel::interpolate_backward", mutates_args=(), schema="(Tensor grad, Tensor nearest, SymInt count) -> Tensor"
)
def _interpolate_backward(grad, nearest, count):
    if not grad.shape[0]:
        return grad.new_empty(0, grad.shape[1])
    return implementation("interpolate_backward", grad, "interpolate")(grad, nearest, count)


@_interpolate_backward.register_fake
def _(grad, nearest, count):
    return grad.new_empty(grad.shape[0] * count, grad.shape[1])


def _setup_interpolate(ctx, inputs, output):
    rows, nearest, batch, _ = inputs
    ctx.save_for_backward(nearest)
    ctx.count = rows.shape[0] // batch if batch else 0


def _interpolate_grad(ctx, grad):
    return _BACKWARD(grad, *ctx.saved_tensors, ctx.count), None, None, None


def _setup_backward(ctx, inputs, output):
    grad, nearest, _ = inputs
    ctx.save_for_backward(nearest)
    ctx.batch, _, *ctx.size = grad.shape


def _backward_grad(ctx, grad):
    return _INTERPOLATE(grad, *ctx.saved_tensors, ctx.batch, ctx.size), None, None


def _setup_fitted(ctx, inputs, output):
    rows, positions, skipped, neighbors, starts, weights, *_, activation, residual = inputs
    ctx.has_residual = residual is not None
    kept = output if activation == "relu" else None
    ctx.save_for_backward(rows, positions, skipped, neighbors, starts, weights, kept)


def _fitted_grad(ctx, grad):
    *saved, output = ctx.saved_tensors
    if output is not None:
        grad = grad * (output > 0)
    d_rows, d_weights, d_constant = _FITTED_BACKWARD(grad, *saved)
    d_residual = grad if ctx.has_residual else None
    return d_rows, None, None, None, None, d_weights, d_constant, None, None, None, d_residual


_interpolate.register_autograd(_interpolate_grad, setup_context=_setup_interpolate)
_interpolate_backward.register_autograd(_backward_grad, setup_context=_setup_backward)
_fitted.register_autograd(_fitted_grad, setup_context=_setup_fitted)
_INTERPOLATE = torch.ops.accel.interpolate.default
_BACKWARD = torch.ops.accel.interpolate_backward.default
_FITTED = torch.ops.accel.interpolate_fitted.default
_FITTED_BACKWARD = torch.ops.accel.interpolate_fitted_backward.default
