"""Distributions whose conditional expectations are known, each with a function that is explained."""

from __future__ import annotations

import abc
import dataclasses

import numpy as np


class Toy(abc.ABC):
    """Features [*, D] that can be drawn, a function of them, and its expectation given any of them."""

    @abc.abstractmethod
    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """float64 [count, D]."""

    @abc.abstractmethod
    def predict(self, x: np.ndarray) -> np.ndarray:
        """f(x), [N], for x [N, D]."""

    @abc.abstractmethod
    def expectation(self, x: np.ndarray, hidden: np.ndarray) -> float:
        """E[f | features of x [D] that are not hidden, bool [D]]."""


@dataclasses.dataclass(frozen=True)
class GaussianMixture(Toy):
    """f(x) = sum x_i + sum x_i x_(i+1) / 2 + 2 cos(sum x_i / sqrt(D)), indices modulo D.

    Attributes:
        weights [K], means [K, D], covariances [K, D, D]: of the components.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        chosen = rng.choice(len(self.weights), count, p=self.weights)
        noise = rng.standard_normal((count, self.means.shape[1]))
        return self.means[chosen] + np.einsum("nij,nj->ni", np.linalg.cholesky(self.covariances)[chosen], noise)

    def predict(self, x: np.ndarray) -> np.ndarray:
        wave = np.cos(x.sum(1) / np.sqrt(x.shape[1]))
        return x.sum(1) + 0.5 * (x * np.roll(x, -1, 1)).sum(1) + 2 * wave

    def expectation(self, x: np.ndarray, hidden: np.ndarray) -> float:
        weights, means, covariances = self.conditional(x, hidden)
        size = len(x)
        products = means * np.roll(means, -1, 1) + covariances[:, np.arange(size), np.roll(np.arange(size), -1)]
        waves = np.cos(means.sum(1) / np.sqrt(size)) * np.exp(-covariances.sum((1, 2)) / (2 * size))
        return float(weights @ (means.sum(1) + 0.5 * products.sum(1) + 2 * waves))

    def conditional(self, x: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(weights [K], means [K, D], covariances [K, D, D]) given the seen features, which vary no more."""
        seen, logs = ~hidden, np.log(self.weights)
        means, covariances = np.repeat(x[None], len(logs), 0), np.zeros_like(self.covariances)
        for k, (mean, covariance) in enumerate(zip(self.means, self.covariances)):
            difference, own = (x - mean)[seen], covariance[np.ix_(seen, seen)]
            gain = np.linalg.solve(own, covariance[np.ix_(seen, hidden)]).T
            means[k, hidden] = mean[hidden] + gain @ difference
            rest = covariance[np.ix_(hidden, hidden)] - gain @ covariance[np.ix_(seen, hidden)]
            covariances[k][np.ix_(hidden, hidden)] = rest
            logs[k] -= 0.5 * (difference @ np.linalg.solve(own, difference) + np.linalg.slogdet(own)[1])
        weights = np.exp(logs - logs.max())
        return weights / weights.sum(), means, covariances


@dataclasses.dataclass(frozen=True)
class Burr(Toy):
    """Amounts with heavy tails (Takahasi 1965): x_i = (E_i / (r_i G))^(1 / b_i), E_i exponential, G ~ Gamma(shape, 1).

    Given some, the others are such again. f is piecewise constant, as in Aas, Jullum and Loland 2021: the weighted
    number of neighbours i, i + 1 (modulo D) that both exceed their thresholds.

    Attributes:
        shape; rates, powers [D]: r and b above; thresholds, weights [D].
    """

    shape: float
    rates: np.ndarray
    powers: np.ndarray
    thresholds: np.ndarray
    weights: np.ndarray

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        common = rng.gamma(self.shape, size=(count, 1))
        return (rng.exponential(size=(count, len(self.rates))) / (self.rates * common)) ** (1 / self.powers)

    def predict(self, x: np.ndarray) -> np.ndarray:
        above = (x > self.thresholds).astype(float)
        return (above * np.roll(above, -1, 1)) @ self.weights

    def expectation(self, x: np.ndarray, hidden: np.ndarray) -> float:
        """G given the seen features is Gamma again, and P(x_i > t | G) = exp(-G r_i t^b_i)."""
        rate = 1 + (self.rates * x**self.powers)[~hidden].sum()
        need = np.where(hidden, self.rates * self.thresholds**self.powers, 0.0)
        above = np.where(hidden, 1.0, x > self.thresholds)
        chance = (rate / (rate + need + np.roll(need, -1))) ** (self.shape + (~hidden).sum())
        return float((above * np.roll(above, -1) * chance) @ self.weights)


def gaussian(features: int, rng: np.random.Generator) -> GaussianMixture:
    """Two factors and noise, unit variances."""
    return GaussianMixture(np.ones(1), np.zeros((1, features)), _correlation(features, rng)[None])


def mixture(features: int, rng: np.random.Generator) -> GaussianMixture:
    """Three groups, correlated in different ways."""
    covariances = np.stack([_correlation(features, rng) for _ in range(3)]) * 0.5
    return GaussianMixture(np.array([0.5, 0.3, 0.2]), 1.5 * rng.standard_normal((3, features)), covariances)


def burr(features: int, rng: np.random.Generator) -> Burr:
    """Powers 1.5 to 4, thresholds at the 40 to 70 % quantiles."""
    powers, rates = rng.uniform(1.5, 4, features), rng.uniform(0.5, 2, features)
    shape, below = 2.0, rng.uniform(0.4, 0.7, features)
    thresholds = (((1 - below) ** (-1 / shape) - 1) / rates) ** (1 / powers)
    return Burr(shape, rates, powers, thresholds, rng.uniform(0.5, 1.5, features))


TOYS = {"gaussian": gaussian, "mixture": mixture, "burr": burr}


def _correlation(features: int, rng: np.random.Generator) -> np.ndarray:
    factors = rng.standard_normal((features, 2))
    covariance = factors @ factors.T + 0.3 * np.eye(features)
    scale = np.sqrt(np.diag(covariance))
    return covariance / scale[:, None] / scale
