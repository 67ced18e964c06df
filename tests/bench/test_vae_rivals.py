"""VAEs beside pythae's: both learn, take turns, and are judged as the models they are."""

import sys

import pytest
import torch

from accel.bench import vae_rivals
from accel.bench.runner import Settings, read_cases
from accel.errors import ConfigError

pytest.importorskip("sklearn")

CASE = {
    "data": "digits",
    "train": 250,
    "dim": 2,
    "hidden": [16],
    "gradients": ["plain"],
    "batch": 50,
    "lr": 5e-3,
    "epochs": 3,
    "pictures": 40,
    "samples": 50,
}
FILE = "profiles/cases/vae_rivals.toml"


@pytest.mark.parametrize(("num_samples", "gradients"), [(1, ["plain"]), (3, ["plain", "dreg"])])
def test_sides_learn_and_are_compared_on_the_same_pictures(num_samples, gradients):
    pytest.importorskip("pythae")
    case = {**CASE, "num_samples": num_samples, "gradients": gradients}
    rows = {row["method"]: row for row in vae_rivals.rows(case, Settings())}
    assert list(rows) == [*(f"ours, {name}" for name in gradients), "pythae"]
    for row in rows.values():
        assert row["correct"] and row["error"] < 1e-5 and row["steps"] == 15 and row["epoch_s"] > 0
        assert 20 < row["nll"] < 40  # 64 bits that were not learnt: 44 nats
    for name in gradients:
        own = rows[f"ours, {name}"]
        assert own["behind"] == pytest.approx(own["nll"] - rows["pythae"]["nll"], abs=2e-3)
        assert own["behind_error"] > 0 and own["time_share"] > 0 and own["cpu_share"] > 0


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_rival_judged_as_another_model_is_found(monkeypatch, num_samples):
    """With its log variances taken for log deviations, pythae's loss is not that of the VAE that is judged."""
    pytest.importorskip("pythae")
    right = vae_rivals._log_variance_normal

    def wrong(dim):
        latent = right(dim)
        links = latent.links
        latent.links = lambda raw: links(raw * torch.tensor([1.0, 2.0]))
        return latent

    monkeypatch.setattr(vae_rivals, "_log_variance_normal", wrong)
    rows = list(vae_rivals.rows({**CASE, "num_samples": num_samples, "epochs": 1}, Settings()))
    assert not any(row["correct"] for row in rows)


def test_without_pythae_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pythae.data.datasets", None)
    with pytest.raises(ConfigError, match=r"vae_rivals needs pythae .* pip install 'skimconv\[bench\]'"):
        next(vae_rivals.rows({**CASE, "num_samples": 1}, Settings()))


def test_the_cases_of_the_project_are_read(request):
    file = read_cases(request.config.rootpath / FILE)
    assert [case["num_samples"] for case in file["case"]] == [1, 5, 50]
    assert {case["samples"] for case in file["case"]} == {5000}
