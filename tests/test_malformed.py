"""Three hundred damaged folders, rules and weight files: each is refused in one line, or still means something."""

import hashlib
import json
import random
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import accel
from accel import SACT, Perforate, Rules
from accel.cli import main
from accel.errors import AccelError
from accel.tests.damage import damage_bytes, damage_json, damage_tensors, one_line
from accel.zoo.registry import get_model
from accel.zoo.weights_io import load_weights

EACH = 100


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def saved_folders():
    """(folder maker, dense model, input): perforated in two precisions, and adaptive."""
    rules = Rules(
        {
            "0": Perforate(keep=0.5, mask="lattice", interpolate="fitted", precision="int8"),
            "3": Perforate(keep=0.4, mask="impact"),
        }
    )
    yield accel.convert_model(net().eval(), rules, example_inputs=X, calibration=X), net().eval(), X
    picture = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    resnet = get_model("zoo:resnet14_cifar", weights="none").eval()
    yield accel.convert_model(resnet, SACT(), example_inputs=picture), resnet, picture


def damage_folder(folder, draw):
    config, weights = folder / "config.json", folder / "model.safetensors"
    what = draw.randrange(4)
    data = json.loads(config.read_text())
    if what == 0:
        damage_bytes(draw.choice([config, weights]), draw)
    elif what == 1:
        damage_json(data, draw)
        config.write_text(json.dumps(data))
    else:
        tensors = load_file(weights)
        if what == 2:
            damage_tensors(tensors, draw)
            save_file(tensors, weights)
        else:
            damage_bytes(weights, draw)
        data["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()  # whoever damages it may do so on purpose
        config.write_text(json.dumps(data))


@pytest.mark.parametrize("which", [0, 1])
def test_folders(which, tmp_path):
    fast, dense, x = list(saved_folders())[which]
    refused = 0
    for seed in range(EACH // 2):
        draw, folder = random.Random(seed), tmp_path / str(seed)
        accel.save_converted(fast, folder)
        damage_folder(folder, draw)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                accel.load_converted(folder, dense)(x)
            except AccelError as error:
                refused += one_line(error)
    assert EACH // 4 < refused < EACH // 2
    assert {path.name for path in tmp_path.iterdir()} == {str(seed) for seed in range(EACH // 2)}


RULES = """
[[rule]]
layers = "0"
keep = 0.5
mask = "lattice"
interpolate = "weighted"
neighbors = 4

[[rule]]
layers = "3"
dense = true
"""
NETS = """
from torch import nn

def net():
    flat = nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (12, 12)))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), flat, nn.Identity(), nn.Conv2d(8, 4, 3))
"""


def test_rules_on_the_command_line(tmp_path, capsys):
    (tmp_path / "nets.py").write_text(NETS)
    accel_rules = Rules({"0": Perforate(keep=0.5, mask="lattice"), "4": None})
    ends = []
    for seed in range(EACH):
        draw = random.Random(seed)
        path = tmp_path / ("rules.toml" if seed % 2 else "rules.json")
        if seed % 2:
            path.write_text(RULES.replace('"3"', '"4"'))
            damage_bytes(path, draw)
        else:
            data = accel_rules.to_dict()
            damage_json(data, draw)
            path.write_text(json.dumps(data))
        ends.append(main.main(["plan", f"{tmp_path}/nets.py:net", "--size", "12", "--rules", str(path), "--quiet"]))
        captured = capsys.readouterr()
        if ends[-1]:
            assert captured.err.startswith("accel: ") and "Traceback" not in captured.err, captured.err
            one_line(captured.err.strip())
    assert set(ends) <= {0, 1} and EACH / 2 < sum(ends) < EACH


def test_weight_files(tmp_path):
    refused = 0
    for seed in range(EACH):
        draw, path = random.Random(seed), tmp_path / f"{seed}.{'pt' if seed % 2 else 'safetensors'}"
        tensors = dict(net().state_dict())
        byte_wise = draw.random() < 0.5
        if not byte_wise:
            damage_tensors(tensors, draw)
        torch.save(tensors, path) if seed % 2 else save_file(tensors, path)
        if byte_wise:
            damage_bytes(path, draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_weights(net(), path)
            except AccelError as error:
                refused += one_line(error)
    assert EACH / 3 < refused < EACH
