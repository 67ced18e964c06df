"""A mask, a fill and an op that somebody adds, in files of their own under `tests/added`: nothing else is touched."""

import copy
import importlib
import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate, fills, kernels, masks
from accel.cli.main import main
from accel.errors import ConfigError, WeightsError
from accel.greedy.candidates import label_of, open_space
from accel.ops import use_backend
from accel.registry import Registry
from accel.tests.triton_tools.interp_switch import interpret

ROOT = pathlib.Path(__file__).resolve().parents[1]
ADDED = ROOT / "tests" / "added"
MASKS, FILLS = ("diagonals", "brightest", "least_impact"), ("mean", "even", "level")


@pytest.fixture(scope="module", autouse=True)
def added():
    """The files of `tests/added` as if they lay in the folders of the package, while these tests run."""
    packages = {masks: "masks", fills: "fills", kernels: "kernels"}
    packages |= {
        importlib.import_module(f"accel.kernels.{name}"): f"kernels/{name}" for name in ("reference", "triton")
    }
    with pytest.MonkeyPatch.context() as patch:
        for package, folder in packages.items():
            patch.setattr(package, "__path__", [*package.__path__, str(ADDED / folder)])
        for registry in (masks.contract._KNOWN, fills.contract._KNOWN):
            patch.setattr(registry, "_known", dict(registry._known))
        importlib.import_module("accel.masks.diagonals")
        importlib.import_module("accel.fills.averages")
        yield
        for name in ("accel.masks.diagonals", "accel.fills.averages"):
            del sys.modules[name]


def picture(batch=4, size=12, seed=1):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU()
    ).eval()
    net[1].running_mean.normal_()
    return net


def converted(net, x, **fields):
    return accel.convert_model(
        net, Perforate(**{"keep": 0.5, **fields}), example_inputs=x, calibration=[picture(8, seed=2)]
    )


def as_reference(fast, x):
    with use_backend("reference"), torch.enable_grad():  # with gradients, layers run one by one
        return copy.deepcopy(fast)(x).detach()


def test_a_mask_chooses_what_it_says_at_every_layer_and_size():
    net = network()
    fast = converted(net, picture(), mask="diagonals", shift=1)
    for x in (picture(), picture(2, 9, seed=3)):
        size, expected = x.shape[-1], x
        for layer in net:
            expected = layer(expected)
            if isinstance(layer, nn.Conv2d):
                own = fast[list(net).index(layer)].position_set(size, size)
                assert [(at // size + at % size) % 2 for at in own.positions.tolist()] == [1] * len(own)
                expected = expected.flatten(2)[:, :, own.positions.long()][:, :, own.nearest.long()].view_as(expected)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("interpolate", ["nearest", "fitted", "mean"])
def test_a_mask_runs_as_its_reference_and_survives_copies_and_folders(mask, interpolate, tmp_path):
    net, x = network(), picture()
    fast = converted(net, x, mask=mask, interpolate=interpolate)
    with torch.no_grad():
        out = fast(x)
    torch.testing.assert_close(out, as_reference(fast, x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, net(x), atol=1e-3)
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, network())
    with torch.no_grad():
        for other in (loaded, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(other(x), out)
    assert loaded[0].config == fast[0].config and loaded[0].config.masking is masks.find(mask)


def test_positions_chosen_from_the_input_are_exact():
    layer, x = nn.Conv2d(3, 4, 1), picture()
    fast = converted(nn.Sequential(layer).eval(), x, mask="brightest")
    with torch.no_grad():
        dense, ours = layer(x), fast(x)
    lattice = fast[0].position_set(12, 12).positions.long()
    score = x.sum(1).flatten(1).index_fill(1, lattice, -torch.inf)
    for n in range(len(x)):
        exact = torch.cat([lattice, score[n].topk(72 - len(lattice)).indices])
        same = (ours[n] - dense[n]).abs().amax(0).flatten() < 1e-5
        assert same[exact].all() and same.sum() == 72


def test_a_mask_that_needs_data_says_so_and_gets_it():
    net, x = network(), picture()
    assert Perforate(keep=0.5, mask="least_impact").needs_calibration
    with pytest.raises(ConfigError, match="mask 'least_impact' of layer '0' needs data: pass calibration="):
        accel.convert_model(net, Perforate(keep=0.5, mask="least_impact"), example_inputs=x)
    least, most = (converted(net, x, mask=mask)[0].position_set(12, 12) for mask in ("least_impact", "impact"))
    assert not set(least.positions.tolist()) & set(most.positions.tolist())


def test_the_mean_stands_where_nothing_was_computed():
    net, x = network(), picture()
    fast = converted(net, x, interpolate="mean", mask="uniform")
    expected = x
    for name, layer in net.named_children():
        expected = layer(expected)
        if isinstance(layer, nn.Conv2d):
            kept = fast.get_submodule(name).position_set(12, 12).positions.long()
            computed = expected.flatten(2)[:, :, kept]
            filled = computed.mean(2, keepdim=True).expand(-1, -1, 144)
            expected = filled.index_copy(2, kept, computed).view_as(expected)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interpolate", FILLS)
def test_a_fill_runs_as_its_reference_learns_and_survives_copies_and_folders(interpolate, tmp_path):
    net, x = network(), picture()
    fast = converted(net, x, mask="lattice", interpolate=interpolate, neighbors=4)
    with torch.no_grad():
        out = fast(x)
    torch.testing.assert_close(out, as_reference(fast, x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast(x), out, rtol=1e-4, atol=1e-5)
    fast(x).sum().backward()
    assert fast[0].weight.grad.abs().sum() > 0
    fast.zero_grad()
    accel.save_converted(fast, tmp_path)
    with torch.no_grad():
        for other in (accel.load_converted(tmp_path, network()), copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(other(x), out)
        assert fast(picture(2, 9)).shape == (2, 4, 9, 9)


def test_equal_weights_are_the_mean_of_the_neighbours():
    layer, x = nn.Conv2d(3, 4, 1), picture()
    fast = converted(nn.Sequential(layer).eval(), x, mask="lattice", interpolate="even", neighbors=4)
    with torch.no_grad():
        dense, ours = layer(x), fast(x)
    around = F.avg_pool2d(dense, 3, 1) * 9 - sum(dense[:, :, i : i + 10, j : j + 10] for i in (0, 2) for j in (0, 2))
    around = (around - dense[:, :, 1:-1, 1:-1]) / 4
    y, x = torch.meshgrid(torch.arange(1, 11), torch.arange(1, 11), indexing="ij")
    skipped = (y + x) % 2 == 1
    torch.testing.assert_close(ours[:, :, 1:-1, 1:-1][:, :, skipped], around[:, :, skipped], rtol=1e-4, atol=1e-5)


def test_a_fill_that_needs_data_is_fitted_where_it_serves_better():
    layer, x = nn.Conv2d(3, 4, 1), picture()  # of noise the mean is the best guess
    fast = converted(nn.Sequential(layer).eval(), x, mask="lattice", interpolate="level")
    with torch.no_grad():
        wanted, ours = layer(picture(8, seed=2)).mean((0, 2, 3)), fast(x)
    skipped = torch.ones(144, dtype=torch.bool).index_fill(0, fast[0].position_set(12, 12).positions.long(), False)
    torch.testing.assert_close(ours.flatten(2)[0, :, skipped], wanted[:, None].expand(-1, 72), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="interpolate 'level' of layer '0' needs data: pass calibration="):
        accel.convert_model(network(), Perforate(keep=0.5, interpolate="level"), example_inputs=x)
    with pytest.raises(ConfigError, match="correct 'weights' is part of a fit"):
        Perforate(keep=0.5, interpolate="mean", correct="weights")
    with pytest.raises(ConfigError, match="mask 'adaptive' fills in from its lattice"):
        Perforate(keep=0.5, interpolate="mean", mask="adaptive")


def test_a_search_tries_them():
    tried = [Perforate(keep=0.5, mask="diagonals", interpolate=each) for each in ("nearest", *FILLS)]
    found = accel.search(network(), example_inputs=picture(), calibration=[picture(8)], macs=0.8, candidates=tried)
    chosen = [config for config in found.values() if config is not None]
    assert chosen and {config.mask for config in chosen} == {"diagonals"}
    space = open_space(network(), picture(), [picture(8)], tried, None, None)
    assert [*space.candidates["0"]] == [label_of(config) for config in tried]
    timed = space.network(space.uniform("diagonals 0.5 level 12"))
    assert timed[0].config == Perforate(keep=0.5, mask="diagonals", interpolate="weighted")


def test_the_command_line_knows_them(capsys):
    for what, names in (("masks", MASKS), ("fills", FILLS)):
        assert main(["list", what, "--format", "json"]) == 0
        listed = [row[what[:-1]] for row in json.loads(capsys.readouterr().out)]
        assert {*names} <= {*listed} and listed.index(names[0]) > 3
    plan = ["plan", "zoo:demo_resnet", "--size", "16x16", "--mask", "diagonals", "--interpolate", "mean"]
    assert main([*plan, "--format", "json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["rows"] if row.get("mask")]
    assert rows and {(row["mask"], row["interpolate"]) for row in rows} == {("diagonals", "mean")}


def test_a_file_in_the_folder_is_all_it_takes(tmp_path):
    shutil.copytree(ROOT / "accel", tmp_path / "accel", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kernels", "zoo", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path in (*ADDED.glob("masks/*.py"), *ADDED.glob("fills/*.py")):
        shutil.copy(path, tmp_path / "accel" / path.relative_to(ADDED))
    code = (
        "import accel, torch\n"
        "config = accel.Perforate(keep=0.5, mask='diagonals', interpolate='mean')\n"
        "net, x = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval(), torch.zeros(1, 3, 9, 9)\n"
        "fast = accel.convert_model(net, config, example_inputs=x)\n"
        "print(accel.masks.MASKS[-3:], accel.fills.FILLS[-3:], fast(x).shape, accel.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = f"('diagonals', 'brightest', 'least_impact') ('mean', 'even', 'level') torch.Size([1, 4, 7, 7]) {tmp_path}"
    assert done.stdout.startswith(wanted)


def test_an_op_is_three_files(monkeypatch):
    from accel.kernels.soft_threshold import soft_threshold

    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

        def forward(self, x):
            return self.head(soft_threshold(self.conv(x), 0.25))

    torch.manual_seed(0)
    net, x = Sparse().eval(), picture()
    fast = accel.convert_model(net, Perforate(keep=0.5, mask="lattice"), example_inputs=x)
    with torch.no_grad():
        out = fast(x)
        kept = fast.conv.position_set(12, 12)
        middle = F.softshrink(net.conv(x), 0.25).flatten(2)[:, :, kept.positions.long()][:, :, kept.nearest.long()]
        last = fast.head.position_set(12, 12)
        expected = net.head(middle.view(4, 6, 12, 12)).flatten(2)[:, :, last.positions.long()][
            :, :, last.nearest.long()
        ]
    torch.testing.assert_close(out.flatten(2), expected, rtol=1e-4, atol=1e-5)
    with interpret(), use_backend("triton"):
        torch.testing.assert_close(soft_threshold(x, 0.25), F.softshrink(x, 0.25))
    exact = x[:1, :, :4, :4].double().requires_grad_()
    torch.library.opcheck(torch.ops.accel.soft_threshold.default, (exact, 0.25))
    assert torch.autograd.gradcheck(lambda x: soft_threshold(x, 0.25), (exact,))


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"mask": "diagonal"},
            "unknown mask 'diagonal': choose one of uniform, grid, .*, adaptive, diagonals, brightest, least_impact$",
        ),
        ({"mask": None}, "unknown mask None: choose one of uniform, "),
        (
            {"interpolate": "median"},
            "unknown interpolate 'median': choose one of nearest, fitted, weighted, zero, mean, even, level",
        ),
        ({"interpolate": ["mean"]}, r"unknown interpolate \['mean'\]: choose one of nearest, "),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(fields, message):
    with pytest.raises(ConfigError, match=message) as refused:
        Perforate(keep=0.5, **fields)
    assert "\n" not in str(refused.value)


def test_a_folder_with_a_mask_that_is_not_there_is_refused(tmp_path, monkeypatch):
    accel.save_converted(converted(network(), picture(), mask="diagonals"), tmp_path)
    known = masks.contract._KNOWN
    monkeypatch.setattr(known, "_known", {name: mask for name, mask in known._known.items() if name not in MASKS})
    message = (
        r"config\.json names what is not known here \(unknown mask 'diagonals': choose one of uniform, .*\): import"
    )
    with pytest.raises(WeightsError, match=message):
        accel.load_converted(tmp_path, network())


def test_names_are_taken_once():
    registry = Registry("mask", ())
    registry.add(type("One", (), {"name": "one"}))
    with pytest.raises(ConfigError, match="there is a mask 'one' already: give Two another name"):
        registry.add(type("Two", (), {"name": "one"}))
    with pytest.raises(ConfigError, match="Three needs a name to be known as a mask, got None"):
        registry.add(type("Three", (), {}))
    assert registry.names == ("one",)


def test_what_lacks_what_its_kind_needs_is_refused_when_it_is_added():
    with pytest.raises(ConfigError, match="Empty has no build of its own, which a mask needs: define it"):
        Registry("mask", ()).add(type("Empty", (masks.Mask,), {"name": "empty"}))
    with pytest.raises(TypeError, match="Two has weigh and background: a fill has one way"):
        type("Two", (fills.Fill,), {"name": "two", "weigh": lambda *_: None, "background": lambda *_: None})


@pytest.mark.parametrize(
    "given, message",
    [
        (torch.tensor([0, 1, 1], dtype=torch.int32), "got 3, of which 2 are distinct"),
        (torch.tensor([0, 20], dtype=torch.int32), "of 0 to 19 .* got 0 to 20"),
        (torch.tensor([-1, 2], dtype=torch.int32), "got -1 to 2"),
        (torch.zeros(0, dtype=torch.int32), r"got torch.int32 of shape \(0,\)"),
        (torch.tensor([0, 1]), r"got torch.int64 of shape \(2,\)"),
    ],
)
def test_what_is_no_position_set_is_refused(given, message, monkeypatch):
    monkeypatch.setattr(masks.find("diagonals").__class__, "build", lambda self, keep, site: given)
    with pytest.raises(ConfigError, match=f"mask 'diagonals' must give distinct int32 positions .*{message}"):
        masks.build_mask("diagonals", 0.5, 4, 5, generator=torch.Generator())
