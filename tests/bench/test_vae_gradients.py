"""Gradients of a small VAE by estimator: variances by hand, and a wrong gradient is found."""

import pytest
import torch

from accel.bench import vae_gradients
from accel.bench.runner import Settings, load_kind, read_cases

pytest.importorskip("sklearn")

CASE = {"dim": 2, "steps": 10, "batch": 20, "samples": 2, "draws": 300}  # a tenth of the draws where it is quick
FILE = "profiles/cases/vae_gradients.toml"


@pytest.mark.parametrize("latent", ["gamma", "beta"])
def test_the_score_function_is_noisier(latent):
    rows = {
        row["estimator"]: row
        for row in load_kind("vae_gradients").rows({**CASE, "latent": latent}, Settings(quick=True))
    }
    assert list(rows) == ["implicit", "torch", "score"]
    assert all(row["correct"] and row["ms"] > 0 and row["draws"] == 30 for row in rows.values())
    assert rows["implicit"]["times_implicit"] == 1 and 0.5 < rows["torch"]["times_implicit"] < 2
    assert rows["score"]["times_implicit"] > 3


def test_a_variance_is_that_of_the_draws(monkeypatch):
    gradients = iter(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double().unbind())
    seen = []

    def next_gradient(*_):
        seen.append(next(gradients))
        return seen[-1]

    monkeypatch.setattr(vae_gradients, "_gradient", next_gradient)
    projected, variance = vae_gradients.moments(None, None, 1, 50, torch.eye(3), 0)
    assert torch.equal(projected, torch.stack(seen))
    assert variance == pytest.approx(float(torch.stack(seen).var(0).sum()))


def test_a_wrong_gradient_is_found(monkeypatch):
    right = vae_gradients._gradient

    def off(vae, *args):
        found = right(vae, *args)
        return found * 1.3 if vae.latents[0].family is torch.distributions.Gamma else found

    monkeypatch.setattr(vae_gradients, "_gradient", off)
    rows = {
        row["estimator"]: row
        for row in vae_gradients.rows({**CASE, "latent": "gamma", "steps": 0}, Settings(quick=True))
    }
    assert rows["score"]["correct"] and not rows["torch"]["correct"]


def test_the_cases_of_the_project_are_read(request):
    file = read_cases(request.config.rootpath / FILE)
    assert [case["latent"] for case in file["case"]] == ["gamma", "beta"] and file["case"][0]["draws"] == 1000
