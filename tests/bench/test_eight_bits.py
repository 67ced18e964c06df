"""Bench cases of kind `eight_bits`, on a small network and drawn pictures."""

import numpy as np
import pytest
from PIL import Image

from accel.bench import eight_bits, runner


@pytest.fixture
def case(tmp_path, monkeypatch):
    monkeypatch.setattr(eight_bits, "_openvino", lambda *_: {})  # takes a minute, where it is installed
    drawn = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    whole, half = {"keep": 1.0, "precision": "int8"}, {"keep": 0.5, "mask": "lattice", "precision": "int8"}
    return {
        **{"model": "zoo:resnet20_cifar", "images": str(tmp_path), "size": [32, 32], "batch": [2], "calibrate": 3},
        "forms": [{"keep": 1.0}, whole, half, {**half, "interpolate": "fitted"}, {**half, "low_rank": 0.5}],
        "whole": ["conv1"],
    }


def test_every_form_is_judged_and_timed(case):
    rows = list(eight_bits.rows(case, runner.Settings(quick=True)))
    dense, *forms = rows
    assert dense["form"].startswith("dense_") and dense["mean_abs_difference"] == 0 and dense["speedup"] == 1
    names = ["whole fp32", "whole int8", "0.5 nearest int8", "0.5 fitted int8", "low rank 0.5, 0.5 nearest int8"]
    assert [row["form"] for row in forms] == names
    assert all(row["correct"] and row["ms"] > 0 and row["pictures"] == 2 for row in rows)
    assert 0 < forms[1]["mean_abs_difference"] < forms[2]["mean_abs_difference"]


def test_a_wrong_network_is_not_timed(case, monkeypatch):
    monkeypatch.setattr(eight_bits, "_tolerance", lambda form: -1.0 if "int8" in form else 1e-4)
    rows = list(eight_bits.rows(case, runner.Settings(quick=True)))
    assert [row["correct"] for row in rows] == [False, False, False, False, True, True]
    assert ["ms" in row for row in rows] == [row["correct"] for row in rows]
