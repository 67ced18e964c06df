"""Lower bounds of log p(x): functions of a VAE and a batch, nats per example.

With T = log p(x, z) - log q(z | x), z drawn from q:

    elbo          E T                                           Kingma and Welling 2014, arXiv 1312.6114
    iwae          E log 1/K sum_k exp T_k                       Burda et al. 2016, arXiv 1509.00519
    robust_elbo   the same with log(alpha + exp .) in it         Figurnov et al. 2016, arXiv 1611.09226

Gradients reach encoder, decoder, likelihood and priors; those of latents without pathwise gradients are estimated as
`vae.estimators` says, through `accel.mc.expectation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from accel.errors import ConfigError
from accel.mc import Enumerate, LeaveOneOut, Pathwise, expectation
from accel.mc.sampling import draw
from accel.vae.model import VAE, Samples

GRADIENTS = ("plain", "stl", "dreg")
ROBUST = ("elbo", "expected", "iwae")


def elbo(
    vae: VAE,
    x: Tensor,
    num_samples: int = 1,
    *,
    gradient: str = "plain",
    generator: torch.Generator | None = None,
) -> Tensor:
    """[N], the evidence lower bound of each example; the KL divergence is exact where it has a closed form.

    Args:
        x: [N, ...].
        num_samples: of the expectation (DisARM counts pairs, Enumerate is exact).
        gradient: "plain", or "stl": the divergence is sampled and the posterior's parameters in log q are held, so that
            the gradient has no variance where q is exact (Roeder et al. 2017, arXiv 1703.09194).

    Raises:
        DataError: data outside the likelihood's support.
        ConfigError: no samples, an unknown gradient, or one that latents without pathwise gradients cannot have.
        ValueError: an estimator that does not fit its latent.
    """
    check_samples(num_samples)
    _check_gradient(gradient, ("plain", "stl"))
    parameters = vae.encode(x)
    posteriors = vae.distributions(parameters)
    if gradient == "stl":
        _need_pathwise(vae, posteriors, gradient)
        return _held_weights(vae, x, parameters, num_samples, generator)[0].mean(0)
    known = [known_divergence(q, latent.prior()) for latent, q in zip(vae.latents, posteriors)]

    def cost(samples: Samples) -> Tensor:
        total = vae.log_conditional(x.expand(len(samples[0]), *x.shape), samples, 2)
        for latent, q, z, divergence in zip(vae.latents, posteriors, samples, known):
            if divergence is None:
                total = total + latent.prior().log_prob(z) - q.log_prob(z)
        return total

    found = _expect(vae, posteriors, cost, num_samples, generator)
    return found - sum(divergence for divergence in known if divergence is not None)


def iwae(
    vae: VAE,
    x: Tensor,
    num_samples: int,
    *,
    gradient: str = "plain",
    generator: torch.Generator | None = None,
) -> Tensor:
    """[N], the importance-weighted bound of K = `num_samples`; it rises with K to log p(x).

    Args:
        gradient: "plain"; "stl" (as in `elbo`; biased for K > 1, Tucker et al. 2019, arXiv 1810.04152); "dreg", the
            doubly reparameterised gradient of the latter paper: the encoder's has weights squared, is unbiased, and
            does not drown in noise as K grows.

    Raises:
        As `elbo`.
    """
    check_samples(num_samples)
    _check_gradient(gradient, GRADIENTS)
    if gradient == "plain":
        return _weighted(vae, x, num_samples, -math.inf, generator)
    parameters = vae.encode(x)
    _need_pathwise(vae, vae.distributions(parameters), gradient)
    weights, samples = _held_weights(vae, x, parameters, num_samples, generator)
    bound = weights.logsumexp(0) - math.log(num_samples)
    if gradient == "stl":
        return bound
    shares = weights.detach().softmax(0)
    for z in samples:  # the encoder sees the loss through its samples only: here its weights are squared
        if z.requires_grad:
            z.register_hook(lambda grad: grad * shares.reshape(shares.shape + (1,) * (grad.dim() - shares.dim())))
    return bound


def robust_elbo(
    vae: VAE,
    x: Tensor,
    log_alpha: float | Tensor,
    num_samples: int = 1,
    *,
    variant: str = "expected",
    generator: torch.Generator | None = None,
) -> Tensor:
    """[N], a lower bound of log(alpha + p(x)), which ignores examples whose evidence lies far below alpha.

    Variants, each below the next (arXiv 1611.09226; softplus is convex, log concave):

        "elbo"      log(alpha + exp E T); with few samples its estimate lies above it
        "expected"  E log(alpha + exp T)
        "iwae"      E log(alpha + 1/K sum_k exp T_k), K = num_samples

    An example's gradient is that of the bound without alpha times sigmoid(bound - log_alpha). At the start every T may
    lie below log_alpha and nothing is learned: raise log_alpha slowly (`annealed_log_alpha`).

    Args:
        log_alpha: in nats; minus infinity gives `elbo` (or `iwae`).

    Raises:
        ConfigError: an unknown variant, or log_alpha NaN or infinite; otherwise as `elbo`.
    """
    if variant not in ROBUST:
        raise ConfigError(f"variant of robust_elbo must be one of {', '.join(ROBUST)}, got {variant!r}")
    if math.isnan(float(log_alpha)) or float(log_alpha) == math.inf:
        raise ConfigError(f"log_alpha must be a number of nats or minus infinity, got {float(log_alpha)}")
    check_samples(num_samples)
    if variant == "elbo":
        return _add_alpha(elbo(vae, x, num_samples, generator=generator), log_alpha)
    if variant == "iwae":
        return _weighted(vae, x, num_samples, log_alpha, generator)
    posteriors = vae.posterior(x)

    def cost(samples: Samples) -> Tensor:
        weights = vae.log_weights(x.expand(len(samples[0]), *x.shape), samples, posteriors, 2)
        return _add_alpha(weights, log_alpha)

    return _expect(vae, posteriors, cost, num_samples, generator)


def divergence(vae: VAE, x: Tensor) -> Tensor:
    """[N], KL(q(z | x) || p(z)) over all latents, in closed form.

    Raises:
        DataError: data outside the likelihood's support.
        ConfigError: a latent whose divergence is known by samples only.
    """
    posteriors = vae.posterior(x)
    known = [known_divergence(q, latent.prior()) for latent, q in zip(vae.latents, posteriors)]
    for latent, found in zip(vae.latents, known):
        if found is None:
            raise ConfigError(
                f"the divergence of the latent {latent.kind} from its prior has no closed form: "
                "take elbo, which samples it"
            )
    return sum(known)


def _weighted(
    vae: VAE, x: Tensor, num_samples: int, log_alpha: float | Tensor, generator: torch.Generator | None
) -> Tensor:
    """E log(alpha + 1/K sum_k exp T_k) by every latent's estimator, an example's K samples being one."""
    posteriors = vae.posterior(x, repeat=num_samples)

    def cost(samples: Samples) -> Tensor:
        repeated = x[:, None].expand(len(samples[0]), len(x), num_samples, *x.shape[1:])
        weights = vae.log_weights(repeated, samples, posteriors, 3)
        return _add_alpha(weights.logsumexp(2) - math.log(num_samples), log_alpha)

    alone = any(isinstance(getattr(found, "baseline", None), LeaveOneOut) for found in vae.estimators(posteriors))
    return _expect(vae, posteriors, cost, 2 if alone else 1, generator)  # of two bounds, each is the other's baseline


def _held_weights(
    vae: VAE, x: Tensor, parameters: Tensor, num_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, list[Tensor]]:
    """(T [K, N] with the posterior's parameters in log q held, the samples [K, N, *event]); pathwise."""
    samples = [draw(q.expand((num_samples, len(x))), generator, True) for q in vae.distributions(parameters)]
    held = vae.distributions(parameters.detach())
    return vae.log_weights(x.expand(num_samples, *x.shape), samples, held, 2), samples


def _expect(
    vae: VAE,
    posteriors: Sequence[Distribution],
    cost: Callable[[Samples], Tensor],
    num_samples: int,
    generator: torch.Generator | None,
) -> Tensor:
    """E cost(samples), [N], over all latents: expectations in each other, so that each may have its own estimator.

    Args:
        cost: samples of every latent [R, N, ..., *event] -> [R, N].
        num_samples: of the first latent that is sampled; those within its samples take one each where that is pathwise.
    """
    estimators = vae.estimators(posteriors)

    def level(index: int, outer: Samples) -> Tensor:
        q, estimator = posteriors[index], estimators[index]
        lead = outer[0].shape[: outer[0].dim() - q_dims[0]] if outer else ()

        def inner(z: Tensor) -> Tensor:
            seen = [*(sample.expand(len(z), *sample.shape) for sample in outer), z]
            if index + 1 < len(posteriors):
                return level(index + 1, seen)
            rows = z.shape[: z.dim() - q_dims[index]]
            flat = [sample.flatten(0, len(rows) - 1) for sample in seen]
            return cost(flat).unflatten(0, rows)

        sampled = not all(isinstance(known, Enumerate) for known in estimators[:index])
        count = 1 if sampled and isinstance(estimator, Pathwise) else num_samples
        return expectation(inner, q.expand((*lead, *q.batch_shape)), count, estimator, generator=generator)

    q_dims = [len(q.batch_shape) + len(q.event_shape) for q in posteriors]
    return level(0, ())


def _add_alpha(bound: Tensor, log_alpha: float | Tensor) -> Tensor:
    alpha = torch.as_tensor(log_alpha, dtype=bound.dtype, device=bound.device)
    return bound if alpha == -math.inf else torch.logaddexp(bound, alpha.expand_as(bound))


def known_divergence(q: Distribution, prior: Distribution) -> Tensor | None:
    """KL(q || prior) [N] in closed form; None where there is none."""
    try:
        return kl_divergence(q, prior.expand(q.batch_shape))  # torch's for Bernoulli does not broadcast
    except NotImplementedError:
        return None


def check_samples(num_samples: int) -> None:
    """ConfigError unless there is a sample."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigError(f"a bound needs at least one sample, got num_samples={num_samples!r}")


def _check_gradient(gradient: str, known: Sequence[str]) -> None:
    if gradient not in known:
        raise ConfigError(f"gradient must be one of {', '.join(known)}, got {gradient!r}")


def _need_pathwise(vae: VAE, posteriors: Sequence[Distribution], gradient: str) -> None:
    for estimator, q in zip(vae.estimators(posteriors), posteriors):
        if not isinstance(estimator, Pathwise):
            raise ConfigError(
                f"gradient {gradient!r} goes through the samples, and {type(estimator).__name__} of a latent "
                f"{type(getattr(q, 'base_dist', q)).__name__} does not: use gradient 'plain'"
            )
