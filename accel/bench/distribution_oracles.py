"""Multiprecision oracles of the implicit gradients, by other formulas than the kernels', for bench and tests.

Each returns -(dF/dphi) / p at one sample as an mpmath number. The incomplete gamma and beta functions by power series
of positive terms, whose cancellation the working precision absorbs; the von Mises CDF by quadrature.
"""

from __future__ import annotations

import mpmath as mp

DIGITS = 60


def gamma_derivative(alpha: float, z: float) -> mp.mpf:
    """dz/dalpha of Gamma(alpha, 1): P = z^alpha e^-z / Gamma(alpha+1) * S, S = sum z^n / (alpha+1)_n (DLMF 8.11.4)."""
    with mp.workdps(DIGITS):
        a, z = mp.mpf(alpha), mp.mpf(z)
        term, harmonic, total, slope, n = mp.mpf(1), mp.mpf(0), mp.mpf(1), mp.mpf(0), 0
        while n < max(z - a, 1) or term * harmonic > mp.eps * total:
            n += 1
            harmonic += 1 / (a + n)
            term *= z / (a + n)
            total += term
            slope -= term * harmonic
        return z / a * (total * (mp.digamma(a + 1) - mp.log(z)) - slope)


def beta_derivatives(a: float, b: float, x: float) -> tuple[mp.mpf, mp.mpf]:
    """(dx/da, dx/db) of Beta(a, b)."""
    with mp.workdps(DIGITS):
        return _beta_derivatives(mp.mpf(a), mp.mpf(b), mp.mpf(x), 1 - mp.mpf(x))


def _beta_derivatives(a: mp.mpf, b: mp.mpf, x: mp.mpf, rest: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    """I_x = x^a (1-x)^b / (a B(a, b)) * S, S = sum (a+b)_n / (a+1)_n x^n (DLMF 8.17.8), x the smaller of the two."""
    if x > rest:
        in_b, in_a = _beta_series(b, a, rest, x)
        return -in_a, -in_b
    return _beta_series(a, b, x, rest)


def _beta_series(a: mp.mpf, b: mp.mpf, x: mp.mpf, rest: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    term, in_a, in_b, n = mp.mpf(1), mp.mpf(0), mp.mpf(0), 0
    total, total_a, total_b = mp.mpf(1), mp.mpf(0), mp.mpf(0)
    ratio = x
    while ratio >= 1 or (abs(term) + abs(in_a) + abs(in_b)) / (1 - ratio) > mp.eps * total:
        ratio = (a + b + n) / (a + 1 + n) * x
        in_a = ratio * (in_a + term * (1 / (a + b + n) - 1 / (a + 1 + n)))
        in_b = ratio * (in_b + term / (a + b + n))
        term *= ratio
        n += 1
        total, total_a, total_b = total + term, total_a + in_a, total_b + in_b
    common, scale = mp.digamma(a + b), x * rest / a
    by_a = -scale * (total * (mp.log(x) + common - mp.digamma(a + 1)) + total_a)
    by_b = -scale * (total * (mp.log(rest) + common - mp.digamma(b)) + total_b)
    return by_a, by_b


def student_derivative(df: float, t: float) -> mp.mpf:
    """dt/d df of StudentT(df): F = 1/2 + I_w(1/2, df/2) / 2, w = t^2 / (df + t^2), for t > 0."""
    with mp.workdps(DIGITS):
        nu, t = mp.mpf(df), mp.mpf(t)
        w, rest = t * t / (nu + t * t), nu / (nu + t * t)
        quantile_move = _beta_derivatives(mp.mpf(1) / 2, nu / 2, w, rest)[1] / 2
        # t = sign sqrt(nu w / (1 - w)): in nu directly, and through w at its quantile
        return t / (2 * nu) + t * quantile_move / (2 * w * rest)


def von_mises_derivative(kappa: float, z: float) -> mp.mpf:
    """dz/dkappa of VonMises(0, kappa): the integral of d log p / dkappa against the density, from z to pi."""
    with mp.workdps(30):
        k, z = mp.mpf(kappa), mp.mpf(z)
        mean, start = mp.besseli(1, k) / mp.besseli(0, k), abs(z)
        end = mp.acos(max(mp.mpf(-1), mp.cos(start) - 80 / k))
        integral = mp.quad(
            lambda s: (mp.cos(s) - mean) * mp.exp(k * (mp.cos(s) - mp.cos(start))), mp.linspace(start, end, 9)
        )
        return mp.sign(z) * integral
