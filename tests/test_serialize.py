"""Saved folders: faithful, complete or absent, and refused with one clear line when they do not fit."""

import contextlib
import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import accel
from accel import Perforate, Rules
from accel.convert import perforated_layers
from accel.errors import AccelError, ConversionError, WeightsError
from accel.profiling.sides import in_format


class Net(nn.Module):
    """Two convolutions, a norm, and a head tied to the first convolution's weight."""

    def __init__(self, width=8, layers=2):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, width, 3), *(nn.Conv2d(width, width, 3) for _ in range(layers - 1)))
        self.pool = nn.MaxPool2d(3, 2)
        self.norm = nn.BatchNorm2d(width)
        self.tied = nn.Conv2d(3, width, 3)
        self.tied.weight = self.convs[0].weight

    def forward(self, x):
        return self.norm(self.pool(self.convs(x))).mean((2, 3)) + self.tied(x).mean((2, 3))


def image():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def fast():
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.normal_(net.norm.running_mean)
    rules = Rules(
        {"convs.0": Perforate(keep=0.4, mask="impact"), "convs.1": Perforate(keep=0.3, mask="pooling"), "*": None}
    )
    return accel.convert_model(net, rules, example_inputs=image(), calibration=[image()])


def test_a_saved_model_comes_back_the_same(fast, tmp_path):
    accel.save_converted(fast, tmp_path / "new" / "folder")
    torch.manual_seed(99)
    dense = Net().eval()
    loaded = accel.load_converted(tmp_path / "new" / "folder", dense)
    assert torch.equal(loaded(image()), fast(image())) and not loaded.training
    assert {n: m.config for n, m in perforated_layers(loaded).items()} == {
        n: m.config for n, m in perforated_layers(fast).items()
    }
    assert loaded.tied.weight is loaded.convs[0].weight
    assert not perforated_layers(dense) and loaded.convs[1].weight.data_ptr() != dense.convs[1].weight.data_ptr()
    assert loaded.convs[1].pooling == fast.convs[1].pooling is not None


def test_the_folder_holds_json_and_safetensors_only(fast, tmp_path):
    accel.save_converted(fast, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert "impact:convs.0" in load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["version"] == 1 and config["aliases"] == {"tied.weight": "convs.0.weight"}


def fitted_model():
    torch.manual_seed(0)
    rules = Rules({"tied": None, "*": Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4)})
    return accel.convert_model(Net().eval(), rules, example_inputs=image(), calibration=[image()])


def test_a_fit_is_saved_and_serves_at_other_sizes(tmp_path):
    fast = fitted_model()
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, Net().eval())
    larger = torch.randn(1, 3, 21, 26, generator=torch.Generator().manual_seed(2))
    for x in (image(), larger):
        assert torch.equal(loaded(x), fast(x))


@pytest.mark.parametrize("field, message", [("weights", "damaged fit"), (None, "lacks the fit of layer 'convs.0'")])
def test_an_incomplete_fit_is_refused(field, message, tmp_path):
    accel.save_converted(fitted_model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    wanted = f"fit:convs.0:{field or ''}"
    save_file(
        {key: value for key, value in tensors.items() if not key.startswith(wanted)}, tmp_path / "model.safetensors"
    )
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    change_config(tmp_path, sha256=digest)
    with pytest.raises(WeightsError, match=message):
        accel.load_converted(tmp_path, Net().eval())


def test_saving_again_replaces(fast, tmp_path):
    accel.save_converted(fast, tmp_path)
    with torch.no_grad():
        fast.convs[0].weight.mul_(2)
    accel.save_converted(fast, tmp_path)
    assert torch.equal(accel.load_converted(tmp_path, Net().eval())(image()), fast(image()))


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "config.json").unlink(), r"cannot read .*config\.json .*No such file"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"cannot read .*model\.safetensors .*No such file"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "not the config of a converted model"),
        (lambda folder: change_config(folder, format="other"), "not the config of a converted model"),
        (lambda folder: change_config(folder, version=5), "is of version 5, expected one of"),
        (
            lambda folder: change_config(folder, layers={"convs.0": {"config": {"version": 1}}}),
            r"config\.json is damaged",
        ),
        (lambda folder: change_config(folder, layers=3), r"config\.json is damaged"),
        (lambda folder: change_config(folder, sha256="0" * 64), r"does not belong to the config\.json beside it"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 90), "does not belong .* or is damaged"),
    ],
)
def test_damage_is_named(fast, tmp_path, damage, message):
    accel.save_converted(fast, tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsError, match=message) as caught:
        accel.load_converted(tmp_path, Net())
    assert "\n" not in str(caught.value) and isinstance(caught.value, AccelError)


def test_a_file_that_is_no_safetensors_is_named(fast, tmp_path):
    accel.save_converted(fast, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors at all")
    import hashlib

    change_config(tmp_path, sha256=hashlib.sha256(b"not tensors at all").hexdigest())
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        accel.load_converted(tmp_path, Net())


@pytest.mark.parametrize(
    "model, message",
    [
        (Net(width=4), r"made from another model: 'convs.0.weight' is \(8, 3, 3, 3\) .* and \(4, 3, 3, 3\)"),
        (Net(layers=3), "made from another model: the saved one has no 'convs.2.weight'"),
        (nn.Linear(2, 2), "made from another model: the saved one has no 'weight'"),
        (Net().half(), r"torch.float32 there, and .* torch.float16"),
    ],
)
def test_another_architecture_is_named(fast, tmp_path, model, message):
    accel.save_converted(fast, tmp_path)
    with pytest.raises(WeightsError, match=message):
        accel.load_converted(tmp_path, model)


def test_a_layer_that_is_no_convolution_any_more_is_named(fast, tmp_path):
    class Own(nn.Conv2d):
        pass

    accel.save_converted(fast, tmp_path)
    other = Net()
    other.convs[1] = Own(8, 8, 3)
    with pytest.raises(WeightsError, match=r"has no convolution 'convs\.1'"):
        accel.load_converted(tmp_path, other)


def test_what_cannot_be_saved_is_refused(fast, tmp_path):
    with pytest.raises(ConversionError, match="convert it before saving"):
        accel.save_converted(Net(), tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="choose a folder you may write to"):
        accel.save_converted(fast, tmp_path / "file")


def test_a_failed_write_leaves_the_old_folder_whole(fast, tmp_path, monkeypatch):
    accel.save_converted(fast, tmp_path)
    expected = fast(image())

    def full_disk(tensors, path):
        save_file({"x": torch.zeros(1)}, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(WeightsError, match="No space left on device"):
        accel.save_converted(fast, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert torch.equal(accel.load_converted(tmp_path, Net().eval())(image()), expected)


class Sides(nn.Module):
    """Two inputs, groups, a 1x1 map, and a layer that the calibration data never reaches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(2, 8, 3, padding=1)
        self.grouped, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 4, 3)
        self.point, self.aside = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)

    def forward(self, left, right):
        x = self.last(torch.relu(self.grouped(torch.relu(self.left(left) + self.right(right)))))
        return x + self.point(x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("correct", ["scale", "weights"])
@torch.no_grad()
def test_every_kind_of_fit_comes_back_the_same(correct, tmp_path):
    model, generator = Sides().eval(), torch.Generator().manual_seed(0)
    x = tuple(torch.randn(4, channels, 12, 12, generator=generator) for channels in (3, 2))
    config = Perforate(keep=0.5, mask="lattice", interpolate="fitted", correct=correct)
    fast = accel.convert_model(model, config, example_inputs=x, calibration=[x])
    assert fast.point.fit.nearest.all() and fast.aside.fit.nearest.all() and not fast.grouped.fit.nearest.all()
    fast.grouped.set_fit(fast.grouped.fit.with_nearest(torch.arange(8) == 3))
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, model)
    for size in (12, 7):
        part = tuple(each[..., :size, :size] for each in x)
        assert torch.equal(loaded(*part), fast(*part))
    assert torch.equal(loaded.grouped.fit.nearest, torch.arange(8) == 3)


class Versioned(nn.Sequential):
    """As torchvision's MNASNet: refuses a state that does not say which version of the module it is from."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.parametrize("inner", [False, True])
def test_modules_learn_their_version_when_they_load(inner, tmp_path):
    x = torch.randn(1, 3, 8, 8)

    def make():
        model = Versioned(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        return nn.Sequential(model, nn.ReLU()).eval() if inner else model.eval()

    fast = accel.convert_model(make(), Perforate(keep=0.5), example_inputs=x)
    accel.save_converted(fast, tmp_path)
    with torch.no_grad():
        assert torch.equal(accel.load_converted(tmp_path, make())(x), fast(x))


def test_a_folder_of_before_still_loads():
    from accel.tests.saved_net import FOLDER, WAYS, Net, image

    loaded = accel.load_converted(FOLDER, Net().eval())
    assert [layer.config for layer in loaded.convs] == WAYS
    expected = load_file(FOLDER / "expected.safetensors")["output"]
    for use in (contextlib.nullcontext(), accel.ops.use_backend("reference")):
        with torch.no_grad(), use:
            torch.testing.assert_close(loaded(image()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("made", ["converted", "fitted", "of a model from there", "loaded", "copied to be timed"])
def test_what_is_made_under_inference_mode_is_as_fast_as_elsewhere(made, tmp_path):
    """Writes to tensors made there are counted by nobody: weights would be packed, and programs recorded, at every
    call."""
    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    build = lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval()  # noqa: E731
    dense, config = build(), accel.Perforate(keep=0.5, interpolate="fitted" if made == "fitted" else "nearest")
    outside = accel.convert_model(dense, config, example_inputs=x, calibration=[x])
    accel.save_converted(outside, tmp_path / "saved")
    with torch.inference_mode():
        if made == "loaded":
            fast = accel.load_converted(tmp_path / "saved", build())
        elif made == "copied to be timed":
            fast = in_format(outside, x, torch.channels_last).args[0]
        else:
            source = build() if made == "of a model from there" else dense
            fast = accel.convert_model(source, config, example_inputs=x, calibration=[x])
            dense = source
    tensors = [*fast.parameters(), *fast.buffers()]
    assert tensors and not any(tensor.is_inference() for tensor in tensors)
    with torch.inference_mode():
        expected = accel.convert_model(dense, config, example_inputs=x, calibration=[x])(x)
        assert torch.equal(fast(x), expected)
    fast.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in fast.parameters())


class Twice(nn.Module):
    """A convolution under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.same = self.again

    def forward(self, x):
        return self.same(self.again(self.first(x).relu()).relu())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@torch.no_grad()
def test_layers_of_low_rank_come_back_on_the_dense_model(tmp_path, precision):
    torch.manual_seed(0)
    net, x = Twice().eval(), image()
    low = accel.decompose_model(net, calibration=[x], ranks={"first": 3, "again": 5})
    config = Perforate(keep=0.5, mask="lattice", precision=precision)
    fast = accel.convert_model(low, config, example_inputs=x, calibration=[x])
    accel.save_converted(fast, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["version"] == (4 if precision == "int8" else 3)
    for model in (net, Twice().eval(), low):
        loaded = accel.load_converted(tmp_path, model)
        assert torch.equal(loaded(x), fast(x)) and loaded.again is loaded.same
    with pytest.raises(
        WeightsError, match="was made from another model: no convolution of one group is called 'first'"
    ):
        accel.load_converted(tmp_path, Net())


@pytest.mark.parametrize(
    "ranks, said",
    [
        ({"first": 9}, "has ranks from 1 to 8, got 9"),
        ({"first": "3"}, "has ranks from 1 to 8, got '3'"),
        ({"": 3}, "no convolution of one group is called ''"),
        ([], "ranks of the wrong kind"),
    ],
)
def test_ranks_that_a_layer_cannot_have_are_named(tmp_path, ranks, said):
    net, x = Twice().eval(), image()
    low = accel.decompose_model(net, calibration=[x], ranks={"first": 3})
    accel.save_converted(accel.convert_model(low, Perforate(keep=0.5), example_inputs=x), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ranks": ranks}))
    with pytest.raises(WeightsError, match=said):
        accel.load_converted(tmp_path, net)
