"""The calibration report: its scores against their definitions, and what it says of a model that knows the truth."""

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra impute brings pandas")
pytest.importorskip("sklearn", reason="the extra impute brings scikit-learn")

from accel.errors import ConfigError, DataError  # noqa: E402
from accel.vae import MAR, Imputer  # noqa: E402
from accel.vae.calibration import _numeric_row, crps  # noqa: E402
from accel.vae.columns import Column  # noqa: E402

SMALL = {"epochs": 20, "width": 16, "depth": 1, "latent": 4, "random_state": 0}


def table(rows=400):
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.poisson(2.0, rows)})
    made["c"] = np.where(made["a"] + 0.1 * rng.normal(size=rows) > 0, "up", "down")
    made["noise"] = rng.normal(size=rows)
    made["flag"] = rng.random(rows) < 0.5
    made["same"] = 1.0
    return made


def test_crps_is_the_definition():
    """E|X - y| - E|X - X'| / 2, over distinct pairs; of a normal in closed form."""
    rng = np.random.default_rng(0)
    truth, draws = rng.normal(size=5), rng.normal(size=(5, 7))
    for y, x, found in zip(truth, draws, crps(truth, draws)):
        pairs = np.abs(x[:, None] - x[None]).sum() / (7 * 6)
        np.testing.assert_allclose(found, np.abs(x - y).mean() - pairs / 2)
    exact = (np.sqrt(2) - 1) / np.sqrt(np.pi)  # of N(0, 1) at 0
    found = crps(np.zeros(400), rng.normal(size=(400, 50)))
    assert abs(found.mean() - exact) < 4 * found.std() / 20


def test_it_tells_columns_that_can_be_known_from_those_that_cannot():
    data = table()
    found = Imputer(**(SMALL | {"epochs": 120, "learning_rate": 3e-3})).calibration_report(
        data, share=0.3, num_samples=100
    )
    rows = {row["column"]: row for row in found.rows}
    assert set(rows) == {"a", "b", "c", "noise", "flag"} and found.refitted
    assert [row["column"] for row in found.rows if "pfc" in row] == ["flag", "c"]  # the worst first
    assert rows["a"]["nrmse"] < 0.9 < rows["noise"]["nrmse"] < 1.2
    assert rows["c"]["pfc"] < 0.6 * rows["c"]["pfc_mode"] and 0.6 < rows["flag"]["log_loss"] < 0.8
    for name in ("a", "b", "noise"):
        covered = [rows[name][f"coverage_{level}"] for level in (50, 80, 90, 95)]
        assert covered == sorted(covered) and 0.75 < covered[2] <= 1
        assert 80 < rows[name]["hidden"] < 160 and len(found.observed[name]) == len(found.imputed[name])
    assert str(found).count("\n") == 6 and "nrmse" in found.to_html() and found.plot().axes


def test_a_fitted_model_is_judged_as_it_is():
    data = table()
    imputer = Imputer(**SMALL).fit(data[:300])
    weights = {name: tensor.clone() for name, tensor in imputer.model_.state_dict().items()}
    found = imputer.calibration_report(data[300:], refit=False, masks=MAR(0.3, (0,)))
    assert {row["column"] for row in found.rows} == {"b", "c", "noise", "flag"} and not found.refitted
    assert all((weights[name] == tensor).all() for name, tensor in imputer.model_.state_dict().items())
    again = imputer.calibration_report(data[300:], refit=False, masks=MAR(0.3, (0,)))
    assert again.rows == found.rows


def test_rare_classes_and_arrays():
    """A class whose every row is hidden is still a class."""
    data = table(100)
    data["c"] = ["rare"] + ["often"] * 98 + ["too"]
    for seed in range(6):
        assert Imputer(**(SMALL | {"epochs": 1})).calibration_report(data, share=0.5, random_state=seed).rows
    x = np.random.default_rng(0).normal(size=(100, 2))
    assert {row["column"] for row in Imputer(**SMALL).calibration_report(x).rows} == {"0", "1"}


def test_intervals_of_few_draws_are_not_too_narrow():
    """Of 39 draws the ends fall on draws themselves, so that nothing is interpolated."""
    rng = np.random.default_rng(0)
    row = _numeric_row(Column("a", "real"), rng.normal(size=20_000), np.zeros(20_000), rng.normal(size=(20_000, 39)))
    assert abs(row["coverage_50"] - 0.5) < 0.02 and abs(row["coverage_90"] - 0.9) < 0.01


def test_what_cannot_be_judged_is_refused():
    imputer = Imputer(**SMALL)
    for options in ({"share": 0.0}, {"share": 1.0}, {"num_samples": 1}):
        with pytest.raises(ConfigError, match="share must lie in"):
            imputer.calibration_report(table(), **options)
    with pytest.raises(DataError, match="no known cell"):
        imputer.calibration_report(pd.DataFrame({"a": [1.0] * 30}))
