"""Bench cases of kind `eight_bits`, on a small network and drawn pictures."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from accel.bench import eight_bits, runner
from accel.kernels.dispatch import active_backend
from accel.nn.perforated import PerforatedConv2d

convert = eight_bits._converted


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
    right = PerforatedConv2d.forward

    def wrong(layer, input, **options):
        out = right(layer, input, **options)
        planted = layer.config.in_bytes and isinstance(input, torch.Tensor) and active_backend(input) == "cpu"
        return out * 1.001 if planted and not options else out

    monkeypatch.setattr(PerforatedConv2d, "forward", wrong)
    monkeypatch.setattr(eight_bits, "_converted", functools.partial(converted, right))
    rows = list(eight_bits.rows(case, runner.Settings(quick=True)))
    assert [row["correct"] for row in rows] == [False, False, False, False, True, True]
    assert ["ms" in row for row in rows] == [row["correct"] for row in rows]
    assert all(row["layer_error"] == pytest.approx(1e-3, rel=1e-2) for row in rows[:4])


def converted(right, *given):
    """The conversion itself would refuse a wrong layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerforatedConv2d, "forward", right)
        return convert(*given)


def test_pages_are_judged_by_their_boxes(case):
    pages = {**case, "model": "zoo:ppocr_det", "pages": 5, "size": [64, 96], "batch": [1], "whole": []}
    pages["forms"] = [{"keep": 1.0}, {"keep": 0.5, "mask": "lattice", "only": ["p2o/Conv/61"]}]
    dense, whole, half = eight_bits.rows(pages, runner.Settings(quick=True))
    assert dense["box_f1"] == whole["box_f1"] == 1 and 0 <= half["box_f1"] <= 1
    assert 0 < half["mean_abs_difference"] < 0.1 and half["pictures"] == 2


def row(form, ms, loss):
    return {"case": "net", "batch": 1, "form": form, "ms": ms, "mean_abs_difference": loss}


def test_a_shrunk_rival_as_fast_lies_between_those_timed():
    shrunk = [row("openvino int8, 20x20", 4.0, 0.04), row("openvino int8, 10x10", 1.0, 0.16)]
    ours = [row("dense_nchw", 9.0, 0.0), row("whole int8", 8.0, 0.01), row("0.5 nearest int8", 2.0, 0.04)]
    found = list(eight_bits._beside_shrunk([*ours, *shrunk]))
    assert [each.get("shrunk") for each in found] == [None, None, 2.0, None, None]  # 0.08 at two milliseconds
    assert list(eight_bits._beside_shrunk(ours)) == ours


def test_a_panel_for_every_case_and_batch():
    drawn = eight_bits.draw([row("dense_nchw", 9.0, 0.0), row("whole int8", 8.0, 0.01)])
    (panel,) = drawn.axes
    assert panel.get_title() == "net, batch 1" and len(panel.lines) == 2
