"""Ways through the latent space."""

import math

import pytest
import torch
from torch import nn

from accel.errors import ConfigError
from accel.tests.vae.models import one_layer
from accel.vae import VAE, latents, likelihoods
from accel.vae.paths import between, torus, wrapped


def test_angles_go_the_shorter_way_round():
    vae = one_layer(latent=latents.von_mises(2))
    start, end = torch.tensor([[3.0, 0.0]]), torch.tensor([[-3.0, 1.0]])
    (way,) = between(vae, [start], [end], 3)
    assert way.shape == (3, 1, 2)
    torch.testing.assert_close(way[:, 0, 1], torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(way[[0, 2], 0, 0], torch.tensor([3.0, -3.0]))
    assert math.isclose(abs(float(way[1, 0, 0])), math.pi, rel_tol=1e-5)  # through pi, not through 0
    assert wrapped(torch.tensor([math.pi, -4.0])).tolist() == pytest.approx([-math.pi, 2 * math.pi - 4])


def test_other_latents_go_straight_and_stay_in_their_support():
    vae = one_layer(latent=[latents.dirichlet(3), latents.normal(1)])
    start, end = [torch.eye(3)[:2], torch.zeros(2, 1)], [torch.eye(3)[1:], torch.ones(2, 1)]
    simplex, line = between(vae, start, end, 5)
    torch.testing.assert_close(simplex.sum(-1), torch.ones(5, 2))
    torch.testing.assert_close(line[:, 0, 0], torch.linspace(0, 1, 5))
    torch.testing.assert_close(simplex[-1], end[0])


def test_the_torus_is_swept_by_two_angles():
    vae = VAE(nn.Linear(1, 9), nn.Linear(6, 1), latents.von_mises(3), likelihoods.Normal())
    with torch.no_grad():
        vae.decoder.bias.zero_()
        vae.decoder.weight.copy_(
            torch.tensor([[1.0, 0.0, 0.0, 0.0, 10.0, 0.0]])
        )  # cos of the first, 10 sin of the second
    found = torus(vae, 4)[..., 0]
    expected = torch.tensor([1.0, 0.0, -1.0, 0.0])[:, None] + torch.tensor([0.0, 10.0, 0.0, -10.0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_has_no_way_is_refused():
    bits = one_layer()
    with pytest.raises(ConfigError, match="no way between values of the discrete latent bernoulli"):
        between(bits, [torch.zeros(1, 3)], [torch.ones(1, 3)], 3)
    with pytest.raises(ConfigError, match="at least 2 steps, got 1"):
        between(bits, [torch.zeros(1, 3)], [torch.ones(1, 3)], 1)
    for latent in (latents.normal(2), latents.von_mises(1), [latents.von_mises(2), latents.normal(1)]):
        with pytest.raises(ConfigError, match="torus needs one latent of two angles or more, this VAE has"):
            torus(one_layer(latent=latent), 4)
