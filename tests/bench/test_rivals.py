"""The rivals of perforation and the benchmark that sets them beside it."""

import json

import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from accel import Perforate, Rules
from accel.bench import rivals, runner
from accel.bench.rival_nets import Shrunk, pruned
from accel.errors import ConfigError
from accel.zoo.cifar import CifarResNet
from accel.zoo.hed import HED
from accel.zoo.registry import get_model


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def silence(conv, norm, channels):
    """Make the channels the weakest, and without effect."""
    conv.weight[channels] = 0
    norm.weight[channels], norm.bias[channels], norm.running_mean[channels] = 0, 0, 0


@torch.inference_mode()
def test_pruning_silent_channels_of_a_residual_network_changes_nothing():
    torch.manual_seed(0)
    net = CifarResNet(8).eval()
    for unit in (net.layer1[0], net.layer2[0], net.layer3[0]):
        silence(unit.conv1, unit.bn1, torch.arange(0, unit.conv1.out_channels, 2))
    thin, x = pruned(net, 0.5), drawn(1, 2, 3, 32, 32)
    assert [unit.conv1.out_channels for unit in (thin.layer1[0], thin.layer3[0])] == [8, 32]
    torch.testing.assert_close(thin(x), net(x), rtol=1e-4, atol=1e-4)
    assert net.layer1[0].conv1.out_channels == 16


@torch.inference_mode()
def test_pruning_silent_channels_of_hed_changes_nothing():
    torch.manual_seed(0)
    net, x = HED().eval(), drawn(1, 1, 3, 32, 32)
    for layer in net.features:
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight[::2], layer.bias[::2] = 0, 0
    thin = pruned(net, 0.5)
    assert thin.features[2].weight.shape == (32, 32, 3, 3) and thin.side[4].in_channels == 256
    torch.testing.assert_close(thin(x), net(x), rtol=1e-4, atol=1e-4)


def test_only_known_networks_are_pruned():
    with pytest.raises(ConfigError, match="not for Linear"):
        pruned(torch.nn.Linear(2, 2), 0.5)


@torch.inference_mode()
def test_a_shrunk_network_enlarges_maps_only():
    x = drawn(0, 1, 3, 8, 12)
    halves = Shrunk(torch.nn.Identity(), (4, 6))(x)
    assert halves.shape == x.shape and not torch.equal(halves, x)
    torch.testing.assert_close(Shrunk(torch.nn.Identity(), (8, 12))(x), x)
    assert Shrunk(torch.nn.Flatten(), (4, 6))(x).shape == (1, 72)


def test_the_largest_rival_that_is_as_fast(monkeypatch):
    monkeypatch.setattr(rivals, "_median_ms", lambda networks, x: networks)  # a network is its milliseconds
    assert rivals._largest(lambda part: part, 17.0, None) == 17
    assert rivals._largest(lambda part: part, 0.1, None) == 1
    assert rivals._largest(lambda part: part, 99.0, None) == 64


@pytest.fixture
def case(tmp_path):
    torch.manual_seed(0)
    save_file(CifarResNet(20).state_dict(), tmp_path / "net.safetensors")
    rules = Rules({"conv1": None, "*": Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4)})
    (tmp_path / "rules.json").write_text(json.dumps(rules.to_dict()))
    for index in range(12):
        folder = tmp_path / "data" / ("train", "test")[index > 7] / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        PIL.Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return {
        "name": "tiny",
        "model": "zoo:resnet20_cifar",
        "weights": str(tmp_path / "net.safetensors"),
        "rules": str(tmp_path / "rules.json"),
        "data": str(tmp_path / "data"),
        "batch": 4,
        "calibrate": 8,
        "judge": 4,
        "parts": {"shrunk": 44, "pruned": 32},
    }


def test_rows_before_and_after_finetuning(case):
    rows = list(rivals.rows({**case, "finetune": 2, "lr": 1e-4}, runner.Settings(quick=True)))
    assert [(row["network"], row["finetuned"]) for row in rows] == [
        (name, steps) for steps in (0, 2) for name in ("ours", "shrunk", "pruned")
    ]
    assert all(row["minutes"] >= 0 for row in rows[3:]) and not any("minutes" in row for row in rows[:3])
    ours, shrunk, thin = rows[:3]
    assert ours["correct"] and ours["macs_reduction"] == pytest.approx(1.98, abs=0.02) and ours["memory_reduction"] > 0
    assert shrunk["setting"] == "22x22" and thin["setting"] == "32/64 of the channels"
    for row in (ours, shrunk, thin):
        assert row["pictures"] == 4 and row["speedup"] > 0
        assert row["drop"] - ours["drop"] == pytest.approx(100 * (ours["accuracy"] - row["accuracy"]))


def test_ours_may_be_made_shorter_and_low_rank_before(case):
    case = {**case, "without": ["layer2.1", "layer3.*"], "low_rank": 0.9, "whole": ["layer1.*"]}
    dense = get_model(case["model"], weights=case["weights"])
    base = rivals._base(case, dense, rivals._labelled(case, seed=0))
    assert [type(base.get_submodule(name)) for name in ("layer2.1", "layer3.1", "layer3.2")] == [torch.nn.Identity] * 3
    low_rank = [name for name, part in base.named_modules() if name[-5:-1] == "conv" and len(list(part.children()))]
    assert low_rank and not any(name.startswith("layer1.") for name in low_rank)
    rows = list(rivals.rows(case, runner.Settings(quick=True)))
    assert (rows[0]["without"], rows[0]["low_rank"]) == (case["without"], 0.9) and "without" not in rows[1]
    assert rivals._line(rows[0]) == "ours, fewer units, low rank"


def test_photos_are_judged_that_nothing_was_fitted_on(tmp_path, monkeypatch):
    for index in range(5):
        pixels = torch.full((16, 16, 3), 40 * index, dtype=torch.uint8)
        PIL.Image.fromarray(pixels.numpy()).save(tmp_path / f"{index}.png")
    case = {"model": "zoo:hed_vgg16", "images": str(tmp_path), "size": [16, 16], "batch": 1, "calibrate": 2, "train": 3}
    seen = []

    def network(x):
        seen.append(float(x.mean()))
        return x[:, :1].sigmoid()

    task = rivals._photos(case, network)
    assert len(task.known) == 2 and len(task.lessons) == 3
    seen.clear()
    assert task.judge(network)["pictures"] == 2 and seen == pytest.approx([120 - 114.8, 160 - 114.8], abs=0.1)


def test_the_figure_has_a_panel_a_family_and_lines_before_and_after_fine_tuning():
    row = {"network": "ours", "finetuned": 0, "speedup": 2.0, "drop": 3.0}
    rows = [
        {**row, "case": "net_3x", "speedup": 3.0, "drop": 5.0},
        {**row, "case": "net_2x"},
        {**row, "case": "net_2x", "finetuned": 9, "drop": -0.5},
        {**row, "case": "net_2x", "network": "shrunk", "drop": 7.0},
        {**row, "case": "net_2x_low", "low_rank": 0.5, "drop": 1.0},
        {"case": "net_4x", "network": "ours", "correct": False},
        {"case": "edges_2x", "network": "ours", "finetuned": 0, "speedup": 2.0, "mean_abs_difference": 0.1},
    ]
    first, second = rivals.draw(rows).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in first.lines}
    low = {"ours, low rank": [[2, 1]]}
    assert lines == {"ours": [[2, 3], [3, 5]], "ours, fine-tuned": [[2, -0.5]], "shrunk": [[2, 7]], **low}
    assert (first.get_title(), first.get_yscale()) == ("net", "symlog")
    assert (second.get_title(), second.get_yscale()) == ("edges", "log")
