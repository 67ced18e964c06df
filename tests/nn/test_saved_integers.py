"""Saved networks in eight bits: the integers that they multiplied are those that they multiply, however later versions
round; and the parameters beside them stay what they are."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import accel
from accel import Perforate, Rules
from accel.errors import WeightsError
from accel.files import write_tensors
from accel.nn import quantized
from accel.nn.quantized import Quantization
from accel.profiling.distances import relative_norm
from accel.running import one_by_one
from accel.tests.nn.eight_bits import WHOLE, convert, pictures

HALF = Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4, precision="int8")


class Net(nn.Module):
    """Norms whose gains are negative and zero too, groups, a layer by itself, and a linear one."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.body, self.after = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.last, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.after(self.body(x)) + x)
        return self.head(self.last(x).mean((2, 3)))


def dense_net():
    torch.manual_seed(0)
    net = Net().eval()
    for norm in (net.norm, net.after):
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, -1.0, 1.5)
    with torch.no_grad():
        net.norm.weight[2] = 0.0
    return net


@pytest.fixture(scope="module")
def dense():
    return dense_net()


@pytest.fixture(scope="module")
def fast(dense):
    return convert(dense, Rules({"body": HALF, "*": WHOLE}))


@pytest.fixture
def folder(fast, tmp_path):
    accel.save_converted(fast, tmp_path)
    return tmp_path


def rounded_down(weight, clip):
    largest = weight.flatten(1).abs().amax(1)
    scale = (largest * clip / 100).clamp_min(1e-9)
    return (weight / scale.view(-1, *[1] * (weight.dim() - 1))).floor().clamp(-100, 100), scale


@torch.no_grad()
def test_what_was_saved_is_multiplied_however_weights_are_rounded_later(fast, folder, monkeypatch):
    x = pictures(seed=3)
    expected = fast(x)
    with one_by_one():
        layer_by_layer = fast(x)
    whole = load_file(folder / "model.safetensors")
    assert whole["integers:body:steps"].dtype is torch.int8 and "corrected integers:body:steps" in whole
    monkeypatch.setattr(quantized, "round_weights", rounded_down)
    loaded = accel.load_converted(folder, Net().eval())
    assert torch.equal(loaded(x), expected) and torch.equal(copy.deepcopy(loaded)(x), expected)
    with one_by_one():
        assert torch.equal(loaded(x), layer_by_layer)
    compiled = torch.compile(copy.deepcopy(loaded), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer_by_layer)
    assert torch.equal(torch.export.export(copy.deepcopy(loaded), (x,)).module()(x), layer_by_layer)
    again = folder / "again"
    accel.save_converted(loaded, again)
    tensors = load_file(again / "model.safetensors")
    assert tensors.keys() == whole.keys() and all(torch.equal(tensors[key], whole[key]) for key in whole)
    fresh = copy.deepcopy(fast)
    assert not torch.equal(fresh(x), expected), "rounding did not change"


@torch.no_grad()
def test_a_weight_that_is_changed_is_rounded_anew(fast, folder):
    x, loaded, other = pictures(seed=4), accel.load_converted(folder, Net().eval()), copy.deepcopy(fast)
    before = loaded(x)
    for net in (loaded, other):
        net.stem.weight.mul_(1.1)
        net.head.weight.add_(0.2)
    assert torch.equal(loaded(x), other(x)) and not torch.equal(loaded(x), before)
    loaded.load_state_dict(fast.state_dict())
    assert torch.equal(loaded(x), before)


def test_training_goes_on_from_what_was_saved(fast, folder):
    x, loaded = pictures(seed=5), accel.load_converted(folder, Net().eval())
    grads = []
    for net in (loaded, copy.deepcopy(fast)):
        net(x).square().sum().backward()
        grads.append([each.grad for each in net.parameters()])
    assert all(map(torch.equal, *grads))


def test_the_parameters_keep_values_and_names(dense, folder):
    loaded = accel.load_converted(folder, Net().eval())
    plain = accel.revert_model(loaded)
    for ours in (loaded.state_dict(), plain.state_dict()):
        theirs = dense.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with torch.no_grad():
        assert torch.equal(plain(pictures()), dense(pictures()))


def test_the_profile_of_a_loaded_network_says_the_precision(folder):
    rows = accel.profile(accel.load_converted(folder, Net().eval()), pictures(2), repeats=1).rows
    said = {row["layer"]: (row["precision"], row["note"]) for row in rows if row.get("dense_macs")}
    assert said == dict.fromkeys(("stem", "body", "last", "head"), ("int8", "in int8"))


def rewrite(folder, change, **config):
    """Change the saved tensors, and the checksum with them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    write_tensors(folder / "model.safetensors", tensors)
    known = json.loads((folder / "config.json").read_text())
    digest = accel.serialize._sha256(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**known, "sha256": digest, **config}))


@torch.no_grad()
def test_a_folder_without_integers_of_a_version_before_still_loads(fast, folder):
    def without(tensors):
        for key in [key for key in tensors if "integers" in key]:
            del tensors[key]

    rewrite(folder, without, version=2)
    x = pictures(seed=6)
    assert torch.equal(accel.load_converted(folder, Net().eval())(x), fast(x))
    rewrite(folder, without, version=4)
    with pytest.raises(WeightsError, match="lacks the steps of the integers of layer 'stem': save"):
        accel.load_converted(folder, Net())


def other_weight(tensors):
    tensors["stem.weight"] = tensors["stem.weight"].flip(0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_weight, "integers of layer 'stem' .the integers are not those of the weight beside them"),
        (lambda t: t["integers:last:steps"].neg_(), "integers of layer 'last' .the integers are not those"),
        (lambda t: t["integers:last:scale"].neg_(), "integers of layer 'last' .scale must be positive"),
        (lambda t: t["integers:head:shift"].fill_(float("nan")), "integers of layer 'head' .scale must be positive"),
        (lambda t: t["corrected integers:body:steps"].fill_(-128), "corrected integers of layer 'body' .steps must be"),
        (lambda t: t.update({"integers:last:steps": t["integers:last:steps"][:, :4].clone()}), "steps have shape"),
        (lambda t: t.update({"integers:last:scale": t["integers:last:scale"][:3].clone()}), "scale must be float32 of"),
        (lambda t: t.pop("integers:last:scale"), "lacks the scale of the integers of layer 'last'"),
        (lambda t: t.pop("quantization:last:scale"), "damaged quantization .*'scale'"),
        (lambda t: t["quantization:last:scale"].neg_(), "damaged quantization .*scale must be positive"),
        (lambda t: t.update({"quantization:body:clip": torch.ones(3)}), "clip is of 3 channels, expected 8"),
        (lambda t: t.update({"quantization:head:mean": torch.ones(3)}), "mean is of 3 channels, expected 6"),
    ],
)
def test_integers_that_do_not_belong_to_the_weights_are_refused(folder, change, said):
    rewrite(folder, change)
    with pytest.raises(WeightsError, match=said) as caught:
        accel.load_converted(folder, Net())
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_a_compiled_network_rounds_once(fast, monkeypatch):
    fast, x = copy.deepcopy(fast), pictures(seed=7)
    run = torch.compile(fast, backend="aot_eager", fullgraph=True)
    first, made, rounded = run(x), [], Quantization.round
    monkeypatch.setattr(Quantization, "round", lambda self, weight: made.append(1) or rounded(self, weight))
    assert torch.equal(run(x), first) and not made
    fast.body.weight.mul_(1.2)
    changed = run(x)
    assert len(made) == 1 and relative_norm(changed, first) > 1e-3
    with one_by_one():
        assert torch.equal(changed, copy.deepcopy(fast)(x))
