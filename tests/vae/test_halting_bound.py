"""A decoder that decides how long it computes: the bound against its parts, gradients, and what evaluation runs."""

import pytest
import torch
from torch import nn

import accel
from accel import PACT
from accel.errors import ConfigError, ConversionError
from accel.mc import Concrete, DisARM, Enumerate, LeaveOneOut, ScoreFunction
from accel.mc.sampling import draw
from accel.nn.adaptive import adaptive_stages, make_adaptive
from accel.tests.vae.models import seeded
from accel.vae import VAE, elbo, halting_elbo, latents, likelihoods, log_likelihood
from accel.vae.objective import Bound, Objective
from accel.zoo.picture_decoder import STAGES, PictureDecoder
from accel.zoo.vaes import build_vae

SHAPE = (1, 8, 8)
X = (torch.rand(5, *SHAPE, generator=seeded(1)) < 0.4).float()


def built(config=None, latent=None, units=3):
    torch.manual_seed(0)
    latent = latents.normal(3) if latent is None else latent
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, latent.num_parameters))
    decoder = PictureDecoder(latent.num_features, SHAPE, width=4, units=units)
    if config is not None:
        make_adaptive(decoder, dict.fromkeys(STAGES, config))
    return VAE(encoder, decoder, latent, likelihoods.Bernoulli()).eval()  # batch norms by their statistics


def halting_bias(vae, bias):
    """Of the log odds of every head."""
    found = [p for name, p in vae.decoder.named_parameters() if ".halting." in name and p.shape == (1,)]
    assert len(found) == 4  # two stages of three units, the last of which needs none
    for parameter in found:
        nn.init.constant_(parameter, bias)


@pytest.mark.parametrize("estimator", [Concrete(2 / 3), ScoreFunction(LeaveOneOut()), DisARM()])
def test_heads_that_never_halt_pay_for_every_unit(estimator):
    """The bound is then the plain one, less tau for each unit of each stage."""
    plain, vae = built(), built(PACT(tau=0.25, estimator=estimator))
    halting_bias(vae, -40.0)
    found = halting_elbo(vae, X, 512, generator=seeded(2))
    expected = elbo(plain, X, 4096, generator=seeded(3))
    torch.testing.assert_close(found, expected.mean() - 0.25 * 2 * 3, atol=0.15, rtol=0)


def test_the_bound_is_the_decoders_expected_loss_and_the_divergence():
    """Exact in the decisions: the ways to halt, three in each of two stages, are enumerated."""
    vae = built(PACT(tau=0.1, spatial=False, estimator=Enumerate()))
    found = halting_elbo(vae, X, generator=seeded(4))
    (q,) = vae.posterior(X)
    z = draw(q.expand((1, len(X))), seeded(4), True)
    divergence = torch.distributions.kl_divergence(q, vae.latents[0].prior()).mean()
    features = vae.features([z]).flatten(0, 1)
    spent = accel.expected_loss(vae.decoder, features, lambda out: -vae.likelihood.log_prob(out, X, 1))
    torch.testing.assert_close(found, -spent - divergence)


@pytest.mark.parametrize("estimator", [Concrete(2 / 3), ScoreFunction(LeaveOneOut()), DisARM()])
@pytest.mark.parametrize("spatial", [True, False])
def test_gradients_reach_everything(estimator, spatial):
    vae = built(PACT(tau=0.1, estimator=estimator, spatial=spatial))
    vae.train()
    halting_bias(vae, -0.5)
    Objective(vae, Bound(kind="halting"))(X, 0, seeded(5)).backward()
    missing = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    heads = [p.grad for name, p in vae.named_parameters() if ".halting." in name]
    assert len(heads) > 0 and any(float(grad.abs().max()) > 0 for grad in heads)
    assert all(float(p.grad.abs().max()) > 0 for p in vae.encoder.parameters())


def test_a_latent_by_samples_alone_has_its_divergence_sampled():
    latent = latents.normal_mixture(2, components=2)
    vae = built(PACT(tau=0.1), latent)
    found = halting_elbo(vae, X, 3, generator=seeded(6))
    assert found.isfinite() and found.requires_grad


def test_evaluation_halts_and_gives_likelihoods():
    vae = built(PACT(tau=0.1))
    halting_bias(vae, 1.0)
    features = torch.randn(7, 3, generator=seeded(7))
    with torch.no_grad():
        out = vae.decoder(features)
        with accel.dense_execution(vae.decoder):
            torch.testing.assert_close(out.logits, vae.decoder(features).logits)
    assert out.executed_share < 1
    assert vae.decode([features]).shape == (7, *SHAPE)
    assert log_likelihood(vae, X, 20, generator=seeded(8)).shape == (5,) and vae.sample(2).shape == (2, *SHAPE)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="latents with pathwise gradients, and bernoulli has none"):
        halting_elbo(built(PACT(tau=0.1), latents.bernoulli(4)), X)
    with pytest.raises(ConversionError, match="no PACT stage"):
        halting_elbo(built(), X)
    with pytest.raises(ConfigError, match="a decoder with PACT stages is not trained by the bound 'elbo'"):
        Objective(built(PACT(tau=0.1)), Bound())
    with pytest.raises(ConfigError, match="a decoder without PACT stages is not trained by the bound 'halting'"):
        Objective(built(), Bound(kind="halting"))
    with pytest.raises(ConfigError, match=r"multiples of 4, got shape \[1, 6, 8\]"):
        PictureDecoder(3, (1, 6, 8))
    with pytest.raises(ConfigError, match="at least one sample"):
        halting_elbo(built(PACT(tau=0.1)), X, 0)


def test_recipes_describe_it():
    table = {"shape": [1, 8, 8], "latent": {"kind": "normal", "dim": 2}, "network": "residual", "width": 4, "units": 2}
    assert not adaptive_stages(build_vae(table).decoder)
    vae = build_vae({**table, "halting": {"tau": 0.05, "target": 0.5, "estimator": "DisARM"}})
    stages = adaptive_stages(vae.decoder)
    assert len(stages) == 2 and isinstance(stages[0].config.estimator, DisARM) and stages[0].config.target == 0.5
    with pytest.raises(ConfigError, match="unknown field 'taux'"):
        build_vae({**table, "halting": {"taux": 1}})
    with pytest.raises(ConfigError, match="must be one of perceptron, residual, topics"):
        build_vae({**table, "network": "dense"})
