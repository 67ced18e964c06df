"""VAEs as recipes describe them."""

import pytest
import torch

from accel.errors import ConfigError
from accel.mc import DisARM, Enumerate, Pathwise
from accel.vae import elbo, latents, likelihoods
from accel.zoo.vaes import build_vae

ARGUMENTS = {
    "categorical": {"sites": 2, "classes": 3},
    "normal_mixture": {"dim": 2, "components": 3},
}


@pytest.mark.parametrize("kind", sorted(latents.LATENTS))
def test_every_latent_can_be_named(kind):
    vae = build_vae({"shape": [1, 4, 3], "latent": {"kind": kind, **ARGUMENTS.get(kind, {"dim": 3})}, "hidden": [5]})
    assert vae.latents[0].kind == kind
    assert elbo(vae, torch.rand(7, 1, 4, 3), 2).shape == (7,)
    assert vae.sample(3).shape == (3, 1, 4, 3)


def test_the_decoder_starts_from_the_mean_of_the_data():
    for likelihood in ("bernoulli", "normal", "two_component"):
        table = {"shape": [6], "latent": {"kind": "normal", "dim": 2}, "intensity": 0.2, "likelihood": likelihood}
        vae = build_vae(table)
        with torch.no_grad():
            vae.decoder[-2].weight.zero_()
        torch.testing.assert_close(vae.sample(2), torch.full((2, 6), 0.2))
    assert (
        isinstance(vae.likelihood, likelihoods.TwoComponent) and abs(vae.likelihood.noise_output.sigmoid() - 0.2) < 1e-6
    )


def test_products_of_latents_and_an_estimator_for_each():
    parts = [{"kind": "bernoulli", "dim": 2}, {"kind": "normal", "dim": 3}]
    vae = build_vae({"shape": [4], "latent": parts, "estimator": ["enumerate", "pathwise"], "hidden": []})
    assert [type(found) for found in vae.given_estimators] == [Enumerate, Pathwise]
    assert vae.encoder[1].out_features == 2 + 6 and vae.decoder[0].in_features == 5
    one = build_vae({"shape": [4], "latent": parts[0], "estimator": "disarm"})
    assert isinstance(one.given_estimators[0], DisARM)


def test_topics_can_be_named():
    vae = build_vae({"network": "topics", "shape": [9], "latent": {"kind": "dirichlet", "dim": 4}, "hidden": [5]})
    assert vae.decoder.weight.shape == (4, 9) and isinstance(vae.likelihood, likelihoods.Multinomial)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"latent": {"kind": "cauchy"}}, r"vae\.latent\.kind must be one of .*von_mises.*, got 'cauchy'"),
        ({"latent": {"kind": "normal", "size": 3}}, r"\[vae\] does not fit: .*'size'"),
        ({"latent": {"kind": "normal", "dim": 2}, "width": 3}, r"\[vae\] does not fit: .*'width'"),
        ({"latent": {"kind": "normal", "dim": 0}}, "at least one coordinate"),
        ({"latent": {"kind": "normal", "dim": 2}, "activation": "gelu"}, r"vae\.activation must be one of tanh"),
        ({"latent": {"kind": "normal", "dim": 2}, "estimator": "guess"}, r"vae\.estimator must be one of pathwise"),
        ({"latent": {"kind": "normal", "dim": 2}, "likelihood": "poisson"}, r"vae\.likelihood must be bernoulli"),
        ({"latent": {"kind": "normal", "dim": 2}, "intensity": 0.0}, "between 0 and 1, got vae.intensity = 0.0"),
        (
            {"latent": {"kind": "normal", "dim": 2}, "network": "conv"},
            r"vae\.network must be one of perceptron, residual, topics",
        ),
        ({"latent": {"kind": "dirichlet", "dim": 2}, "network": "topics", "shape": [1, 8, 8]}, "topics are of counts"),
    ],
)
def test_what_cannot_be_is_one_line(table, message):
    with pytest.raises(ConfigError, match=message):
        build_vae({"shape": [4], **table})
