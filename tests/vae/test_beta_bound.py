"""The beta-ELBO against sums over all latents and all pictures, and its limit."""

import math

import pytest
import torch

from accel.errors import ConfigError
from accel.mc import Enumerate
from accel.tests.vae.models import all_bits, linear_gaussian, one_layer, seeded
from accel.vae import beta_elbo, elbo, latents
from accel.vae.objective import Bound, Objective

X = all_bits(3)[[1, 6, 7]]


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_it_is_the_sum_over_all_latents_and_all_pictures(beta):
    vae = one_layer(estimator=Enumerate())
    states, pictures = all_bits(3), all_bits(3)
    with torch.no_grad():
        q = vae.posterior(X)[0]
        shares = q.log_prob(states[:, None].expand(-1, len(X), -1)).exp()
        bits = vae.decoder(states).sigmoid()
        every = torch.stack([(pictures * p + (1 - pictures) * (1 - p)).prod(-1) for p in bits])  # [latents, pictures]
        own = torch.stack([every[:, int(x @ torch.tensor([1.0, 2.0, 4.0]))] for x in X], 1)
        gains = (own**beta - 1) / beta - ((every ** (1 + beta)).sum(1) - 1)[:, None] / (1 + beta)
        prior = vae.latents[0].prior().log_prob(states)[:, None]
        expected = (shares * (gains + prior - shares.log())).sum(0)
    torch.testing.assert_close(beta_elbo(vae, X, beta).detach(), expected)


def test_it_becomes_the_elbo_as_beta_falls():
    vae = one_layer(latent=latents.normal(2))
    close = beta_elbo(vae, X, 1e-4, 5, generator=seeded())
    torch.testing.assert_close(close, elbo(vae, X, 5, generator=seeded()), rtol=0, atol=2e-3)


def test_a_recipe_can_name_it():
    vae = one_layer(latent=latents.normal(2))
    bound = Bound(kind="beta", beta=0.01)
    expected = -beta_elbo(vae, X, 0.01, generator=seeded()).mean()
    torch.testing.assert_close(Objective(vae, bound)(X, 0, seeded()), expected)


@pytest.mark.parametrize("options", [{"kind": "beta"}, {"kind": "beta", "beta": math.nan}, {"beta": 0.1}])
def test_beta_is_for_this_bound_and_above_0(options):
    with pytest.raises(ConfigError, match=r"beta of the beta-ELBO must be|beta is of the bound beta"):
        Bound(**options)


def test_what_has_no_sum_over_all_pictures_is_refused():
    vae, _ = linear_gaussian()
    with pytest.raises(ConfigError, match="likelihood Bernoulli, got Normal"):
        beta_elbo(vae, torch.zeros(2, 3), 0.1)
    two = one_layer(latent=[latents.normal(2), latents.normal(1)])
    with pytest.raises(ConfigError, match="takes one latent"):
        beta_elbo(two, X, 0.1)
