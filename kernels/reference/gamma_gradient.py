"""d z / d alpha of z ~ Gamma(alpha, 1) at a fixed quantile: the readable reference.

The implicit gradient is -(dP/dalpha) / p, P the regularised lower incomplete gamma function and p the density
(Figurnov, Mohamed, Mnih 2018, arXiv 1805.08498). In each of three regions it is computed so that p cancels on paper:

* uniform (alpha >= 10, z/alpha in a range around 1): Temme's expansion, differentiated (`uniform_table`);
* series (z up to about 3.5 standard deviations above alpha): P = z^alpha e^-z / Gamma(alpha+1) * sum z^n / (alpha+1)_n;
* fraction (the upper tail): Q = 1 - P by its continued fraction.

Largest relative error over alpha in [1e-3, 1e5], quantiles 1e-6 to 1 - 1e-6, against multiprecision: 2e-12. Everything
is computed in float64 and differentiable by autograd, which is where second derivatives come from.
"""

from __future__ import annotations

import functools
from fractions import Fraction

import torch
from torch import Tensor

SERIES_TERMS = 60
FRACTION_TERMS = 30
ORDERS, DEGREE = 12, 32  # of the uniform expansion in 1/alpha and eta
UNIFORM_FROM = 10.0  # alpha from which it holds to 1e-12 ...
UNIFORM_BETWEEN = (0.0954, 3.7728)  # ... for z/alpha in this range, which is |eta| < 1.7


def gamma_gradient(alpha: Tensor, z: Tensor) -> Tensor:
    """dz/dalpha, elementwise; tensors of one shape and dtype (float32 or float64). NaN outside alpha > 0, z >= 0."""
    dtype, alpha, z = z.dtype, alpha.double(), z.double()
    valid, positive = (alpha > 0) & (z >= 0), z > 0
    large = alpha >= UNIFORM_FROM
    edge = torch.where(large, alpha, alpha + 3.5 * alpha.clamp(min=0).sqrt() + 3)
    inside = valid & large & (z > UNIFORM_BETWEEN[0] * alpha) & (z < UNIFORM_BETWEEN[1] * alpha)
    lower = valid & positive & ~inside & (z <= edge)
    upper = valid & ~inside & (z > edge)
    result = torch.where(valid, torch.zeros_like(z), torch.nan)  # the limit at z = 0 is 0
    for region, method, (safe_alpha, safe_z) in (
        (inside, _uniform, (100.0, 101.0)),
        (lower, _series, (1.0, 1.0)),
        (upper, _fraction, (1.0, 10.0)),
    ):
        value = method(torch.where(region, alpha, safe_alpha), torch.where(region, z, safe_z))
        result = torch.where(region, value, result)
    return result.to(dtype)


def _series(alpha: Tensor, z: Tensor) -> Tensor:
    """(z/alpha) [S (psi(alpha+1) - log z) - dS/dalpha], S = sum z^n / (alpha+1)_n, over one common denominator.

    With S = A/D, D = (alpha+1)_N, the derivative of D turns psi(alpha+1) into psi(alpha+N+1): no term cancels another,
    and there is one division in all. Steps are scaled by max(alpha, 1), else D overflows.
    """
    scale = (1 / alpha.clamp(min=1.0)).detach()  # S does not depend on it
    ratio = z * scale
    power, total, common = torch.ones_like(z), torch.ones_like(z), torch.ones_like(z)
    slope = torch.zeros_like(z)
    for n in range(1, SERIES_TERMS + 1):
        step = (alpha + n) * scale
        power = power * ratio
        slope = slope * step + total * scale
        total = total * step + power
        common = common * step
    difference = torch.digamma(alpha + (SERIES_TERMS + 1)) - z.log()
    return z / alpha * ((total * difference - slope) / common)


def _fraction(alpha: Tensor, z: Tensor) -> Tensor:
    """dh/dalpha + h (log z - psi(alpha)), h = z / (z+1-alpha - 1(1-alpha) / (z+3-alpha - 2(2-alpha) / ...)).

    Q = z^(alpha-1) e^-z / Gamma(alpha) * h (DLMF 8.9.2). Numerators and denominators are kept apart, divided by z at
    each step, with their derivatives.
    """
    r = 1 / z
    p0, p, q0, q = torch.zeros_like(z), torch.ones_like(z), torch.ones_like(z), (z + 1 - alpha) * r
    dp0, dp, dq0, dq = torch.zeros_like(z), torch.zeros_like(z), torch.zeros_like(z), -r
    for k in range(1, FRACTION_TERMS + 1):
        b, a, da = (z + (2 * k + 1) - alpha) * r, -k * (k - alpha) * r * r, k * r * r
        dp0, dp = dp, b * dp - r * p + a * dp0 + da * p0
        dq0, dq = dq, b * dq - r * q + a * dq0 + da * q0
        p0, p = p, b * p + a * p0
        q0, q = q, b * q + a * q0
    value = p / q
    return (dp - value * dq) / q + value * (z.log() - torch.digamma(alpha))


def _uniform(alpha: Tensor, z: Tensor) -> Tensor:
    """lambda (log(lambda)/(lambda-1) + sum_k G_k(eta) alpha^-k), lambda = z/alpha; G_k, eta: see `uniform_table`."""
    mu = (z - alpha) / alpha
    near = mu.abs() < 0.03
    series, small = torch.zeros_like(mu), torch.where(near, mu, 0.0)
    for n in reversed(range(11)):  # 0.03^11 = 2e-17
        series = series * -small + 1 / (n + 2)
    apart = torch.where(near, 1.0, mu)
    half_square = torch.where(near, series, (apart - apart.log1p()) / (apart * apart))  # (mu - log(1 + mu)) / mu^2
    eta = mu * (2 * half_square).sqrt()
    total = torch.zeros_like(mu)
    for row in reversed(uniform_table()):
        polynomial = torch.zeros_like(mu)
        for coefficient in reversed(row):
            polynomial = polynomial * eta + coefficient
        total = (total + polynomial) / alpha
    return (1 + mu) * (1 - mu * half_square + total)


@functools.cache
def uniform_table() -> tuple[tuple[float, ...], ...]:
    """Taylor coefficients in eta of G_1 .. G_ORDERS; row k has DEGREE + 3 - 2k of them, higher powers being negligible.

    Temme's expansion (DLMF 8.12.4 and 8.12.7) is Q = erfc(eta sqrt(alpha/2))/2 + exp(-alpha eta^2/2) /
    sqrt(2 pi alpha) * sum c_k(eta) alpha^-k with eta^2/2 = lambda - 1 - log(lambda). Its derivative in alpha at fixed
    sqrt(2 pi alpha) * sum c_k(eta) alpha^-k with eta^2/2 = lambda - 1 - log(lambda). Its derivative in alpha at fixed
    eta over its exact one in eta gives d eta / d alpha at a fixed quantile, hence
    G_k = -g_k h + sum_(j<k) g_j e_(k-j), where e_k = -(eta^2/2) c_k - (k - 1/2) c_(k-1),
    h = eta^2 / (2 (lambda - 1)) and g_k are Stirling's coefficients. All of it by exact rational power series.
    """
    length = DEGREE + 2 * ORDERS + 3
    mu = [Fraction(0), Fraction(1)]  # lambda - 1 as a series in eta, from mu mu' = eta (1 + mu)
    for n in range(2, length + 2):
        mu.append((mu[n - 1] * 2 / Fraction(n + 1) - sum(mu[i] * mu[n + 1 - i] for i in range(2, n))) / 2)
    inverse = [Fraction(1)]  # eta / mu
    for n in range(1, length + 1):
        inverse.append(-sum(mu[i + 1] * inverse[n - i] for i in range(1, n + 1)))
    c, stirling = [inverse[1:]], [Fraction(1)]  # c_0 = 1/mu - 1/eta
    for k in range(1, ORDERS + 1):  # eta c_k = c_(k-1)' + (-1)^k g_k eta / mu: g_k is what keeps c_k finite at 0
        last, lead = c[-1], c[-1][1]
        stirling.append(-lead if k % 2 == 0 else lead)
        c.append([(n + 2) * last[n + 2] - lead * inverse[n + 1] for n in range(len(last) - 2)])
    h = [Fraction(0), *(x / 2 for x in inverse)]

    def e(k: int, n: int) -> Fraction:
        return -(c[k][n - 2] / 2 if n >= 2 else 0) - (k - Fraction(1, 2)) * c[k - 1][n]

    return tuple(
        tuple(
            float(sum(stirling[j] * e(k - j, n) for j in range(k)) - stirling[k] * h[n])
            for n in range(DEGREE + 3 - 2 * k)
        )
        for k in range(1, ORDERS + 1)
    )
