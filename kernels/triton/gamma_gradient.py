"""The Gamma derivative on a GPU: the three regions of `accel.kernels.reference.gamma_gradient`, in float64.

Every program computes all three regions of its block and selects; other lanes compute on harmless numbers.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.kernels.reference import gamma_gradient as reference

BLOCK = 256


def gamma_gradient(alpha: Tensor, z: Tensor) -> Tensor:
    """As `accel.kernels.reference.gamma_gradient`; contiguous tensors of one shape."""
    out = torch.empty_like(z)
    if out.numel():
        _kernel[(triton.cdiv(out.numel(), BLOCK),)](
            alpha, z, out, _table(z.device), out.numel(),
            FROM=reference.UNIFORM_FROM, LOW=reference.UNIFORM_BETWEEN[0], HIGH=reference.UNIFORM_BETWEEN[1],
            ORDERS=reference.ORDERS, DEGREE=reference.DEGREE, SERIES_TERMS=reference.SERIES_TERMS,
            FRACTION_TERMS=reference.FRACTION_TERMS, BLOCK=BLOCK,
        )  # fmt: skip
    return out


@functools.cache
def _table(device: torch.device) -> Tensor:
    """The rows of the uniform expansion one after the other, the last order first, each highest degree first."""
    rows = reference.uniform_table()
    return torch.tensor([c for row in rows[::-1] for c in row[::-1]], dtype=torch.float64, device=device)


@triton.jit
def _kernel(
    alpha_ptr, z_ptr, out_ptr, table_ptr, size,
    FROM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, ORDERS: tl.constexpr, DEGREE: tl.constexpr,
    SERIES_TERMS: tl.constexpr, FRACTION_TERMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    where = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    alpha = tl.load(alpha_ptr + where, mask=where < size, other=1.0).to(tl.float64)
    z = tl.load(z_ptr + where, mask=where < size, other=1.0).to(tl.float64)
    valid = (alpha > 0) & (z >= 0)
    large = alpha >= FROM
    edge = tl.where(large, alpha, alpha + 3.5 * tl.sqrt(tl.maximum(alpha, 0.0)) + 3.0)
    inside = large & (z > LOW * alpha) & (z < HIGH * alpha)
    upper = (z > edge) & (inside == 0)
    lower = valid & (z > 0) & (inside == 0) & (upper == 0)
    value = _series(tl.where(lower, alpha, 1.0), tl.where(lower, z, 1.0), SERIES_TERMS)
    value = tl.where(upper, _fraction(tl.where(upper, alpha, 1.0), tl.where(upper, z, 10.0), FRACTION_TERMS), value)
    near = _uniform(tl.where(inside, alpha, 100.0), tl.where(inside, z, 101.0), table_ptr, ORDERS, DEGREE)
    value = tl.where(z == 0, 0.0, tl.where(inside, near, value))
    value = tl.where(valid, value, float("nan"))
    tl.store(out_ptr + where, value.to(out_ptr.dtype.element_ty), mask=where < size)


@triton.jit
def _uniform(alpha, z, table_ptr, ORDERS: tl.constexpr, DEGREE: tl.constexpr):
    mu = (z - alpha) / alpha
    rounded = 1.0 + mu  # log(1 + mu) by Kahan's correction of the rounding of 1 + mu
    log_ratio = tl.where(rounded == 1.0, mu, tl.log(rounded) * (mu / tl.where(rounded == 1.0, 1.0, rounded - 1.0)))
    root = tl.sqrt(2.0 * tl.maximum(mu - log_ratio, 0.0))
    eta = tl.where(mu < 0, -root, root)
    inverse = 1.0 / alpha
    total = alpha * 0.0
    place = 0
    for order in range(ORDERS - 1, -1, -1):
        polynomial = alpha * 0.0
        for _ in range(DEGREE + 1 - 2 * order):
            polynomial = polynomial * eta + tl.load(table_ptr + place)
            place += 1
        total = (total + polynomial) * inverse
    return rounded * (tl.where(mu == 0, 1.0, log_ratio / tl.where(mu == 0, 1.0, mu)) + total)


@triton.jit
def _series(alpha, z, SERIES_TERMS: tl.constexpr):
    step = 1.0 / tl.maximum(alpha, 1.0)
    ratio = z * step
    power, total, common, slope = alpha * 0.0 + 1.0, alpha * 0.0 + 1.0, alpha * 0.0 + 1.0, alpha * 0.0
    for n in range(1, SERIES_TERMS + 1):
        t = (alpha + n) * step
        power = power * ratio
        slope = slope * t + total * step
        total = total * t + power
        common = common * t
    top = alpha + (SERIES_TERMS + 1.0)
    return z / alpha * ((total * (_digamma_less_log(top) + tl.log(top) - tl.log(z)) - slope) / common)


@triton.jit
def _fraction(alpha, z, FRACTION_TERMS: tl.constexpr):
    r = 1.0 / z
    p0, p, q0, q = alpha * 0.0, alpha * 0.0 + 1.0, alpha * 0.0 + 1.0, (z + 1.0 - alpha) * r
    dp0, dp, dq0, dq = alpha * 0.0, alpha * 0.0, alpha * 0.0, -r
    for k in range(1, FRACTION_TERMS + 1):
        b = (z + (2 * k + 1) - alpha) * r
        a = -k * (k - alpha) * r * r
        da = k * r * r
        dp1 = b * dp - r * p + a * dp0 + da * p0
        dq1 = b * dq - r * q + a * dq0 + da * q0
        p1, q1 = b * p + a * p0, b * q + a * q0
        p0, q0, dp0, dq0 = p, q, dp, dq
        p, q, dp, dq = p1, q1, dp1, dq1
    value = p / q
    return (dp - value * dq) / q + value * (tl.log(z) - tl.log(alpha) - _digamma_less_log(alpha))


@triton.jit
def _digamma_less_log(x):
    """psi(x) - log(x): DLMF 5.11.2 from 9 on, below by psi(x) = psi(x + 9) - sum 1 / (x + j)."""
    small = x < 9.0
    shift = tl.where(small, x, 1.0)
    total = x * 0.0
    for j in range(9):
        total += 1.0 / (shift + j)
    raised = tl.where(small, x + 9.0, x)
    r = 1.0 / raised
    q = r * r
    tail = (691.0 / 32760 - q / 12.0) * q - 1.0 / 132
    tail = ((tail * q + 1.0 / 240) * q - 1.0 / 252) * q + 1.0 / 120
    tail = (tail * q - 1.0 / 12) * q - 0.5 * r
    return tl.where(small, tail + tl.log(raised) - total - tl.log(shift), tail)
