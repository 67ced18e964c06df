"""Baselines for the score function: callables from detached costs ``[N, *c]`` to something that broadcasts to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MovingAverage(nn.Module):
    """Exponential average of the mean cost of earlier calls, debiased once, when read.

    The present samples join the average after it was read, so the estimator stays unbiased; the first call subtracts
    0. State lives in buffers and travels with ``state_dict``.

    Args:
        decay: weight of the past, in [0, 1).
    """

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        where = torch.get_default_device()  # where any module's lie
        self.register_buffer("average", torch.zeros((), dtype=torch.float64, device=where))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=where))

    def forward(self, costs: Tensor) -> Tensor:
        debias = 1 - self.decay ** max(int(self.steps), 1)
        baseline = (self.average / debias).to(costs)
        self.average.lerp_(costs.mean().to(self.average), 1 - self.decay)
        self.steps += 1
        return baseline


@dataclass(frozen=True)
class LeaveOneOut:
    """``b_n = sum_{m != n} f_m / (N - 1)``: each sample against the mean of the others."""

    def __call__(self, costs: Tensor) -> Tensor:
        num_samples = costs.shape[0]
        if num_samples < 2:
            raise ValueError("LeaveOneOut needs at least 2 samples, got 1; use MovingAverage for a single sample")
        first = costs[0]  # centred on it, equal costs give exactly their own value
        centred = costs - first
        return first + (centred.sum(0) - centred) / (num_samples - 1)


class LearnedBaseline(nn.Module):
    """A baseline predicted by a network from what is known before sampling (NVIL, Mnih & Gregor 2014).

    Args:
        network: any module; its output must broadcast against the costs ``[N, *c]``.

    Set ``context`` to the network's input before each call; after it, ``loss`` is the mean squared error of the
    prediction, with a graph to the network's parameters only: add it to the objective, or step on it alone.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.context: Tensor | None = None
        self.loss: Tensor | None = None

    def forward(self, costs: Tensor) -> Tensor:
        if self.context is None:
            raise ValueError("LearnedBaseline has no input: set its .context to the network's input before the call")
        with torch.enable_grad():
            prediction = self.network(self.context.detach())
            self.loss = F.mse_loss(prediction.expand_as(costs), costs)
        return prediction.detach()
