"""Packages that torch compiled ahead of time: equal to the model, refused where they are not right."""

import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.cli import main
from accel.errors import ConversionError
from accel.export import package


def drawn(seed):
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(seed))


def converted():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    return accel.convert_model(net, Perforate(keep=0.5, mask="lattice"), example_inputs=drawn(0))


def test_it_gives_what_the_model_gives(tmp_path):
    net, path = converted(), tmp_path / "net.pt2"
    done = accel.export_package(net, path, drawn(0))
    assert (done.path, done.sparse, done.dense) == (path, ("0", "2"), {}) and done.difference < 1e-6
    assert [each.name for each in tmp_path.iterdir()] == ["net.pt2"]
    loaded = torch._inductor.aoti_load_package(str(path))
    with torch.no_grad():
        torch.testing.assert_close(loaded(drawn(1)), net(drawn(1)))


def test_a_package_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    with torch.no_grad():
        wrong = converted()(drawn(0)) * 1.01
    monkeypatch.setattr(package, "_compile", lambda program, path: path.touch())
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: lambda x: wrong)
    with pytest.raises(ConversionError, match=r"the exported file differs by .* from the model"):
        accel.export_package(converted(), tmp_path / "net.pt2", drawn(0))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compiled_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    out = tmp_path / "net.pt2"
    assert main.main(["export", "zoo:resnet14_cifar", "--weights", "none", "-o", str(out)]) == 1
    said = capsys.readouterr().err
    assert said == "accel: torch cannot compile this model ahead of time (RuntimeError: no compiler here)\n"
    assert not list(tmp_path.iterdir())
