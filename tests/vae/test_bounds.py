"""Bounds against exact likelihoods, and their gradients against enumeration."""

import math

import pytest
import torch
from torch import nn

from accel import mc
from accel.errors import ConfigError, DataError, WeightsError
from accel.tests.vae.models import all_bits, enumerated, linear_gaussian, one_layer, seeded, standard_error
from accel.vae import VAE, divergence, elbo, iwae, latents, likelihoods, log_likelihood, robust_elbo

MANY = 4000


def repeated(bound, x, *args, **kwargs):
    """[MANY, N] independent estimates of a bound."""
    with torch.no_grad():
        rows = x[None].expand(MANY, *x.shape).flatten(0, 1)
        return bound(rows, *args, **kwargs).view(MANY, len(x))


def test_bounds_rise_to_the_exact_likelihood():
    vae, exact = linear_gaussian()
    x = torch.randn(5, 3, generator=seeded())
    found = [repeated(lambda rows: elbo(vae, rows, generator=seeded(1)), x)]
    found += [repeated(lambda rows, k=k: iwae(vae, rows, k, generator=seeded(2)), x) for k in (2, 8)]
    for lower, higher in zip(found, [*found[1:], exact(x).expand(MANY, -1)]):
        gap = higher.mean(0) - lower.mean(0)
        assert (gap > 3 * torch.hypot(standard_error(lower), standard_error(higher))).all()


def test_log_likelihood_is_within_four_standard_errors_of_the_exact_one():
    vae, exact = linear_gaussian()
    x = torch.randn(6, 3, generator=seeded(4))
    with torch.no_grad():
        samples = [q.sample((20_000,)) for q in vae.posterior(x)]
        weights = vae.log_weights(x.expand(20_000, *x.shape), samples, vae.posterior(x), 2)
    relative = (weights - exact(x)).exp()
    assert ((relative.mean(0) - 1).abs() < 4 * standard_error(relative)).all()  # importance weights are unbiased
    error = log_likelihood(vae, x, 20_000, generator=seeded(5)) - exact(x)
    assert (error.abs() < 4 * standard_error(relative) + 1e-3).all()


def test_log_likelihood_in_chunks_is_the_same_number():
    vae, _ = linear_gaussian(exact_posterior=True)
    x = torch.randn(7, 3, generator=seeded(6))
    whole = log_likelihood(vae, x, 3000, generator=seeded(7))
    chunks = log_likelihood(vae, x, 3000, memory=4000, generator=seeded(8))
    assert (whole - chunks).abs().max() < 0.1 and not torch.equal(whole, chunks)
    assert log_likelihood(vae, x, 10, memory=1, generator=seeded(8)).shape == (7,)
    assert log_likelihood(vae, x[:0], 10).shape == (0,)


def test_a_small_budget_is_kept_by_encoder_and_decoder():
    vae, _ = linear_gaussian()
    rows = {"encoder": [], "decoder": []}
    for part, seen in rows.items():
        getattr(vae, part).register_forward_hook(lambda _, args, __, seen=seen: seen.append(len(args[0])))
    log_likelihood(vae, torch.randn(50, 3, generator=seeded()), 40, memory=2000)
    assert 1 < max(rows["encoder"]) < 50 and 1 < max(rows["decoder"]) < 40
    assert sum(rows["encoder"]) >= 50 and sum(rows["decoder"]) >= 50 * 40


@pytest.mark.parametrize("name", sorted(set(latents.LATENTS) - {"normal_mixture"}))
def test_the_analytic_divergence_is_the_sampled_one(name):
    torch.manual_seed(0)
    vae = one_layer(latent=latents.LATENTS[name](*((2, 3) if name == "categorical" else (3,))))
    x = all_bits(3)[[1, 6]]
    with torch.no_grad():
        q, prior = vae.posterior(x)[0], vae.latents[0].prior()
        z = q.sample((20_000,))
        sampled = q.log_prob(z) - prior.log_prob(z)
        exact = divergence(vae, x)
    assert (exact > 0).all() and ((sampled.mean(0) - exact).abs() < 4.5 * standard_error(sampled)).all()


def test_a_divergence_that_only_samples_tell_is_refused():
    latent = latents.normal_mixture(2, 3)
    vae = one_layer(latent=[latents.normal(1), latent])
    with pytest.raises(ConfigError, match=r"divergence of the latent normal_mixture .* no closed form: take elbo"):
        divergence(vae, bad(0.0))
    assert elbo(vae, bad(0.0)).isfinite().all()


def encoder_gradients(vae, bound, count):
    """[count, P], independent gradients of the bound, summed over examples, in the encoder's parameters."""
    parameters = list(vae.encoder.parameters())
    rows = [torch.autograd.grad(bound(seeded(i)).sum(), parameters) for i in range(count)]
    return torch.stack([torch.cat([g.flatten() for g in grads]) for grads in rows])


def z_scores(first, second):
    spread = torch.hypot(standard_error(first), standard_error(second)).clamp_min(1e-12)
    return (first.mean(0) - second.mean(0)) / spread


def test_stl_is_unbiased_for_the_elbo_and_silent_at_the_exact_posterior():
    vae, _ = linear_gaussian()
    x = torch.randn(3, 3, generator=seeded(12)).repeat(20, 1)
    plain = encoder_gradients(vae, lambda g: elbo(vae, x, generator=g), 200)
    held = encoder_gradients(vae, lambda g: elbo(vae, x, gradient="stl", generator=g), 200)
    assert z_scores(plain, held).abs().max() < 4.5
    one_dim = VAE(nn.Linear(1, 2), nn.Linear(1, 1), latents.normal(1), likelihoods.Normal(1.0, learned=False))
    variance = float(one_dim.likelihood.scale.detach()) ** 2
    with torch.no_grad():  # z | x ~ N(x / (1 + s^2), s^2 / (1 + s^2)), exactly
        one_dim.decoder.weight.fill_(1.0)
        one_dim.decoder.bias.zero_()
        deviation = math.sqrt(variance / (1 + variance)) - latents.LEAST
        one_dim.encoder.weight.copy_(torch.tensor([[1 / (1 + variance)], [0.0]]))
        one_dim.encoder.bias.copy_(torch.tensor([0.0, math.log(math.expm1(deviation))]))
    x = torch.tensor([[0.3], [-2.0]])
    silent = encoder_gradients(one_dim, lambda g: elbo(one_dim, x, gradient="stl", generator=g), 50)
    noisy = encoder_gradients(one_dim, lambda g: elbo(one_dim, x, generator=g), 50)
    assert silent.abs().max() < 1e-4 < 0.1 < noisy.abs().max()


def test_dreg_is_unbiased_and_less_noisy_where_stl_is_biased():
    vae, _ = linear_gaussian()
    x = torch.randn(2, 3, generator=seeded(13)).repeat(40, 1)
    gradients = {
        kind: encoder_gradients(vae, lambda g, kind=kind: iwae(vae, x, 8, gradient=kind, generator=g), 200)
        for kind in ("plain", "dreg", "stl")
    }
    assert z_scores(gradients["plain"], gradients["dreg"]).abs().max() < 4.5
    assert z_scores(gradients["plain"], gradients["stl"]).abs().max() > 10  # the test sees a bias
    assert gradients["dreg"].var(0).sum() < 0.5 * gradients["plain"].var(0).sum()


def test_dreg_leaves_the_decoders_gradient_alone():
    vae, _ = linear_gaussian()
    x = torch.randn(2, 3, generator=seeded(14))
    for parameter in (vae.decoder.weight, vae.likelihood.raw_scale):
        plain, dreg = (
            torch.autograd.grad(iwae(vae, x, 4, gradient=kind, generator=seeded(1)).sum(), parameter)[0]
            for kind in ("stl", "dreg")
        )
        torch.testing.assert_close(plain, dreg)


def exact_gradient(vae, x, bits, value):
    """Of sum_z q(z | x) value(T), in every parameter of the encoder and the decoder."""
    weights, log_q = enumerated(vae, x, bits)
    total = (log_q.exp() * value(weights)).sum()
    return torch.autograd.grad(total, [*vae.encoder.parameters(), *vae.decoder.parameters()])


ESTIMATORS = {
    "DisARM": (mc.DisARM(), 1),
    "ARM": (mc.ARM(), 1),
    "leave-one-out": (mc.ScoreFunction(mc.LeaveOneOut()), 2),
    "measure-valued": (mc.MeasureValued(), 1),
    "REBAR": (mc.REBAR(), 1),
    "Enumerate": (mc.Enumerate(), 1),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("bound", ["elbo", "expected"])
def test_gradients_with_bits_are_those_of_the_enumeration(name, bound):
    estimator, samples = ESTIMATORS[name]
    vae = one_layer(estimator=estimator)
    x = all_bits(3)[[1, 6]]
    value = (lambda t: t) if bound == "elbo" else (lambda t: torch.logaddexp(t, torch.tensor(-2.5)))
    expected = torch.cat([g.flatten() for g in exact_gradient(vae, x, 3, value)])
    parameters = [*vae.encoder.parameters(), *vae.decoder.parameters()]
    found = []
    for i in range(1 if name == "Enumerate" else 150):
        rows = x.repeat(1 if name == "Enumerate" else 80, 1)
        if bound == "elbo":
            values = elbo(vae, rows, samples, generator=seeded(i))
        else:
            values = robust_elbo(vae, rows, -2.5, samples, generator=seeded(i))
        grads = torch.autograd.grad(values.sum() * len(x) / len(rows), parameters)
        found.append(torch.cat([g.flatten() for g in grads]))
    found = torch.stack(found)
    if name == "Enumerate":
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    else:
        z = (found.mean(0) - expected) / standard_error(found).clamp_min(1e-6)
        assert z.abs().max() < 4.5


def test_iwae_with_bits_goes_through_the_estimator_too():
    vae = one_layer(bits=2, estimator=mc.ScoreFunction())
    x = all_bits(3)[[5]]
    weights, log_q = enumerated(vae, x, 2)
    pairs = torch.logsumexp(torch.stack([weights[:, None].expand(-1, 4, -1), weights[None].expand(4, -1, -1)]), 0)
    exact = ((log_q[:, None] + log_q[None]).exp() * (pairs - math.log(2))).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(exact, list(vae.encoder.parameters()))])
    found = encoder_gradients(vae, lambda g: iwae(vae, x.repeat(200, 1), 2, generator=g) / 200, 300)
    z = (found.mean(0) - expected) / standard_error(found).clamp_min(1e-6)
    assert z.abs().max() < 4.5


def test_iwae_of_latents_that_are_each_others_baseline():
    vae = one_layer(latent=latents.categorical(2, 3))
    x = all_bits(3)[[5]]
    bound, exact = (found(vae, x.repeat(4000, 1), 30, generator=seeded()) for found in (iwae, log_likelihood))
    assert abs(bound.mean() - exact.mean()) < 4.5 * standard_error(bound) + 4.5 * standard_error(exact)
    bound.mean().backward()
    assert vae.encoder.weight.grad.abs().sum() > 0


PRODUCTS = {
    "bits outside, DisARM": (["bernoulli", "normal"], [mc.DisARM(), None], 1),
    "bits inside, DisARM": (["normal", "bernoulli"], [None, mc.DisARM()], 1),
    "bits outside, leave-one-out": (["bernoulli", "normal"], [mc.ScoreFunction(mc.LeaveOneOut()), None], 3),
    "bits inside, measure-valued": (["normal", "bernoulli"], [None, mc.MeasureValued()], 1),
    "two kinds of bits": (["bernoulli", "bernoulli"], [mc.DisARM(), mc.REBAR()], 1),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients_of_products_are_those_with_the_bits_enumerated(name):
    kinds, estimators, samples = PRODUCTS[name]

    def model(estimator):
        torch.manual_seed(5)
        parts = [latents.LATENTS[kind](2) for kind in kinds]
        width = sum(part.num_parameters for part in parts)
        return VAE(nn.Linear(3, width), nn.Linear(4, 3), parts, likelihoods.Bernoulli(), estimator)

    summed = model([mc.Enumerate() if kind == "bernoulli" else None for kind in kinds])
    x = all_bits(3)[[2, 7]]
    found, exact = (
        encoder_gradients(vae, lambda g, vae=vae, n=n: elbo(vae, x.repeat(200, 1), n, generator=g) / 200, 100)
        for vae, n in ((model(estimators), samples), (summed, 1))
    )
    assert z_scores(found, exact).abs().max() < 4.5


def test_samples_go_to_the_first_latent_that_is_sampled():
    parts = [latents.bernoulli(1), latents.normal(1)]
    vae = one_layer(latent=parts, estimator=[mc.Enumerate(), None])
    assert vae.decoder.in_features == 2
    x = all_bits(3)[[2]].repeat(2000, 1)
    few, many = (elbo(vae, x, count, generator=seeded()).var() for count in (1, 16))
    assert many < few / 8


def test_several_latents_each_with_its_own_estimator():
    torch.manual_seed(0)
    both = [latents.normal(2), latents.bernoulli(2)]
    vae = VAE(nn.Linear(3, 6), nn.Linear(4, 3), both, likelihoods.Bernoulli(), [None, mc.Enumerate()])
    x = all_bits(3)[[2, 7]]
    exact = []
    for _ in range(3000):  # the normals sampled, the bits summed by hand
        with torch.no_grad():
            normals, bits = vae.posterior(x)
            z = normals.sample()
            states = all_bits(2)[:, None].expand(-1, 2, -1)
            seen = [z.expand(4, -1, -1), states]
            weights = vae.log_weights(x.expand(4, -1, -1), seen, [normals, bits], 2)
            exact.append((bits.log_prob(states).exp() * weights).sum(0))
    exact = torch.stack(exact)
    found = repeated(lambda rows: elbo(vae, rows, generator=seeded(3)), x)
    spread = torch.hypot(standard_error(found), standard_error(exact))
    assert ((found.mean(0) - exact.mean(0)).abs() < 4 * spread).all()
    elbo(vae, x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    assert iwae(vae, x, 3).shape == robust_elbo(vae, x, -3.0).shape == (2,)


@pytest.mark.parametrize("name", sorted(latents.LATENTS))
def test_every_latent_trains(name):
    torch.manual_seed(0)
    latent = latents.LATENTS[name](*((3, 4) if name in ("categorical", "normal_mixture") else (4,)))
    vae = one_layer(latent=latent)
    x = all_bits(3)
    samples = 1 if latent.posterior(torch.zeros(1, latent.num_parameters)).has_rsample else 4
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.05)
    before = elbo(vae, x, 64, generator=seeded()).mean().detach()
    for step in range(60):
        optimizer.zero_grad()
        (-elbo(vae, x, samples, generator=seeded(step)).mean()).backward()
        optimizer.step()
    after = elbo(vae, x, 64, generator=seeded()).mean().detach()
    assert after > before + 0.02 and after < -math.log(8) + 1e-2  # eight pictures, alike: no model does better
    assert vae.sample(5, seeded()).shape == (5, 3) and vae.reconstruct(x, seeded()).shape == x.shape


def bad(value):
    x = torch.full((2, 3), 0.5)
    x[1, 2] = value
    return x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda vae: elbo(vae, bad(float("nan"))), DataError, r"1 of 6 values lie outside .* Bernoulli, \[0, 1\]"),
        (lambda vae: elbo(vae, bad(1.5)), DataError, "the first is 1.5"),
        (lambda vae: elbo(vae, torch.zeros(2, 3, dtype=torch.uint8)), DataError, "torch.uint8: convert it"),
        (lambda vae: elbo(vae, bad(0.0), 0), ConfigError, "at least one sample, got num_samples=0"),
        (lambda vae: iwae(vae, bad(0.0), 2, gradient="vimco"), ConfigError, "one of plain, stl, dreg"),
        (lambda vae: iwae(vae, bad(0.0), 2, gradient="dreg"), ConfigError, "DisARM of a latent Bernoulli does not"),
        (lambda vae: robust_elbo(vae, bad(0.0), math.nan), ConfigError, "log_alpha must be a number"),
        (lambda vae: robust_elbo(vae, bad(0.0), -3.0, variant="B2"), ConfigError, "elbo, expected, iwae"),
        (lambda vae: log_likelihood(vae, bad(0.0), 0), ConfigError, "at least one sample"),
        (lambda vae: vae.outlier_score(bad(0.0)), ConfigError, "needs vae.log_alpha"),
    ],
)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(one_layer())
    assert "\n" not in str(raised.value)


def test_weights_of_another_latent_are_refused():
    plain, other = (one_layer(latent=latents.LATENTS[kind](3)) for kind in ("normal", "logistic_normal"))
    with pytest.raises(WeightsError, match="weights of a VAE whose latent is normal, this one's is logistic_normal"):
        other.load_state_dict(plain.state_dict())
    plain.load_state_dict(one_layer(latent=latents.normal(3)).state_dict())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: latents.normal(0), "normal needs at least one coordinate, got 0"),
        (lambda: latents.gamma(2, concentration=-1.0), "prior of a latent gamma cannot be: .*concentration"),
        (lambda: latents.beta(2, concentration=0.0), "prior of a latent beta cannot be: .*concentration"),
        (lambda: latents.dirichlet(3, concentration=math.nan), "prior of a latent dirichlet cannot be"),
        (lambda: latents.bernoulli(2, probability=1.0), "probability between 0 and 1, got 1"),
    ],
)
def test_latents_that_cannot_be_are_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_networks_that_do_not_fit_are_refused():
    latent, likelihood = latents.normal(2), likelihoods.Bernoulli()
    with pytest.raises(ConfigError, match=r"encoder gave \(2, 5\) for 2 examples, its latents take \(2, 4\)"):
        elbo(VAE(nn.Linear(3, 5), nn.Linear(2, 3), latent, likelihood), bad(0.0))
    with pytest.raises(ConfigError, match=r"decoder gave \(1,\) for each example"):
        elbo(VAE(nn.Linear(3, 4), nn.Linear(2, 1), latent, likelihood), bad(0.0))
    with pytest.raises(ConfigError, match="1 latents and 2 estimators"):
        VAE(nn.Linear(3, 4), nn.Linear(2, 1), latent, likelihood, [None, None])
