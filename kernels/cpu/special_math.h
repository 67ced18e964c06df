/* Elementary functions of one double, free of branches and calls, so that a loop over lanes becomes SIMD code. */
#ifndef ACCEL_SPECIAL_MATH_H
#define ACCEL_SPECIAL_MATH_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE int64_t bits_of(double x)
{
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE double from_bits(int64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE double smaller(double a, double b) { return a < b ? a : b; }
INLINE double larger(double a, double b) { return a > b ? a : b; }

/* log of u = 1 + f, f given without rounding: u = 2^k m, m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1)). */
INLINE double log_of(double u, double f)
{
    const int64_t half_root = 0x3fe6a09e00000000; /* sqrt(1/2) */
    uint64_t shifted = (uint64_t)bits_of(u) + (uint64_t)(0x3ff0000000000000 - half_root); /* wraps for a NaN */
    double k = from_bits((int64_t)(shifted >> 52) | 0x4330000000000000) - (4503599627370496.0 + 1023.0);
    double m = from_bits((int64_t)(shifted & 0x000fffffffffffff) + half_root);
    f = k == 0.0 ? f : m - 1.0;
    double s = f / (2.0 + f), q = s * s, p = 1.0 / 23;
    p = p * q + 1.0 / 21;
    p = p * q + 1.0 / 19;
    p = p * q + 1.0 / 17;
    p = p * q + 1.0 / 15;
    p = p * q + 1.0 / 13;
    p = p * q + 1.0 / 11;
    p = p * q + 1.0 / 9;
    p = p * q + 1.0 / 7;
    p = p * q + 1.0 / 5;
    p = p * q + 1.0 / 3;
    return k * 0.693147180559945309417 + (2.0 * s + 2.0 * s * q * p);
}

INLINE double log_positive(double x) { return log_of(x, x - 1.0); }
INLINE double log_one_plus(double x) { return log_of(1.0 + x, x); }

/* exp of x < 700; 0 below -700. */
INLINE double exp_of(double x)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to an integer held in the low bits */
    double clamped = larger(x, -700.0);
    double shifted = clamped * 1.44269504088896340736 + magic, k = shifted - magic;
    double r = (clamped - k * 0x1.62e42fefa3800p-1) - k * 0x1.ef35793c76730p-45; /* log 2 in two parts */
    double p = 1.0 / 6227020800.0; /* 1/13!, down to 1/0! */
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 1.0 / 2;
    p = p * r + 1.0;
    p = p * r + 1.0;
    double scale = from_bits((int64_t)((uint64_t)(bits_of(shifted) + 1023) << 52));
    return x < -700.0 ? 0.0 : p * scale;
}

/* sin of x in [0, pi/2], Taylor series to x^21. */
INLINE double sin_quarter(double x)
{
    double q = x * x, p = 1.0 / 51090942171709440000.0; /* 1/21!, down to 1/1! */
    p = p * q - 1.0 / 121645100408832000.0;
    p = p * q + 1.0 / 355687428096000.0;
    p = p * q - 1.0 / 1307674368000.0;
    p = p * q + 1.0 / 6227020800.0;
    p = p * q - 1.0 / 39916800;
    p = p * q + 1.0 / 362880;
    p = p * q - 1.0 / 5040;
    p = p * q + 1.0 / 120;
    p = p * q - 1.0 / 6;
    p = p * q + 1.0;
    return x * p;
}

/* psi(x) - log(x) for x >= 9: the asymptotic series, DLMF 5.11.2. */
INLINE double digamma_tail(double x)
{
    double r = 1.0 / x, q = r * r, p = -1.0 / 12;
    p = p * q + 691.0 / 32760;
    p = p * q - 1.0 / 132;
    p = p * q + 1.0 / 240;
    p = p * q - 1.0 / 252;
    p = p * q + 1.0 / 120;
    p = p * q - 1.0 / 12;
    return -0.5 * r + p * q;
}

/* psi(x) - log(x) for every x > 0; below 9 by psi(x) = psi(x + 9) - sum 1/(x + j), the sum over one denominator. */
INLINE double digamma_less_log(double x)
{
    double low = smaller(x, 9.0), numerator = 0.0, denominator = 1.0;
    for (int j = 0; j < 9; j++) {
        numerator = numerator * (low + j) + denominator;
        denominator *= low + j;
    }
    double raised = digamma_tail(low + 9.0) + log_positive(low + 9.0) - numerator / denominator - log_positive(low);
    return x < 9.0 ? raised : digamma_tail(larger(x, 9.0));
}

#endif
