"""Likelihoods: what the decoder's outputs say of the data, log p(x | z) per example."""

from __future__ import annotations

import abc
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributions as td

from accel.errors import ConfigError, DataError
from accel.mc.sampling import draw

LEAST_SCALE = 1e-3  # of a learned standard deviation


class Likelihood(nn.Module, abc.ABC):
    """p(x | decoder's output). `outputs`: decoder outputs per value of x, in a last dimension where more than one."""

    outputs = 1
    support = "finite numbers"

    @abc.abstractmethod
    def distribution(self, output: Tensor) -> td.Distribution:
        """Of every value of x by itself, for a decoder's output."""

    def contains(self, x: Tensor) -> Tensor:
        """Whether each value of x, which is finite, can occur."""
        return torch.ones_like(x, dtype=torch.bool)

    def cell_log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """log p of every value of x."""
        return self.distribution(output).log_prob(x)

    def log_prob(self, output: Tensor, x: Tensor, batch_dims: int) -> Tensor:
        """log p(x | z) of every example; the first `batch_dims` dimensions of `output` and x, which are alike, stay.

        Raises:
            ConfigError: the decoder's output does not have the shape of the data.
        """
        data, got = tuple(x.shape[batch_dims:]), tuple(output.shape[batch_dims:])
        if got != (wanted := data if self.outputs == 1 else (*data, self.outputs)):
            raise ConfigError(
                f"the decoder gave {got} for each example, the likelihood {type(self).__name__} of data {data} takes "
                f"{wanted}: let its last layer have as many outputs"
            )
        return self.cell_log_prob(output, x).flatten(batch_dims).sum(-1)

    def check(self, x: Tensor) -> None:
        """DataError for data outside the support, NaN among them."""
        name = type(self).__name__
        if not x.is_floating_point():
            raise DataError(f"likelihood {name} takes floating-point data, got {x.dtype}: convert it")
        inside = x.isfinite()
        inside &= self.contains(torch.where(inside, x, 0.0))
        if not inside.all():
            first = x[~inside][0].item()
            raise DataError(
                f"{int((~inside).sum())} of {x.numel()} values lie outside the support of the likelihood {name}, "
                f"{self.support}; the first is {first:g}: scale or clean the data, or take another likelihood"
            )

    def mean(self, output: Tensor) -> Tensor:
        return self.distribution(output).mean

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Data drawn for each output."""
        return draw(self.distribution(output), generator)


class Bernoulli(Likelihood):
    """Values in [0, 1]; the output is a logit. Grey values count as expected bits, as is customary with pictures."""

    support = "[0, 1]"

    def contains(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x <= 1)

    def distribution(self, output: Tensor) -> td.Distribution:
        return td.Bernoulli(logits=output, validate_args=False)

    def cell_log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        return x * output - F.softplus(output)


class Normal(Likelihood):
    """The output is the mean; one standard deviation for all values, learned (`scale` is where it starts)."""

    def __init__(self, scale: float = 1.0, learned: bool = True) -> None:
        super().__init__()
        start = math.log(math.expm1(max(scale - LEAST_SCALE, 1e-6)))
        raw = torch.tensor(start, dtype=torch.float32, device="cpu")
        if learned:
            self.raw_scale = nn.Parameter(raw)
        else:
            self.register_buffer("raw_scale", raw)

    @property
    def scale(self) -> Tensor:
        return F.softplus(self.raw_scale) + LEAST_SCALE

    def distribution(self, output: Tensor) -> td.Distribution:
        return td.Normal(output, self.scale.to(output), validate_args=False)


class Categorical(Likelihood):
    """Whole numbers from 0 to classes - 1; the output holds a logit per class in its last dimension."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.outputs, self.support = classes, f"whole numbers from 0 to {classes - 1}"

    def contains(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x < self.outputs) & (x == x.round())

    def distribution(self, output: Tensor) -> td.Distribution:
        return td.Categorical(logits=output, validate_args=False)

    def mean(self, output: Tensor) -> Tensor:
        """The likeliest class: numbers of classes have no mean."""
        return output.argmax(-1).to(output)


class TwoComponent(Likelihood):
    """(1 - share) p(x) + share * noise, value by value: the usual robust rival of a robust bound.

    Args:
        base: p(x).
        noise: the likelihood of what is noise, such as Bernoulli() or Normal(5.0, learned=False), ...
        noise_output: ... for this output, whatever z: it broadcasts to the decoder's. A buffer.
        share: of the noise, where learning starts.
    """

    def __init__(self, base: Likelihood, noise: Likelihood, noise_output: Tensor, share: float = 0.1) -> None:
        super().__init__()
        self.base, self.noise = base, noise
        self.register_buffer("noise_output", noise_output)
        self.outputs, self.support = base.outputs, base.support
        self.raw_share = nn.Parameter(torch.logit(torch.tensor(share, dtype=torch.float32, device="cpu")))

    def contains(self, x: Tensor) -> Tensor:
        return self.base.contains(x) & self.noise.contains(x)

    def distribution(self, output: Tensor) -> td.Distribution:
        """Of what is no noise."""
        return self.base.distribution(output)

    def cell_log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        clean = F.logsigmoid(-self.raw_share) + self.base.cell_log_prob(output, x)
        noise = self.noise.cell_log_prob(self.noise_output.to(output), x)
        return torch.logaddexp(clean, F.logsigmoid(self.raw_share) + noise)


class Multinomial(Likelihood):
    """Counts of words: the output holds an unnormalised log probability per word. The multinomial coefficient, which
    does not depend on the model, is left out, as perplexities are computed."""

    support = "whole numbers from 0"

    def contains(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x == x.round())

    def distribution(self, output: Tensor) -> td.Distribution:
        """Of one word."""
        return td.OneHotCategorical(logits=output, validate_args=False)

    def cell_log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        return x * output.log_softmax(-1)
