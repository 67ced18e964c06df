"""REBAR and RELAX: score functions with a reparameterized control variate for discrete variables."""

from __future__ import annotations

import abc
from math import log

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .cost import Cost
from .discrete import finite_logits
from .relaxed import BinaryRelaxation, OneHotRelaxation, check_temperature, relaxation
from .rows import attach, sum_to, widen

Family = type[BinaryRelaxation] | type[OneHotRelaxation]


class _RelaxedControl(nn.Module, abc.ABC):
    """``(f(b) - c(z')) grad log q(b) + grad c(z) - grad c(z')``, z' drawn given b; unbiased for every control c.

    Subclasses define ``control``. After each call ``loss`` is the estimator's second moment, with a graph to this
    module's parameters and no others: minimise it to tune the control (Grathwohl et al. 2018, section 3.1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss: Tensor | None = None

    @abc.abstractmethod
    def control(self, cost: Cost, family: Family, z: Tensor) -> Tensor:
        """The control c at the relaxed samples z: one value per cost."""

    def rows(self, cost: Cost, q: Distribution, generator: torch.Generator | None) -> Tensor:
        """Per-sample costs ``[N, *c]`` at discrete samples, whose gradient is the estimator."""
        family = relaxation(q, type(self).__name__)
        with torch.enable_grad():
            given = finite_logits(q, type(self).__name__)
            logits = given.detach().requires_grad_()
            z = family.latent(logits, generator)
            b = family.hard(z.detach())
            conditional = family.conditional(logits, b, generator)
            control, control_given_b = (self.control(cost, family, point) for point in (z, conditional))
        costs = cost(b)
        tunable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        paths = _paths(control, control_given_b, costs, logits)
        signal = widen(costs.detach() - control_given_b, logits.dim())
        with torch.enable_grad():
            gradient = signal * (b - family.mean(logits)).detach() + paths
            self.loss = _loss_of(gradient, tunable)
        return attach(costs, sum_to(gradient.detach() * given, costs.dim()))


def _paths(control: Tensor, control_given_b: Tensor, costs: Tensor, logits: Tensor) -> Tensor:
    """Gradient of ``c(z) - c(z')`` in the logits, differentiable once more, after checking the control."""
    if control.shape != costs.shape:
        raise ValueError(
            f"the control returned shape {tuple(control.shape)} for costs of shape {tuple(costs.shape)}; return one "
            "value per cost (squeeze a trailing 1)"
        )
    difference = (control - control_given_b).sum()
    paths = None
    if difference.requires_grad:
        paths = torch.autograd.grad(difference, logits, create_graph=True, allow_unused=True)[0]
    if paths is None:
        raise ValueError("the control does not depend differentiably on its input z; use ScoreFunction")
    return paths


def _loss_of(gradient: Tensor, tunable: list[nn.Parameter]) -> Tensor:
    """Mean squared norm of the per-sample gradients; linearised, so that only ``tunable`` receive a gradient."""
    loss = sum_to(gradient.square(), 1).mean()
    slopes = torch.autograd.grad(loss, tunable, allow_unused=True) if tunable else ()
    pairs = ((slope * parameter).sum() for slope, parameter in zip(slopes, tunable) if slope is not None)
    return attach(loss.detach(), sum(pairs, torch.zeros_like(loss)))


class REBAR(_RelaxedControl):
    """Control ``scale * f(soft sample)`` (Tucker et al. 2017). f must accept relaxed samples and be differentiable.

    Args:
        temperature: of the relaxed samples, above 0; tunable through ``log_temperature``.
        scale: weight of the control (eta in the paper), tunable.
    """

    def __init__(self, temperature: float = 0.5, scale: float = 1.0) -> None:
        super().__init__()
        check_temperature(temperature)
        made = {"dtype": torch.float32, "device": torch.get_default_device()}  # where any module's lie
        self.log_temperature = nn.Parameter(torch.tensor(log(temperature), **made))
        self.scale = nn.Parameter(torch.tensor(float(scale), **made))

    def control(self, cost: Cost, family: Family, z: Tensor) -> Tensor:
        return self.scale * cost.through(family.soft(z, self.log_temperature.exp().to(z)), "REBAR")


class RELAX(_RelaxedControl):
    """Control given by a network of the unrelaxed latent z (Grathwohl et al. 2018); f may be a black box.

    Args:
        network: maps z ``[rows, *batch]`` (one-hot q: ``[rows, *batch, K]``) to controls ``[rows, *c]``. To get the
            paper's variant with f in it, let the network add ``f(sigmoid(z / temperature))``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def control(self, cost: Cost, family: Family, z: Tensor) -> Tensor:
        return self.network(z)
