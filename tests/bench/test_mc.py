"""The estimator study: files, rows and the numbers that do not depend on luck."""

import json
import sys

import pytest

from accel.bench import mc, mc_cases, mc_logistic, mc_toy
from accel.cli import main
from accel.errors import DataError

FEW = ("Enumerate", "DisARM", "StraightThrough, mean")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_verb_writes_every_table_and_figure(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the breast-cancer data come with scikit-learn")
    monkeypatch.setattr(mc_cases, "METHODS", {name: mc_cases.METHODS[name] for name in FEW})
    assert main.main(["bench", "mc", "--quick", "--seed", "3", "--output", str(tmp_path)]) == 0
    names = {"mc", "mc_ztest", "mc_toy", "mc_dimension", "mc_logistic"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.jsonl" for name in names} | {
        f"{name}.png" for name in names - {"mc", "mc_ztest"}
    }
    rows = {name: read(tmp_path / f"{name}.jsonl") for name in names}
    for row in (row for table in rows.values() for row in table):
        assert row["seed"] == 3 and row["torch"] and row["date"] and row["case"]
    exact = [row for row in rows["mc_ztest"] if row["estimator"] == "Enumerate"]
    assert len(exact) == len(mc_cases.FINITE) * (len(mc_cases.INTEGRANDS) + 1)
    assert all(row["z"] == 0 and abs(row["bias"]) < 1e-9 for row in exact)
    pairs = [row for row in rows["mc_ztest"] if row["estimator"] == "DisARM"]
    assert {row["evaluations_per_sample"] for row in pairs} == {2.0}
    assert {row["estimator"] for row in rows["mc_logistic"]} == set(mc_logistic.FITS)
    ratio = next(row for row in rows["mc"] if row["case"].startswith("leave-one-out"))["ratio"]
    assert ratio > 100
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in names - {"mc", "mc_ztest"})


def test_planted_bias_is_seen_at_the_published_size():
    assert mc.planted_row(100_000, 0) > 4


def test_toy_rows_are_the_closed_forms():
    rows = mc_toy.integrand_sweeps(20_000, 0)
    means = {(row["case"], row["k"], row["estimator"]): row["mean"] for row in rows if row["parameter"] == "loc"}
    for k in mc_toy.SWEEPS["(x - k)^2"][1]:
        assert means["(x - k)^2", k, "measure-valued, coupled"] == pytest.approx(2 * (1 - k), abs=0.1)
    assert {row["estimator"] for row in rows} == set(mc_toy.ESTIMATORS)


def test_a_missing_package_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        mc.run(tmp_path)
    assert not list(tmp_path.iterdir())
