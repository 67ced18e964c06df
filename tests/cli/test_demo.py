import json
import re

import pytest
import torch

from accel.cli import demo, demo_pictures
from accel.cli.main import main


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The demo on few and small pictures, in an empty folder."""
    monkeypatch.setattr(demo, "_REPEATS", 2)
    monkeypatch.setattr(demo, "_BATCH", 2)
    monkeypatch.setattr(demo, "_TEST_PICTURES", 8)
    monkeypatch.setattr(demo, "SIZE", 80)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_writes_a_report_that_stands_alone(quick, capsys):
    assert main(["demo", "--quiet"]) == 0
    assert sorted(path.name for path in (quick / "demo").iterdir()) == [
        "kept_positions.png",
        "objects.png",
        "report.html",
        "results.json",
    ]
    page = (quick / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 2
    assert not re.search(r"https?://|<script|<link", page)
    out = capsys.readouterr().out
    for name in ("dense, nchw", "keep 1/2", "keep 1/4"):
        assert name in page and name in out

    results = json.loads((quick / "demo" / "results.json").read_text())
    rows = {row["network"]: row for row in results["rows"]}
    dense = rows["dense, channels last"]
    assert dense["share_of_macs"] == 1 and dense["macs"] == rows["dense, nchw"]["macs"]
    for name, keep in demo.KEEPS.items():
        assert rows[name]["share_of_macs"] == pytest.approx(keep, abs=0.03)
        assert rows[name]["speedup_by_macs"] == pytest.approx(1 / rows[name]["share_of_macs"])
        assert 0 < rows[name]["mask_iou"] <= 1 and rows[name]["ms_per_picture"] > 0
    assert {row["speedup"] for row in rows.values() if row["network"].startswith("dense")} >= {1.0}


def test_other_formats_and_replacing_an_older_report(quick, capsys):
    (quick / "again").mkdir()
    (quick / "again" / "report.html").write_text("older")
    assert main(["demo", "--quiet", "--format", "json", "-o", "again"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6
    assert [path.name for path in quick.iterdir()] == ["again"]
    assert "<title>accel demo</title>" in (quick / "again" / "report.html").read_text()


def test_a_folder_of_somebody_else_is_left_alone(quick, capsys):
    (quick / "demo").mkdir()
    (quick / "demo" / "thesis.txt").write_text("mine")
    assert main(["demo", "--quiet"]) == 1
    assert "holds files that this command did not write" in capsys.readouterr().err
    assert [path.name for path in (quick / "demo").iterdir()] == ["thesis.txt"]


def test_cut_out_keeps_the_object_and_pales_the_rest():
    images = torch.rand(1, 3, 2, 2)
    masks = torch.tensor([[[[True, False], [False, False]]]])
    out = demo_pictures.cut_out(images, masks)
    assert torch.equal(out[0, :, 0, 0], images[0, :, 0, 0])
    assert out[0, :, 1, 1].min() >= 0.8 and out[0, :, 1, 1].unique().numel() == 1
