"""Distributions whose samples have accurate gradients, by implicit reparameterization.

Drop-in subclasses of `torch.distributions` (KL divergences, validation, `expand` included) with `has_rsample`, an
optional `generator` for `sample` and `rsample`, and second derivatives. `implicit_rsample` does the same for any
univariate distribution with a differentiable CDF. Method: Figurnov, Mohamed, Mnih 2018, arXiv 1805.08498.
"""

from accel.distributions.beta import Beta, Dirichlet, FisherSnedecor, StudentT
from accel.distributions.gamma import Chi2, Gamma, InverseGamma
from accel.distributions.implicit import implicit_rsample
from accel.distributions.mixture import MixtureSameFamily
from accel.distributions.truncated_normal import TruncatedNormal
from accel.distributions.von_mises import VonMises

__all__ = [
    "Beta",
    "Chi2",
    "Dirichlet",
    "FisherSnedecor",
    "Gamma",
    "InverseGamma",
    "MixtureSameFamily",
    "StudentT",
    "TruncatedNormal",
    "VonMises",
    "implicit_rsample",
]
