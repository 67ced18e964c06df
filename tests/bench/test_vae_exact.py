"""A model whose likelihood is known: its bounds lie below and rise, and a wrong bound is found."""

import pytest
import torch

from accel.bench import vae_exact
from accel.bench.runner import Settings, read_cases

CASE = {"latents": 2, "values": 3, "scale": 0.6, "slack": 0.8, "examples": 20, "repeats": 20, "num_samples": [5, 50]}
CASE |= {"samples": 500, "estimates": 20}


def test_bounds_rise_and_the_estimate_is_exact():
    rows = list(vae_exact.rows({**CASE, "repeats": 60}, Settings()))
    assert [row["quantity"] for row in rows] == ["ELBO", "IWAE-5", "IWAE-50", "importance sampling, 500"]
    assert all(row["correct"] for row in rows)
    assert rows[0]["gap"] > rows[1]["gap"] > rows[2]["gap"] > 0 and rows[1]["rise_z"] > 1
    assert abs(rows[3]["gap"]) < 0.05 and rows[3]["gap_z"] < 4


def test_the_exact_posterior_leaves_no_gap_but_its_correlations():
    """With one latent the marginal deviation is the whole posterior: every bound is exact."""
    case = {**CASE, "latents": 1, "slack": 1.0, "repeats": 5}
    vae, marginal = vae_exact._model(case, torch.Generator().manual_seed(0))
    x = marginal.sample((4,))
    (q,) = vae.posterior(x)
    z = q.sample((3,))
    found = vae.log_weights(x.expand(3, 4, 3), [z], [q], 2)
    assert (found - marginal.log_prob(x)).abs().max() < 1e-3


@pytest.mark.parametrize(("name", "shift"), [("iwae", 1.0), ("evidence", 0.5), ("iwae", -5.0)])
def test_a_wrong_bound_is_found(monkeypatch, name, shift):
    right = getattr(vae_exact, name)
    monkeypatch.setattr(vae_exact, name, lambda *args, **options: right(*args, **options) + shift)
    assert not all(row["correct"] for row in vae_exact.rows(CASE, Settings()))


def test_the_cases_of_the_project_are_read(request):
    file = read_cases(request.config.rootpath / "profiles/cases/vae_exact.toml")
    assert [case["slack"] for case in file["case"]] == [0.9, 0.67]
