"""The benchmark of frontiers: its rows are what the networks do, its figure shows every row."""

import json

import PIL.Image
import pytest
import torch

import accel
from accel.bench import frontier, runner
from accel.cli.main import main
from accel.cli.training import build, save_state
from accel.errors import ConfigError
from accel.nn.adaptive import AdaptiveOutput, AdaptiveStage, HaltingHead
from accel.zoo.datasets import load_pictures
from accel.zoo.registry import get_model, preprocess

WHOLE, PART = "zoo:resnet20_cifar", "zoo:resnet14_cifar"
CASE = """
kind = "frontier"
[[case]]
name = "tiny"
model = "zoo:resnet20_cifar"
data = "{0}/data"
batch = 4
timed = true
compiled = false
run = [
    {{ name = "whole", weights = "{0}/whole.safetensors", epochs = 2 }},
    {{ name = "SACT", weights = "{0}/sact.safetensors", adaptive = {{ kind = "sact", tau = 0.2 }}, epochs = 1 }},
    {{ name = "ACT", weights = "{0}/act.safetensors", adaptive = {{ kind = "act", target = 0.5 }}, epochs = 1 }},
    {{ name = "part", weights = "{0}/part.safetensors", model = "zoo:resnet14_cifar", epochs = 1 }},
]
"""


@pytest.fixture
def networks(tmp_path):
    """The networks of CASE, whose weights, pictures and case file are in the folder."""
    for index in range(10):
        folder = tmp_path / "data" / "test" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        PIL.Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    torch.manual_seed(0)
    found = {
        "whole": get_model(WHOLE),
        "SACT": build(WHOLE, "none", {"kind": "sact", "tau": 0.2}),
        "ACT": build(WHOLE, "none", {"kind": "act", "target": 0.5}),
        "part": get_model(PART),
    }
    for name, network in found.items():
        for module in network.modules():
            if isinstance(module, HaltingHead):
                torch.nn.init.constant_(module.conv.bias, -0.3)
                module.conv.weight.data.mul_(4)
        save_state(network.eval(), tmp_path / f"{name.lower()}.safetensors")
    (tmp_path / "case.toml").write_text(CASE.format(tmp_path))
    return found


def test_rows_are_what_the_networks_do(tmp_path, networks, capsys):
    output = tmp_path / "rows.jsonl"
    assert main(["bench", str(tmp_path / "case.toml"), "--quick", "--quiet", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["network"], row["method"], row.get("tau"), row["epochs"]) for row in rows] == [
        ("whole", "dense", None, 2),
        ("SACT", "sact", 0.2, 1),
        ("ACT", "act", None, 1),
        ("part", "shallower", None, 1),
    ]
    pictures = load_pictures(tmp_path / "data", "test")
    x = preprocess(WHOLE, pictures.pictures)
    dense = accel.count_macs(networks["whole"], x[:1])
    for row in rows:
        network = networks[row["network"]]
        with torch.inference_mode():
            out = network(x)
        logits = out.logits if isinstance(out, AdaptiveOutput) else out
        assert row["correct"] and row["pictures"] == 10
        assert row["accuracy"] == pytest.approx(float((logits.argmax(1) == pictures.labels).double().mean()))
        shares = accel.count_macs(network, x, per_image=True).double() / dense
        assert row["macs_share"] == pytest.approx(float(shares.mean()), abs=1e-4)
        assert row["share_deviation"] == pytest.approx(float(shares.std(unbiased=False)), abs=1e-4)
        assert row["share_95%"] == pytest.approx(float(shares.quantile(0.95)), abs=1e-4)
        assert ("time_share" in row) == (row["network"] != "whole")
        assert row.get("time_share", 1) > 0 and row.get("error", 0) <= frontier.TOLERANCE
    assert rows[3]["macs_share"] < 0.7 < rows[0]["macs_share"] == 1
    assert rows[1]["share_deviation"] > 0
    with PIL.Image.open(tmp_path / "rows.png") as picture:
        assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    assert "share_95%" in capsys.readouterr().out


def test_a_network_that_errs_is_not_judged(tmp_path, networks, monkeypatch):
    right = AdaptiveStage.forward
    monkeypatch.setattr(AdaptiveStage, "forward", lambda self, x: right(self, x) * (1 if self._dense else 1.001))
    file = runner.read_cases(tmp_path / "case.toml")
    rows = runner.measure(file, runner.Settings(quick=True))
    assert [row["correct"] for row in rows] == [True, False, False, True]
    assert [("accuracy" in row, "time_share" in row) for row in rows[:2]] == [(True, False), (False, False)]


def test_networks_of_one_name_are_refused(tmp_path, networks):
    (case,) = runner.read_cases(tmp_path / "case.toml")["case"]
    runs = [*case["run"], {**case["run"][1], "name": "part"}]
    with pytest.raises(ConfigError, match="'tiny' need names of their own, got whole, SACT, ACT, part, part"):
        next(frontier.rows({**case, "run": runs}, runner.Settings(quick=True)))


def test_the_figure_has_a_line_for_every_method():
    row = {"case": "a", "share_5%": 0.4, "share_95%": 0.6}
    rows = [
        {**row, "network": "1", "method": "sact", "macs_share": 0.55, "accuracy": 0.8},
        {**row, "network": "2", "method": "sact", "macs_share": 0.5, "accuracy": 0.7},
        {**row, "network": "3", "method": "dense", "macs_share": 1.0, "accuracy": 0.9},
        {**row, "network": "4", "method": "act", "correct": False},
        {**row, "case": "b", "network": "5", "method": "act", "macs_share": 0.5, "accuracy": 0.6},
    ]
    first, second = frontier.draw(rows).axes
    assert [line.get_label() for line in first.containers] == ["dense", "sact"]
    points = first.containers[1].lines[0].get_xydata()
    assert points.tolist() == [pytest.approx([50, 70]), pytest.approx([55, 80])]
    assert sorted(text.get_text() for text in first.texts) == ["1", "2", "3"]
    assert first.get_title() == "a" and [line.get_label() for line in second.containers] == ["act"]
