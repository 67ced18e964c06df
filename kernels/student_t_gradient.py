"""student_t_gradient: the implicit derivative of a Student t sample in its degrees of freedom.

| backward         | dtypes           | layouts        | granularity | limits              |
|------------------|------------------|----------------|-------------|---------------------|
| df, t, any order | float32, float64 | any, broadcast | element     | computed in float64 |
"""

from __future__ import annotations

from torch import Tensor

from accel.kernels.elementwise import call, register

_OP = register("student_t_gradient", "df, t")


def student_t_gradient(df: Tensor, t: Tensor) -> Tensor:
    """dt/d df of t ~ StudentT(df, 0, 1) at a fixed quantile.

    Implicit reparameterization (Figurnov, Mohamed, Mnih 2018, arXiv 1805.08498, section 3); how it is computed:
    `accel.kernels.reference.student_t_gradient`.

    Args:
        df: degrees of freedom, > 0, float32 or float64, any shape.
        t: standard samples, same dtype and device; the shapes broadcast.

    Returns:
        The derivative, in the broadcast shape; NaN for arguments out of range. Relative error at most 2e-11 in float64
        over df in [1e-1, 1e6] and quantiles 1e-6 to 1 - 1e-6.

    Raises:
        TypeError, ValueError: see `accel.kernels.elementwise.call`.
    """
    return call(_OP, "student_t_gradient", df=df, t=t)
