"""VAEs by the robust bound and its rivals, and topic models beside scikit-learn's LDA: small ones, trained once."""

import math

import pytest

from accel.bench import trainings, vae_robust, vae_topics
from accel.bench.runner import Settings
from accel.cli.main import main
from accel.errors import ConfigError

pytest.importorskip("sklearn")

QUICK = Settings(quick=True)


@pytest.fixture
def trained_here(monkeypatch):
    """Trainings in this process, which are counted: others cost seconds each to start."""
    begun = []

    def run(command, folder):
        begun.append(folder)
        assert main(command[3:]) == 0

    monkeypatch.setattr(trainings, "_run", run)
    return begun


def test_every_method_beside_the_elbo(tmp_path, trained_here):
    case = {"name": "digits 1:1", "recipe": "vae_digits", "folder": str(tmp_path), "data": "digits", "width": 8}
    case |= {"pictures_of": "digits", "noise": 1.0, "clean": 16, "seeds": 2, "count": 30, "samples": 5}
    case |= {"methods": list(vae_robust.METHODS), "log_alphas": [-30.0, -38.0], "betas": [0.01]}
    case["set"] = ["fit.steps=10", "fit.checkpoint_every=10", 'vae.latent={kind="normal",dim=2}']
    case["set"].append('bound={kind="robust",log_alpha=-1.0}')
    rows = {row["method"]: row for row in vae_robust.rows(case, QUICK)}
    assert len(trained_here) == 9  # two seeds of four methods, and the log alpha that was not taken
    elbo, robust = rows["ELBO"], rows["robust"]
    assert "gain" not in elbo and all(row["correct"] and 0 <= row["auroc"] <= 1 for row in rows.values())
    assert len(robust["trimmed"]) == 2 and robust["trimmed"][str(robust["value"])] == max(robust["trimmed"].values())
    gains = [other - own for own, other in zip(robust["nlls"], elbo["nlls"])]
    assert robust["gain"] == pytest.approx(sum(gains) / 2, abs=2e-3)
    half = 12.706 * abs(gains[0] - gains[1]) / 2  # Student's t of one degree, the error of a mean of two
    assert robust["gain_high"] - robust["gain"] == pytest.approx(half, abs=0.03)
    best = min(rows["two components"]["nll"], rows["beta-ELBO"]["nll"])
    assert robust["behind"] == pytest.approx(robust["nll"] - best, abs=2e-3)
    again = {row["method"]: row for row in vae_robust.rows(case, QUICK)}  # from the folders: nothing is trained anew
    assert again == rows and len(trained_here) == 9
    drawn = vae_robust.draw(list(rows.values()))
    assert [len(panel.containers) for panel in drawn.axes] == [3, 1]


def test_clean_pictures_have_no_outliers(tmp_path, trained_here):
    case = {"name": "clean", "recipe": "vae_digits", "folder": str(tmp_path), "data": "digits", "width": 4}
    case |= {"pictures_of": "digits", "noise": 0.0, "clean": 16, "seeds": 1, "count": 20, "samples": 2}
    case |= {"methods": ["ELBO", "robust"], "log_alphas": [-38.0]}
    case["set"] = ["fit.steps=2", 'vae.latent={kind="normal",dim=2}', 'bound={kind="robust",log_alpha=-1.0}']
    elbo, robust = vae_robust.rows(case, QUICK)
    assert "auroc" not in elbo and "behind" not in robust and math.isfinite(robust["gain"])
    with pytest.raises(ConfigError, match="has 359 test pictures, of which 200 are judged and as many others choose"):
        list(vae_robust.rows({**case, "count": 200}, QUICK))


def test_topics_beside_scikit_learn(tmp_path, trained_here):
    path = tmp_path / "texts.ldac"
    path.write_text("".join(f"2 {k % 2}:{3 + k % 4} {2 + k % 3}:4\n" for k in range(60)), encoding="utf-8")
    path.with_suffix(".tokens").write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    case = {"name": "2 topics", "topics": 2, "data": str(path), "seeds": 2, "recipe": "topics"}
    case |= {"folder": str(tmp_path / "runs"), "rivals": {"default": {"max_iter": 5}}}
    case["set"] = ["fit.steps=40", "vae.hidden=[8]", "data.batch=30"]
    kinds = ("dirichlet", "logistic_normal")
    case["latents"] = {kind: [f'vae.latent={{kind="{kind}",dim=2}}'] for kind in kinds}
    rows = {row["method"]: row for row in vae_topics.rows(case, QUICK)}
    assert list(rows) == [*kinds, "scikit-learn, default"] and len(trained_here) == 4
    for row in rows.values():
        assert row["correct"] and 1 < row["perplexity"] < 6 and len(row["perplexities"]) == 2
    ours, rival = rows["dirichlet"], rows["scikit-learn, default"]
    assert ours["over_sklearn"] == pytest.approx(ours["perplexity"] / rival["perplexity"], abs=5e-3)
    assert ours["over_logistic_normal"] == pytest.approx(
        ours["perplexity"] / rows["logistic_normal"]["perplexity"], abs=5e-3
    )
