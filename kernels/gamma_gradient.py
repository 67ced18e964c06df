"""gamma_gradient: the implicit derivative of a Gamma sample in its concentration.

| backward          | dtypes           | layouts          | granularity | limits                             |
|-------------------|------------------|------------------|-------------|------------------------------------|
| alpha, z, any order | float32, float64 | any, broadcast | element     | computed in float64 |
"""

from __future__ import annotations

from torch import Tensor

from accel.kernels.elementwise import call, register

_OP = register("gamma_gradient", "alpha, z")


def gamma_gradient(alpha: Tensor, z: Tensor) -> Tensor:
    """dz/dalpha of z ~ Gamma(alpha, 1) at a fixed quantile: -(dP(alpha, z)/dalpha) / p(z).

    Implicit reparameterization (Figurnov, Mohamed, Mnih 2018, arXiv 1805.08498, section 3); how it is computed:
    `accel.kernels.reference.gamma_gradient`.

    Args:
        alpha: concentration, > 0, float32 or float64, any shape.
        z: samples, >= 0, same dtype and device, a shape that broadcasts with that of alpha.

    Returns:
        The derivative, in the broadcast shape: positive, 0 at z = 0, NaN for arguments out of range. Relative error at
        most 2e-12 in float64 (2e-7, the rounding of the result, in float32) over alpha in [1e-3, 1e5] and quantiles
        1e-6 to 1 - 1e-6.

    Raises:
        TypeError, ValueError: see `accel.kernels.elementwise.call`.
    """
    return call(_OP, "gamma_gradient", alpha=alpha, z=z)
