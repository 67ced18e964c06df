"""Latent variables: how the encoder's outputs become a posterior, the prior, and what the decoder reads of a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributions as td

from accel import distributions as ad
from accel.errors import ConfigError, WeightsError

_KIND_BYTES = 32
LEAST = 1e-3  # of scales and concentrations: far below it a posterior is a point, and its gradients are noise


class Latent(nn.Module):
    """One latent variable of `sites` independent coordinates.

    Args:
        family: parameters by name, and validate_args -> Distribution; each parameter [..., sites], or as the family
            wants.
        links: raw encoder outputs [..., sites, raw] -> the family's parameters by name, inside their supports.
        prior: the family's parameters of the prior; numbers or tensors that broadcast to one posterior's.
        sites: independent coordinates; 1 for a multivariate family.
        raw: encoder outputs per site.
        features: samples [..., *event] -> what the decoder reads, [..., num_features]; None: the sample, flattened.
        num_features: its width.
        prior_family: another family for the prior, with parameters `prior`.
        periodic: the coordinates are angles.
        kind: what errors call it, the family's name by default; saved with the weights, which other kinds then refuse.

    Attributes:
        num_parameters: encoder outputs per example, sites * raw.

    Raises:
        ConfigError: no sites, or a prior outside the family's parameters.
    """

    def __init__(
        self,
        family: Callable[..., td.Distribution],
        links: Callable[[Tensor], dict[str, Tensor]],
        prior: Mapping[str, float | Tensor],
        *,
        sites: int,
        raw: int,
        num_features: int | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        prior_family: Callable[..., td.Distribution] | None = None,
        periodic: bool = False,
        kind: str | None = None,
    ) -> None:
        super().__init__()
        self.periodic = periodic
        self.kind = kind or family.__name__
        if sites < 1 or raw < 1:
            raise ConfigError(f"a latent {self.kind} needs at least one coordinate, got {sites} of {raw} parameters")
        self.family, self.links, self.prior_family = family, links, prior_family or family
        self.sites, self.raw = sites, raw
        self.num_parameters = sites * raw
        self.num_features = sites if num_features is None else num_features
        self._features = features
        self._prior_names = list(prior)
        for name, value in prior.items():
            self.register_buffer(f"prior_{name}", torch.as_tensor(value, dtype=torch.float32, device="cpu"))
        try:
            self.prior_family(**{name: getattr(self, f"prior_{name}") for name in prior}, validate_args=True)
        except ValueError as error:
            raise ConfigError(f"the prior of a latent {self.kind} cannot be: {' '.join(str(error).split())}") from error

    def get_extra_state(self) -> Tensor:
        """The kind, uint8 [32]: several kinds have parameters of the same names and shapes."""
        return torch.tensor([*self.kind.encode()[:_KIND_BYTES].ljust(_KIND_BYTES)], dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        found = bytes(state.tolist()).decode(errors="replace").rstrip()
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise WeightsError(f"these are the weights of a VAE whose latent is {found}, this one's is {self.kind}")

    def posterior(self, parameters: Tensor) -> td.Distribution:
        """q(z | x) with batch shape [...], for encoder outputs [..., num_parameters]."""
        given = self.links(parameters.unflatten(-1, (self.sites, self.raw)))
        return _joint(self.family(**given, validate_args=False), parameters.dim() - 1)

    def prior(self) -> td.Distribution:
        """p(z), of no batch shape; in the dtype and on the device of the module."""
        given = {name: getattr(self, f"prior_{name}") for name in self._prior_names}
        made = self.prior_family(**given, validate_args=False)
        if not made.event_shape:
            made = made.expand((self.sites,))
        return _joint(made, 0)

    @property
    def discrete(self) -> bool:
        return self.prior().support.is_discrete

    def features(self, z: Tensor) -> Tensor:
        """What the decoder reads of samples [..., *event]: [..., num_features]."""
        if self._features is not None:
            return self._features(z)
        return z if z.shape[-1] == self.num_features else z.flatten(-2)


def _joint(made: td.Distribution, batch_dims: int) -> td.Distribution:
    """The same with every batch dimension after the first `batch_dims` part of the event."""
    return td.Independent(made, len(made.batch_shape) - batch_dims, validate_args=False)


def _positive(raw: Tensor) -> Tensor:
    return F.softplus(raw) + LEAST


def _loc_scale(raw: Tensor) -> dict[str, Tensor]:
    return {"loc": raw[..., 0], "scale": _positive(raw[..., 1])}


def normal(dim: int) -> Latent:
    """Posterior Normal(loc, scale) per coordinate, prior N(0, 1)."""
    return Latent(td.Normal, _loc_scale, {"loc": 0.0, "scale": 1.0}, sites=dim, raw=2, kind="normal")


def gamma(dim: int, concentration: float = 0.3, rate: float = 0.3) -> Latent:
    """Posterior and prior Gamma; the prior's defaults are those of arXiv 1805.08498, section 5.4: sparse."""

    def links(raw: Tensor) -> dict[str, Tensor]:
        return {"concentration": _positive(raw[..., 0]), "rate": _positive(raw[..., 1])}

    return Latent(ad.Gamma, links, {"concentration": concentration, "rate": rate}, sites=dim, raw=2, kind="gamma")


def beta(dim: int, concentration: float = 1.0) -> Latent:
    """Posterior Beta, prior Beta(concentration, concentration)."""

    def links(raw: Tensor) -> dict[str, Tensor]:
        return {"concentration1": _positive(raw[..., 0]), "concentration0": _positive(raw[..., 1])}

    prior = {"concentration1": concentration, "concentration0": concentration}
    return Latent(ad.Beta, links, prior, sites=dim, raw=2, kind="beta")


def dirichlet(dim: int, concentration: float = 1.0) -> Latent:
    """One point of the simplex of `dim` classes; prior symmetric."""

    def links(raw: Tensor) -> dict[str, Tensor]:
        return {"concentration": _positive(raw[..., 0, :])}

    prior = {"concentration": torch.full((dim,), concentration, dtype=torch.float32, device="cpu")}
    return Latent(ad.Dirichlet, links, prior, sites=1, raw=dim, num_features=dim, kind="dirichlet")


def von_mises(dim: int) -> Latent:
    """Angles on a torus; prior uniform; the decoder reads cosines and sines, so that the wrap is no cut.

    The encoder gives each angle's mean as a direction in the plane, which has no cut either.
    """

    def links(raw: Tensor) -> dict[str, Tensor]:
        return {"loc": torch.atan2(raw[..., 1], raw[..., 0]), "concentration": _positive(raw[..., 2])}

    def features(z: Tensor) -> Tensor:
        return torch.cat([z.cos(), z.sin()], -1)

    prior = {"loc": 0.0, "concentration": 1e-12}  # uniform to the last bit of float32
    return Latent(
        ad.VonMises,
        links,
        prior,
        sites=dim,
        raw=3,
        num_features=2 * dim,
        features=features,
        periodic=True,
        kind="von_mises",
    )


def bernoulli(dim: int, probability: float = 0.5) -> Latent:
    """Independent bits; prior Bernoulli(probability). Relaxed samples have the bits' own log p, interpolated."""
    if not 0 < probability < 1:
        raise ConfigError(f"the prior of a latent bernoulli needs a probability between 0 and 1, got {probability:g}")
    prior = {"logits": math.log(probability / (1 - probability))}
    return Latent(td.Bernoulli, lambda raw: {"logits": raw[..., 0]}, prior, sites=dim, raw=1, kind="bernoulli")


def categorical(sites: int, classes: int) -> Latent:
    """Independent one-hot variables of `classes` classes; prior uniform."""
    prior = {"logits": torch.zeros(sites, classes, dtype=torch.float32, device="cpu")}
    return Latent(
        td.OneHotCategorical,
        lambda raw: {"logits": raw},
        prior,
        sites=sites,
        raw=classes,
        num_features=sites * classes,
        kind="categorical",
    )


def normal_mixture(dim: int, components: int) -> Latent:
    """A mixture of normals per coordinate (implicit gradients), prior N(0, 1)."""

    def family(logits: Tensor, loc: Tensor, scale: Tensor, validate_args: bool) -> td.Distribution:
        chosen = td.Categorical(logits=logits, validate_args=validate_args)
        return ad.MixtureSameFamily(chosen, td.Normal(loc, scale, validate_args=validate_args), validate_args)

    def links(raw: Tensor) -> dict[str, Tensor]:
        logits, loc, scale = raw.chunk(3, -1)
        return {"logits": logits, "loc": loc, "scale": _positive(scale)}

    prior = {"loc": 0.0, "scale": 1.0}
    return Latent(family, links, prior, sites=dim, raw=3 * components, prior_family=td.Normal, kind="normal_mixture")


def logistic_normal(dim: int) -> Latent:
    """A point of the simplex of `dim` classes: the softmax of normals with prior N(0, 1), the rival of `dirichlet`."""
    prior = {"loc": 0.0, "scale": 1.0}
    return Latent(
        td.Normal, _loc_scale, prior, sites=dim, raw=2, features=lambda z: z.softmax(-1), kind="logistic_normal"
    )


LATENTS = {
    "normal": normal,
    "gamma": gamma,
    "beta": beta,
    "dirichlet": dirichlet,
    "von_mises": von_mises,
    "bernoulli": bernoulli,
    "categorical": categorical,
    "normal_mixture": normal_mixture,
    "logistic_normal": logistic_normal,
}
