"""The study of foreign networks under ACT and SACT: what is equal, what is refused, and that what is wrong shows."""

import json
import pathlib

import pytest
import torch
from torch import nn

from accel.bench import foreign_sact, runner
from accel.bench.foreign_nets import Foreign
from accel.cli import main
from accel.nn.fused_stage import FusedStage
from accel.zoo.registry import get_model

CASES = pathlib.Path(__file__).parents[2] / "profiles" / "cases" / "foreign_sact.toml"


def foreign(model: nn.Module) -> Foreign:
    return Foreign(model.eval(), lambda pictures: (pictures,), lambda net, arguments: net(*arguments))


def judged(model: nn.Module) -> dict:
    torch.manual_seed(0)
    network, pictures = foreign(model), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        foreign_sact.draw_norms(network, pictures, torch.Generator().manual_seed(0))
        return foreign_sact.check(network, (pictures[:2],))


def test_the_zoo_is_equal():
    row = judged(get_model("zoo:resnet20_cifar"))
    assert row["outcome"] == "equal" and (row["stages"], row["refused"], row["reason"]) == (3, 0, "")
    assert 0 < row["error"] <= foreign_sact.TOLERANCE


def test_what_is_refused_says_why_and_the_rest_is_compared():
    model = get_model("zoo:resnet20_cifar")
    model.layer2[1].bn1 = nn.Sequential(model.layer2[1].bn1, nn.SiLU())
    row = judged(model)
    assert row["outcome"] == "equal" and (row["stages"], row["refused"]) == (2, 1)
    assert row["reason"].startswith("unit layer2.1 (")
    assert judged(nn.Sequential(nn.Conv2d(3, 4, 3)))["reason"] == "no sequence of residual units"


@pytest.mark.parametrize("column", ["act", "sact"])
def test_what_is_wrong_shows(column, monkeypatch):
    right = FusedStage.run

    def wrong(self, x):
        found = right(self, x)
        if found is not None and self._spatial == (column == "sact"):
            found.output.mul_(1.01)
        return found

    monkeypatch.setattr(FusedStage, "run", wrong)
    row = judged(get_model("zoo:resnet20_cifar"))
    assert row["outcome"] == "wrong" and row[column] > foreign_sact.TOLERANCE
    assert row["act" if column == "sact" else "sact"] <= foreign_sact.TOLERANCE


def test_the_case_file_has_ninety_networks_and_more():
    file = runner.read_cases(CASES)
    names = [case["name"] for case in file["case"]]
    assert len(set(names)) == len(names) >= 90 and all(len(case["size"]) == 2 for case in file["case"])


def test_the_command_writes_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(foreign_sact, "isolated", lambda work, seconds: work())
    cases, output = tmp_path / "cases.toml", tmp_path / "rows.jsonl"
    cases.write_text('kind = "foreign_sact"\n[[case]]\nname = "torchvision:resnet18"\nsize = [32, 32]\n')
    assert main.main(["bench", str(cases), "--output", str(output)]) == 0
    (row,) = map(json.loads, output.read_text().splitlines())
    assert row["outcome"] == "equal" and row["stages"] == 4 and "torchvision:resnet18" in capsys.readouterr().out
