"""VAEs by latent and by estimator: rows are about the trained weights, and a wrong gradient is found."""

import pytest
import torch

from accel.bench import trainings, vae_gradients, vae_latents, vae_runs
from accel.bench.runner import Settings, read_cases
from accel.cli.main import main
from accel.mc import DisARM
from accel.vae import VAE, likelihoods
from accel.vae.latents import bernoulli
from accel.zoo.vaes import build_vae

pytest.importorskip("sklearn")

FILES = ("profiles/cases/vae_latents.toml", "profiles/cases/vae_bits.toml")
SMALL = ["fit.steps=40", "fit.lr=5e-3", 'data={name="digits",batch=50,binarise="dynamic"}']
QUICK = Settings(quick=True)


@pytest.fixture
def every(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "_run", lambda command, _: main(command[3:]))  # a process of its own takes seconds
    return {"recipe": "vae", "folder": str(tmp_path), "pictures": 30, "samples": 20, "against": "first"}


def of(latent, more="", bound='bound={kind="elbo"}'):
    return [*SMALL, f"vae={{latent={latent},hidden=[16]{more}}}", bound]


def test_latents_are_compared_on_the_same_pictures(every):
    normal = {**every, "name": "first", "set": of('{kind="normal",dim=3}')}
    beta = {**every, "name": "beta", "set": of('{kind="beta",dim=3}')}
    (first,) = vae_latents.rows(normal, QUICK)
    assert first["correct"] and 0 < first["gained"] < 30 and "behind" not in first and first["steps"] == 40
    (second,) = vae_latents.rows(beta, QUICK)
    assert second["correct"] and second["latent"] == "beta" and second["dim"] == 3
    assert second["behind"] == pytest.approx(second["nll"] - first["nll"], abs=2e-3)
    assert second["bound_ahead"] == pytest.approx(second["bound"] - first["bound"], abs=2e-3)
    assert -second["bound"] > second["nll"] and "variance" not in second
    drawn = vae_latents.draw([{"case": "first", **first}, {"case": "beta", **second}])
    assert [panel.images[0].get_array().shape for panel in drawn.axes] == [(64, 64)] * 2


def test_gradients_are_compared_at_the_same_weights(every, monkeypatch):
    every |= {"batch": 20, "draws": 300}
    first = {**every, "name": "first", "set": of('{kind="bernoulli",dim=8}', ',estimator="disarm"')}
    plain = of('{kind="bernoulli",dim=8}', ',estimator="score"', 'bound={kind="elbo",num_samples=2}')
    score = {**every, "name": "score", "set": plain}
    next(vae_latents.rows(first, QUICK))
    (row,) = vae_latents.rows(score, QUICK)
    assert row["correct"] and row["draws"] == 30 and row["worst_z"] < 5
    assert row["variance_ratio"] > 2  # without a baseline
    right = vae_gradients._gradient

    def off(vae, *args):
        found = right(vae, *args)
        return found if isinstance(vae.given_estimators[0], DisARM) else found + 1.0

    monkeypatch.setattr(vae_gradients, "_gradient", off)
    (row,) = vae_latents.rows(score, QUICK)
    assert not row["correct"] and row["worst_z"] > 5
    (row,) = vae_latents.rows({**score, "biased": True}, QUICK)
    assert row["correct"]


def test_the_bound_is_that_of_the_bits_themselves():
    """By enumeration of two bits, although the gradients are those of relaxed ones."""
    torch.manual_seed(0)
    table = {"shape": [1, 2, 2], "latent": {"kind": "bernoulli", "dim": 2}, "estimator": "concrete", "hidden": [4]}
    vae = build_vae(table)
    x = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 2)[:, None]
    with torch.no_grad():
        (q,) = vae.posterior(x)
        weights = vae.log_weights(x.expand(4, *x.shape), [states], [q], 2)
        exact = float((q.log_prob(states).exp() * weights).sum())
    assert float(vae_runs.exact_bound(vae, x, 20_000, 0)) == pytest.approx(exact, abs=0.02)


def test_independent_pixels_have_the_likelihood_of_a_vae_that_says_so():
    x = (torch.rand(6, 1, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Unflatten(1, (1, 2, 3)))
    torch.nn.init.zeros_(decoder[0].weight)
    torch.nn.init.constant_(decoder[0].bias, float(torch.logit(torch.tensor(0.3))))
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2))
    vae = VAE(encoder, decoder, bernoulli(2), likelihoods.Bernoulli())
    with torch.no_grad():
        told = vae.log_conditional(x, [torch.zeros(6, 2)], 1)
    assert vae_latents._independent(x, 0.3) == pytest.approx(float(told.mean()), rel=1e-6)


def test_the_cases_of_the_project_are_read(request):
    latents, bits = (read_cases(request.config.rootpath / file)["case"] for file in FILES)
    assert [case["name"] for case in latents] == ["Normal", "Gamma", "Beta", "von Mises", "Gamma(10, 10)"]
    assert len(bits) == 10 and all(case["against"].endswith(", DisARM") for case in bits)
    assert [case["name"] for case in bits if case.get("biased")] == ["Fashion, Concrete", "Omniglot, Concrete"]
