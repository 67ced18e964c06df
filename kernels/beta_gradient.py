"""beta_gradient: the implicit derivative of a Beta sample, on the logit scale, in its first concentration.

| backward           | dtypes           | layouts        | granularity | limits                                   |
|--------------------|------------------|----------------|-------------|------------------------------------------|
| a, b, y, any order | float32, float64 | any, broadcast | element     | computed in float64; |y| is cut at 1e4   |
"""

from __future__ import annotations

from torch import Tensor

from accel.kernels.elementwise import call, register

_OP = register("beta_gradient", "a, b, y")


def beta_gradient(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """dy/da of y = log(x / (1 - x)), x ~ Beta(a, b), at a fixed quantile; in b it is -beta_gradient(b, a, -y).

    The logit keeps what x near 0 or 1 cannot. dx/da = x (1 - x) dy/da. Implicit reparameterization (Figurnov, Mohamed,
    Mnih 2018, arXiv 1805.08498, section 3); how it is computed: `accel.kernels.reference.beta_gradient`.

    Args:
        a, b: concentrations, > 0, float32 or float64, any shape.
        y: logits of samples, same dtype and device; the three shapes broadcast.

    Returns:
        The derivative, in the broadcast shape; positive; NaN for arguments out of range. Relative error at most 2e-10
        in float64 over a, b in [1e-3, 1e5] and quantiles 1e-6 to 1 - 1e-6.

    Raises:
        TypeError, ValueError: see `accel.kernels.elementwise.call`.
    """
    return call(_OP, "beta_gradient", a=a, b=b, y=y)
