"""von_mises_gradient: the implicit derivative of a von Mises sample in its concentration.

| backward            | dtypes           | layouts        | granularity | limits                             |
|---------------------|------------------|----------------|-------------|------------------------------------|
| kappa, z, any order | float32, float64 | any, broadcast | element     | computed in float64 |
"""

from __future__ import annotations

from torch import Tensor

from accel.kernels.elementwise import call, register

_OP = register("von_mises_gradient", "kappa, z")


def von_mises_gradient(kappa: Tensor, z: Tensor) -> Tensor:
    """dz/dkappa of z ~ VonMises(0, kappa) at a fixed quantile.

    Implicit reparameterization (Figurnov, Mohamed, Mnih 2018, arXiv 1805.08498, section 3); how it is computed:
    `accel.kernels.reference.von_mises_gradient`.

    Args:
        kappa: concentration, > 0, float32 or float64, any shape.
        z: angles from the mean direction, in [-pi, pi], same dtype and device; the shapes broadcast.

    Returns:
        The derivative, in the broadcast shape: of the sign of -z, NaN for arguments out of range. Relative error at
        most 1e-11 in float64 over kappa in [1e-4, 1e5] and quantiles 1e-6 to 1 - 1e-6.

    Raises:
        TypeError, ValueError: see `accel.kernels.elementwise.call`.
    """
    return call(_OP, "von_mises_gradient", kappa=kappa, z=z)
