"""Distributions, integrands and exact gradients for the bias test of every estimator in accel.mc."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch import distributions as td

import accel

Integrand = Callable[[Tensor], Tensor]

# Five integrands of every case, and a discontinuous one for the estimators that only look at values.
INTEGRANDS: dict[str, Integrand] = {
    "quadratic": lambda x: (x - 0.45) ** 2,
    "exponential": lambda x: torch.exp(-0.5 * x**2),
    "cosine": lambda x: torch.cos(2 * x),
    "sigmoid": lambda x: torch.sigmoid(3 * (x - 0.7)),
    "absolute": lambda x: (x - 0.6).abs(),
}
STEP: Integrand = lambda x: (x > 0.6).to(x)  # noqa: E731
KINK = 0.6

WEIGHTS = torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64)
STATES = torch.tensor([-1.0, 0.2, 0.9, 2.0], dtype=torch.float64)


def _itself(x: Tensor) -> Tensor:
    return x


def _entry(x: Tensor) -> Tensor:
    return x[..., 0]


def _around(x: Tensor) -> Tensor:
    """Angles enter by periodic functions only: pathwise gradients know nothing of a jump between -pi and pi."""
    return torch.sin(x) + 0.5 * torch.cos(x)


def _weighted(x: Tensor) -> Tensor:
    return (x * WEIGHTS[: x.shape[-1]]).sum(-1) + 0.2


def _state(x: Tensor) -> Tensor:
    return STATES[x]


def _mixed(x: Tensor) -> Tensor:
    return (x * STATES).sum(-1)


@dataclass(frozen=True)
class Case:
    """A distribution family at fixed parameters.

    Attributes:
        build: parameters -> q.
        values: the parameters.
        mean: (integrand, q) -> the exact expectation, differentiable in the parameters.
        project: samples -> the scalar that the integrand sees.
    """

    build: Callable[..., td.Distribution]
    values: dict[str, list]
    mean: Callable[[Integrand, td.Distribution], Tensor]
    project: Callable[[Tensor], Tensor] = _itself

    def leaves(self) -> dict[str, Tensor]:
        """Fresh float64 parameters."""
        return {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in self.values.items()
        }

    def distribution(self, fixed: tuple[str, ...] = ()) -> td.Distribution:
        """q on fresh parameters, those in ``fixed`` without a gradient."""
        return self.build(**{name: leaf.requires_grad_(name not in fixed) for name, leaf in self.leaves().items()})

    def cost(self, integrand: Integrand) -> Callable[[Tensor], Tensor]:
        return lambda x: integrand(self.project(x))

    def exact(self, integrand: Integrand) -> dict[str, Tensor]:
        """Exact gradient in each parameter."""
        leaves = self.leaves()
        grads = torch.autograd.grad(self.mean(integrand, self.build(**leaves)), list(leaves.values()))
        return dict(zip(leaves, grads))


@functools.lru_cache
def _gauss_legendre(low: float, high: float, panels: int = 200) -> tuple[Tensor, Tensor]:
    """Composite 20-point rule on [low, high]: panels halve towards the ends, where densities have powers and logs,
    and the kink of the integrands lies on a border."""
    edges = numpy.linspace(low, high, panels + 1)
    graded = (edges[1] - low) * 0.5 ** numpy.arange(1, 45)
    inside = [KINK] if low < KINK < high else []
    edges = numpy.unique(numpy.concatenate([edges, low + graded, high - graded, inside]))
    nodes, weights = numpy.polynomial.legendre.leggauss(20)
    half = numpy.diff(edges)[:, None] / 2
    points = edges[:-1, None] + half * (1 + nodes)
    return torch.from_numpy(points.ravel()), torch.from_numpy((half * weights).ravel())


def integrate(low: float, high: float) -> Callable[[Integrand, td.Distribution], Tensor]:
    """Expectation by quadrature of the density over [low, high]."""

    def mean(integrand: Integrand, q: td.Distribution) -> Tensor:
        x, weight = _gauss_legendre(low, high)
        return (integrand(x) * q.log_prob(x).exp() * weight).sum()

    return mean


def add_up(count: int) -> Callable[[Integrand, td.Distribution], Tensor]:
    """Expectation as a sum over 0 ... count - 1."""

    def mean(integrand: Integrand, q: td.Distribution) -> Tensor:
        x = torch.arange(count, dtype=torch.float64)
        return (integrand(x) * q.log_prob(x).exp()).sum()

    return mean


def _over_states(integrand: Integrand, q: td.Distribution) -> Tensor:
    return (integrand(STATES) * q.probs).sum()


def _over_bits(integrand: Integrand, q: td.Independent) -> Tensor:
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    return (integrand(_weighted(bits)) * q.log_prob(bits).exp()).sum()


def _uniform_mean(integrand: Integrand, q: td.Uniform) -> Tensor:
    """The derivative in a bound is the integrand there: split at the kink, so that quadrature sees smooth pieces."""
    u, weight = _gauss_legendre(0.0, 1.0)
    pieces = [(q.low, torch.tensor(KINK)), (torch.tensor(KINK), q.high)]
    return sum(((integrand(a + (b - a) * u) * weight).sum() * (b - a)) for a, b in pieces) / (q.high - q.low)


def _gaussian_projection(integrand: Integrand, q: td.Distribution) -> Tensor:
    """A weighted sum of Gaussian latents is Gaussian."""
    if isinstance(q, td.MultivariateNormal):
        weights = WEIGHTS[: q.event_shape[0]]
        variance = weights @ q.covariance_matrix @ weights
    else:
        weights = WEIGHTS
        variance = (weights**2 * q.variance).sum()
    projected = td.Normal((weights * q.mean).sum() + 0.2, variance.sqrt())
    return integrate(-25.0, 25.0)(integrand, projected)


def _lognormal_mean(integrand: Integrand, q: td.LogNormal) -> Tensor:
    z, weight = _gauss_legendre(math.log(KINK) - 8.0, math.log(KINK))
    w, upper = _gauss_legendre(math.log(KINK), math.log(KINK) + 8.0)
    z, weight = torch.cat((z, w)), torch.cat((weight, upper))
    return (integrand(z.exp()) * q.base_dist.log_prob(z).exp() * weight).sum()


def _angle_mean(integrand: Integrand, q: td.VonMises) -> Tensor:
    return integrate(-math.pi, math.pi)(lambda x: integrand(_around(x)), q)


def _dirichlet_mean(integrand: Integrand, q: td.Dirichlet) -> Tensor:
    """One entry of a Dirichlet is Beta."""
    a = q.concentration
    return integrate(0.0, 1.0)(integrand, td.Beta(a[0], a[1:].sum()))


def _mixture(logits: Tensor, loc: Tensor, scale: Tensor) -> td.Distribution:
    return accel.distributions.MixtureSameFamily(td.Categorical(logits=logits), td.Normal(loc, scale))


def _diagonal(loc: Tensor, scale: Tensor) -> td.Distribution:
    return td.Independent(td.Normal(loc, scale), 1)


CASES: dict[str, Case] = {
    "Bernoulli": Case(td.Bernoulli, {"probs": 0.3}, add_up(2)),
    "Bernoulli x3": Case(
        lambda logits: td.Independent(td.Bernoulli(logits=logits), 1),
        {"logits": [0.4, -1.0, 0.1]},
        _over_bits,
        _weighted,
    ),
    "Categorical": Case(
        lambda logits: td.Categorical(logits=logits), {"logits": [0.3, -0.5, 0.1, 0.6]}, _over_states, _state
    ),
    "OneHotCategorical": Case(
        lambda logits: td.OneHotCategorical(logits=logits), {"logits": [0.3, -0.5, 0.1, 0.6]}, _over_states, _mixed
    ),
    "Binomial": Case(lambda logits: td.Binomial(5, logits=logits), {"logits": 0.4}, add_up(6)),
    "Geometric": Case(td.Geometric, {"probs": 0.4}, add_up(200)),
    "Poisson": Case(td.Poisson, {"rate": 2.3}, add_up(60)),
    "Normal": Case(td.Normal, {"loc": 0.3, "scale": 1.2}, integrate(-15.0, 15.0)),
    "Normal x3": Case(_diagonal, {"loc": [0.1, -0.3, 0.4], "scale": [0.7, 0.5, 0.9]}, _gaussian_projection, _weighted),
    "MultivariateNormal": Case(
        td.MultivariateNormal,
        {"loc": [0.2, -0.1], "covariance_matrix": [[1.1, 0.4], [0.4, 0.6]]},
        _gaussian_projection,
        _weighted,
    ),
    "Exponential": Case(td.Exponential, {"rate": 1.3}, integrate(0.0, 40.0)),
    "Gamma": Case(td.Gamma, {"concentration": 2.5, "rate": 1.7}, integrate(0.0, 40.0)),
    "Weibull": Case(td.Weibull, {"scale": 1.4, "concentration": 2.0}, integrate(0.0, 15.0)),
    "Laplace": Case(td.Laplace, {"loc": 0.6, "scale": 0.8}, integrate(-40.0, 41.2)),
    "Uniform": Case(td.Uniform, {"low": -0.5, "high": 1.8}, _uniform_mean),
    "Beta": Case(td.Beta, {"concentration1": 2.0, "concentration0": 3.0}, integrate(0.0, 1.0)),
    "LogNormal": Case(td.LogNormal, {"loc": 0.1, "scale": 0.5}, _lognormal_mean),
    "StudentT": Case(
        lambda **given: accel.distributions.StudentT(**given),
        {"df": 9.0, "loc": 0.3, "scale": 0.8},
        integrate(-60.0, 60.0),
    ),
    "VonMises": Case(
        lambda **given: accel.distributions.VonMises(**given), {"loc": 0.3, "concentration": 2.0}, _angle_mean, _around
    ),
    "Dirichlet": Case(
        lambda **given: accel.distributions.Dirichlet(**given),
        {"concentration": [1.5, 2.0, 2.5]},
        _dirichlet_mean,
        _entry,
    ),
    "MixtureSameFamily": Case(
        _mixture, {"logits": [0.3, -0.4], "loc": [-0.5, 1.0], "scale": [0.6, 0.9]}, integrate(-12.0, 12.0)
    ),
}
DISCRETE = ("Bernoulli", "Bernoulli x3", "Categorical", "OneHotCategorical", "Binomial", "Geometric", "Poisson")
FINITE = DISCRETE[:5]
RELAXED = ("Bernoulli", "Bernoulli x3", "OneHotCategorical")
BINARY = ("Bernoulli", "Bernoulli x3")
CONTINUOUS = tuple(name for name in CASES if name not in DISCRETE)
FACTORISED = ("Normal", "Normal x3", "Exponential", "Gamma", "Weibull", "Laplace", "Beta")  # DeltaMethod's domain
MEASURED = (*DISCRETE, *CONTINUOUS[: CONTINUOUS.index("Beta")])


class _Control(torch.nn.Module):
    """A small fixed control for RELAX: any network keeps the estimator unbiased."""

    def __init__(self, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(width, 4, generator=generator, dtype=torch.float64)
        self.weight = torch.nn.Parameter(weight)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z.reshape(len(z), -1) @ self.weight).sum(-1)


def _learned() -> accel.mc.LearnedBaseline:
    """A baseline network predicting a constant: its weight plus its bias."""
    network = torch.nn.Linear(1, 1, dtype=torch.float64)
    torch.nn.init.constant_(network.weight, 0.3)
    torch.nn.init.constant_(network.bias, 0.1)
    baseline = accel.mc.LearnedBaseline(network)
    baseline.context = torch.ones(1, dtype=torch.float64)
    return baseline


def _known_mean(case: str) -> accel.mc.ControlVariate:
    """h(x) = sum of x, with its mean as a function of q; for one-hot latents the first entry."""

    def total(x: Tensor) -> Tensor:
        return (
            x[..., 0]
            if case in ("OneHotCategorical", "MultivariateNormal", "Dirichlet")
            else x.reshape(len(x), -1).sum(-1)
        )

    return accel.mc.ControlVariate(lambda x, q: total(x), lambda q: total(q.mean))


@dataclass(frozen=True)
class Method:
    """An estimator with what goes beside it.

    Attributes:
        build: case name -> a fresh estimator.
        cases: names of the cases it fits.
        biased: no claim of a mean.
        values_only: f need not be differentiable, so the step integrand is tested too.
        control: case name -> control variate.
        replicates: samples per independent group (LeaveOneOut), or None for one group of all samples.
        calls: the samples are spread over so many calls, for baselines that learn from the calls before.
    """

    build: Callable[[str], accel.mc.Estimator]
    cases: tuple[str, ...]
    biased: bool = False
    values_only: bool = False
    control: Callable[[str], accel.mc.ControlVariate | accel.mc.DeltaMethod] | None = None
    replicates: int | None = None
    calls: int = 1


_SCORED = tuple(name for name in CASES if name != "Uniform")
_WITH_MEAN = tuple(name for name in _SCORED if name not in ("Categorical", "VonMises"))

METHODS: dict[str, Method] = {
    "ScoreFunction": Method(lambda case: accel.mc.ScoreFunction(), _SCORED, values_only=True),
    "ScoreFunction, moving average": Method(
        lambda case: accel.mc.ScoreFunction(accel.mc.MovingAverage()), _SCORED, calls=10
    ),
    "ScoreFunction, leave one out": Method(
        lambda case: accel.mc.ScoreFunction(accel.mc.LeaveOneOut()), _SCORED, replicates=4
    ),
    "ScoreFunction, learned baseline": Method(lambda case: accel.mc.ScoreFunction(_learned()), _SCORED),
    "ScoreFunction, callable": Method(lambda case: accel.mc.ScoreFunction(lambda costs: torch.tensor(0.3)), _SCORED),
    "ScoreFunction, delta method": Method(
        lambda case: accel.mc.ScoreFunction(), FACTORISED, control=lambda case: accel.mc.DeltaMethod()
    ),
    "ScoreFunction, known mean": Method(lambda case: accel.mc.ScoreFunction(), _WITH_MEAN, control=_known_mean),
    "Pathwise": Method(lambda case: accel.mc.Pathwise(), CONTINUOUS),
    "Pathwise, delta method": Method(
        lambda case: accel.mc.Pathwise(), FACTORISED, control=lambda case: accel.mc.DeltaMethod()
    ),
    "MeasureValued, coupled": Method(lambda case: accel.mc.MeasureValued(), MEASURED, values_only=True),
    "MeasureValued, independent": Method(
        lambda case: accel.mc.MeasureValued(coupled=False), MEASURED, values_only=True
    ),
    "Enumerate": Method(lambda case: accel.mc.Enumerate(), FINITE, values_only=True),
    "DisARM": Method(lambda case: accel.mc.DisARM(), BINARY, values_only=True),
    "ARM": Method(lambda case: accel.mc.ARM(), BINARY, values_only=True),
    "REBAR": Method(lambda case: accel.mc.REBAR(), RELAXED),
    "RELAX": Method(
        lambda case: accel.mc.RELAX(_Control({"Bernoulli": 1, "Bernoulli x3": 3, "OneHotCategorical": 4}[case])),
        RELAXED,
        values_only=True,
    ),
    **{
        f"Concrete, temperature {t:g}": Method(lambda case, t=t: accel.mc.Concrete(t), RELAXED, biased=True)
        for t in (1.0, 0.5, 0.25, 0.1)
    },
    **{
        f"StraightThrough, temperature {t:g}": Method(
            lambda case, t=t: accel.mc.StraightThrough(t), RELAXED, biased=True
        )
        for t in (1.0, 0.5, 0.25, 0.1)
    },
    "StraightThrough, mean": Method(lambda case: accel.mc.StraightThrough(), RELAXED, biased=True),
}
UNTRAINED = {"Gamma": ("concentration",), "Weibull": ("concentration",)}  # no weak derivative: held fixed there


def gradients(case: str, method: str, integrand: Integrand, num_samples: int, seed: int) -> dict[str, Tensor]:
    """Independent gradient estimates ``[rows, *parameter]`` of one cell of the grid."""
    chosen, setup = METHODS[method], CASES[case]
    q = setup.distribution(UNTRAINED.get(case, ()) if method.startswith("MeasureValued") else ())
    generator = torch.Generator().manual_seed(seed)
    control = None if chosen.control is None else chosen.control(case)
    options = {"generator": generator, "control_variate": control}
    cost, estimator = setup.cost(integrand), chosen.build(case)
    if chosen.replicates is None:
        parts = [
            accel.mc.jacobians(cost, q, num_samples // chosen.calls, estimator, **options) for _ in range(chosen.calls)
        ]
        return {name.rpartition(".")[2]: torch.cat([part[name] for part in parts]) for name in parts[0]}
    groups = q.expand((num_samples // chosen.replicates, *q.batch_shape))
    found = accel.mc.jacobians(cost, groups, chosen.replicates, estimator, **options)
    return {name.rpartition(".")[2]: grad.mean(0) for name, grad in found.items()}


def score_cell(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Worst coordinate of a cell: z-score, bias, its standard error; norm of all biases, total variance of one row.

    An estimate without spread (Enumerate, some couplings) counts as 0 where it equals the exact gradient to 1e-9,
    else as infinite.
    """
    estimate = torch.cat([grad.reshape(len(grad), -1) for grad in found.values()], 1)
    target = torch.cat([exact[name].flatten() for name in found])
    bias = estimate.mean(0) - target
    variance = estimate.var(0)
    error = (variance / len(estimate)).sqrt()
    still = error <= 1e-12 * (1 + target.abs())
    z = torch.where(still, torch.where(bias.abs() < 1e-9, 0.0, torch.inf), bias.abs() / error.clamp(min=1e-300))
    worst = int(z.argmax())
    return {
        "z": float(z[worst]),
        "bias": float(bias[worst]),
        "standard_error": float(error[worst]),
        "bias_norm": float(bias.norm()),
        "variance": float(variance.sum()),
    }
