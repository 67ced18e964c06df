import copy
import pathlib

import pytest
import torch
from torch import nn

from accel import ops
from accel.masks import build_mask
from accel.zoo import demo_training
from accel.zoo.demo_net import DemoResNet, _mean_where, mask_iou
from accel.zoo.demo_training import demo_loss, evaluate, filled_from_nearest, step_loss, tomllib
from accel.zoo.registry import get_model
from accel.zoo.weights_io import load_weights

ZOO = pathlib.Path(__file__).parents[2] / "zoo"


@pytest.fixture
def recipe():
    return tomllib.loads((ZOO / "recipes" / "demo_resnet.toml").read_text(encoding="utf-8"))


def test_the_weights_in_the_package_do_what_they_are_for(recipe):
    path = ZOO / "weights" / "demo_resnet.safetensors"
    assert 1e6 < path.stat().st_size < 2e6
    model = get_model("zoo:demo_resnet").to(memory_format=torch.channels_last)
    recipe["test"]["pictures"] = 64
    for keep in (1.0, 0.5):
        accuracy, overlap = evaluate(model, recipe, keep)
        assert accuracy > 0.85 and overlap > 0.75


def test_output_shapes():
    out = DemoResNet(width=8).eval()(torch.zeros(2, 3, 48, 64))
    assert out.logits.shape == (2, 7) and out.mask.shape == (2, 1, 48, 64)


def test_features_are_averaged_over_the_object():
    features = torch.zeros(1, 2, 2, 2)
    features[0, :, 0, 0] = torch.tensor([3.0, 5.0])
    mask = torch.full((1, 1, 8, 8), -50.0)
    mask[:, :, :4, :4] = 50
    assert torch.allclose(_mean_where(features, mask), torch.tensor([[3.0, 5.0]]), rtol=0.01)
    blank = torch.full((1, 1, 8, 8), -50.0)
    assert torch.allclose(_mean_where(features, blank), torch.tensor([[0.75, 1.25]]), rtol=1e-5)


def test_mask_iou():
    logits = torch.tensor([[1.0, 1, -1, -1], [-1, -1, -1, -1]]).view(2, 1, 2, 2)
    masks = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]]).view(2, 1, 2, 2)
    assert torch.allclose(mask_iou(logits, masks), torch.tensor([1 / 3, 0.0]))


def test_training_fills_outputs_as_the_perforated_convolution_does():
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 17, 12)
    kept = build_mask("lattice", 0.25, 9, 6, generator=torch.Generator().manual_seed(5))
    expected = ops.perforated_conv2d(x, conv.weight, conv.bias, kept, stride=(2, 2), padding=(1, 1, 1, 1))
    model = nn.Sequential(conv, nn.Conv2d(4, 4, 1))
    dense = model(x)
    with filled_from_nearest(model, 0.25, "lattice", dense=["1"], seed=5):
        assert torch.allclose(model(x), model[1](expected), atol=1e-6)
    assert torch.equal(model(x), dense)  # the hooks are gone


def test_steps_are_repeatable_and_perforated_late(recipe, monkeypatch):
    recipe["data"].update(batch=2)
    torch.manual_seed(0)
    model = DemoResNet(width=8)
    keeps = []
    fill = filled_from_nearest

    def watch(model, keep, *args, **kwargs):
        keeps.append(keep)
        return fill(model, keep, *args, **kwargs)

    monkeypatch.setattr(demo_training, "filled_from_nearest", watch)
    first = step_loss(copy.deepcopy(model), 3, recipe)
    assert torch.equal(first, step_loss(copy.deepcopy(model), 3, recipe))
    assert not torch.equal(first, step_loss(copy.deepcopy(model), 4, recipe))
    assert set(keeps) == {1.0}
    keeps.clear()
    recipe["perforation"]["perforate_after"] = 0
    for step in range(12):
        step_loss(model, step, recipe)
    assert min(keeps) == 0.25 and len(set(keeps)) > 2


def test_loss_prefers_the_truth():
    masks = (torch.rand(2, 1, 8, 8) > 0.5).float()
    labels = torch.tensor([1, 4])
    out = DemoResNet(width=8).eval()(torch.zeros(2, 3, 8, 8))
    right = out._replace(logits=20 * nn.functional.one_hot(labels, 7).float(), mask=40 * (masks - 0.5))
    assert demo_loss(right, labels, masks, 1.0) < 0.01
    assert demo_loss(right, labels, 1 - masks, 1.0) > 5
    assert demo_loss(right, labels.flip(0), masks, 1.0) > 5


def test_recipe_to_weights(recipe, tmp_path, monkeypatch, capsys):
    recipe["model"]["width"] = 8
    recipe["data"].update(batch=4)
    recipe["fit"].update(steps=2)
    recipe["test"].update(pictures=8)
    file = tmp_path / "recipe.toml"
    file.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in fields.items())
            for section, fields in recipe.items()
        )
    )
    monkeypatch.setattr("sys.argv", ["demo_training", str(file), "--work", str(tmp_path / "work")])
    demo_training.main()
    assert {p.name for p in (tmp_path / "work").iterdir()} == {"checkpoint.pt", "demo_resnet.safetensors"}
    load_weights(DemoResNet(width=8), tmp_path / "work" / "demo_resnet.safetensors")
    assert "keep 0.250  accuracy" in capsys.readouterr().out


def _toml(value):
    return f'"{value}"' if isinstance(value, str) else str(value).replace("'", '"')
