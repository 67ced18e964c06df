"""Random draws under a caller's ``torch.Generator``: torch's distributions, and the noise the estimators need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution


def distribution_device(q: Distribution) -> torch.device:
    """Device of ``q``, read off its tensors (CPU where it holds none)."""
    tensors = (value for value in vars(q).values() if isinstance(value, Tensor))
    first = next(tensors, None)
    if first is not None:
        return first.device
    nested = (value for value in vars(q).values() if isinstance(value, Distribution))
    return next((distribution_device(value) for value in nested), torch.device("cpu"))


@contextmanager
def torch_draws_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Let ``generator`` stand in for the default generator of ``device`` inside the block.

    ``torch.distributions`` takes no generator. Handing the caller's state to the default generator and taking it
    back afterwards makes every distribution obey it, third-party ones too, and leaves the global stream untouched.

    Raises:
        ValueError: ``generator`` lives on another device than the distribution.
    """
    if generator is None:
        yield
        return
    if generator.device.type != device.type:
        raise ValueError(
            f"generator is on {generator.device} but the distribution's parameters are on {device}; "
            f"pass torch.Generator(device={device.type!r})"
        )
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        default = torch.cuda.default_generators[index]
    else:
        default = torch.default_generator
    saved = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(saved)


def draw(q: Distribution, generator: torch.Generator | None, reparameterized: bool = False) -> Tensor:
    """One sample of ``q``, of shape ``batch_shape + event_shape``; with a gradient path where ``reparameterized``."""
    with torch_draws_from(generator, distribution_device(q)):
        return q.rsample() if reparameterized else q.sample()


def fork(generator: torch.Generator | None, device: torch.device) -> int:
    """A seed drawn from ``generator`` (or from torch's default one), to replay the same noise several times."""
    where = device if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=where))


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """U(0, 1) noise of the shape of ``like``, kept away from both ends by the smallest step of the dtype."""
    noise = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    step = torch.finfo(like.dtype).eps
    return noise.clamp(step, 1 - step)


def normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) noise of the shape of ``like``."""
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Exponential(1) noise of the shape of ``like``."""
    noise = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return noise.exponential_(generator=generator)


def random_sign(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """-1 or +1 with probability one half each."""
    return torch.where(uniform(like, generator) < 0.5, -1.0, 1.0).to(like.dtype)


def rayleigh(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Density ``x exp(-x^2 / 2)`` on x > 0: the Weibull(2, 1/2) of the weak derivative of a normal mean."""
    return (2 * exponential(like, generator)).sqrt()


def double_sided_maxwell(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Density ``x^2 exp(-x^2 / 2) / sqrt(2 pi)`` on the line: the signed length of a standard normal 3-vector."""
    vector = torch.randn((3, *like.shape), dtype=like.dtype, device=like.device, generator=generator)
    return vector.norm(dim=0) * random_sign(like, generator)
