"""`accel eval` and `accel demo` of VAEs: numbers against exact ones, pictures, refusals."""

import json
import math
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from accel.cli import vae_pictures
from accel.cli.main import main
from accel.cli.vae_eval import judge
from accel.tests.vae.models import linear_gaussian, one_layer, seeded
from accel.vae import VAE, latents, likelihoods
from accel.vae.pictures import BitPictures

PICTURES = ("samples.png", "torus.png", "ways.png", "reconstructions.png", "ranking.png", "evidence.png")


class Points:
    """Examples of the linear-Gaussian model, for `judge`."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def is_noise(self, rows):
        return rows >= len(self.x) // 2

    def take(self, rows, generator=None):
        return self.x[rows]


def test_the_numbers_are_those_of_the_exact_model():
    vae, exact = linear_gaussian(exact_posterior=True)
    x = torch.randn(200, 3, generator=seeded())
    x[100:] += 20
    row, evidence = judge(vae, Points(x), 2000, seed=1, keep=0.5)
    truth = exact(x)
    assert (evidence - truth)[:100].abs().max() < 0.2
    assert row["examples"] == 100 and row["noise"] == 100 and row["outlier_auroc"] == 1.0
    assert abs(row["nll"] + float(truth[:100].mean())) < 0.03
    assert abs(row["nll_error"] - float(truth[:100].std()) / 100**0.5) < 0.02
    assert row["nll"] < row["minus_elbo"] < row["nll"] + 1 and row["trimmed"] < -row["nll"]
    assert abs(row["trimmed"] + row["minus_elbo"]) < 0.01  # the noise is what is left out


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("vae") / "report"
    arguments = ["eval", "zoo:vae_digits", "--noise", "1", "--limit", "150", "--samples", "50", "-o", str(folder)]
    assert main([*arguments, "--quiet", "--format", "json"]) == 0
    return folder


def test_the_vae_that_ships_tells_digits_from_noise(capsys):
    pytest.importorskip("sklearn")
    assert main(["eval", "zoo:vae_digits", "--noise", "1", "--samples", "100", "--quiet", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["examples"] == 359 and row["outlier_auroc"] > 0.99
    assert row["nll"] < 23.5  # as its recipe says; independent bits of the data's intensity would have 39
    assert row["nll"] < row["minus_elbo"] < row["nll"] + 4


def test_the_report_has_its_pictures_inside_and_beside_it(report):
    text = (report / "report.html").read_text()
    assert text.count('src="data:image/png;base64,') == len(PICTURES)
    for name in PICTURES:
        with PIL.Image.open(report / name) as picture:
            assert picture.width > 300 and picture.height > 100
            assert len(np.unique(np.asarray(picture.convert("L")))) > 2  # not blank
    assert main(["eval", "zoo:vae_digits", "--noise", "1", "--limit", "20", "--samples", "5", "-o", str(report)]) == 0
    assert sorted(path.name for path in report.iterdir()) == sorted([*PICTURES, "report.html"])


def test_the_demo_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo", "vae", "-o", str(tmp_path / "demo")]) == 0
    assert "without data, so no reconstructions" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "report.html",
        "samples.png",
        "torus.png",
        "ways.png",
    ]


def test_noise_is_marked_and_the_ranking_runs_from_likely_to_unlikely():
    pictures = torch.zeros(40, 1, 4, 4, dtype=torch.uint8)
    pictures[20:] = 255
    examples = BitPictures(pictures, binarise="static", noise=1.0)
    evidence = torch.cat([torch.full((20,), -1.0), torch.full((20,), -2.0), torch.full((40,), -9.0)])
    sheet = vae_pictures.ranking(examples, evidence)
    pixels = torch.from_numpy(np.array(sheet))
    red = (pixels[..., 0] > 150) & (pixels[..., 2] < 90)
    rows = red.any(1).nonzero()
    assert rows.min() > sheet.height // 2 - 20  # the lower half, noise
    assert (pixels[10, 10] == 0).all()  # the likeliest is black


@pytest.mark.parametrize(
    ("latent", "expected"),
    [
        (latents.normal(2), {"samples.png", "ways.png"}),
        (latents.von_mises(1), {"samples.png", "ways.png"}),
        (latents.von_mises(3), {"samples.png", "ways.png", "torus.png"}),
        (latents.bernoulli(3), {"samples.png"}),
        ([latents.von_mises(2), latents.normal(1)], {"samples.png", "ways.png"}),
    ],
    ids=["normal", "one angle", "three angles", "bits", "product"],
)
def test_every_latent_has_the_pictures_that_it_can_have(tmp_path, latent, expected):
    from accel.cli.vae_report import write_report

    parts = latent if isinstance(latent, list) else [latent]
    width, read = sum(part.num_parameters for part in parts), sum(part.num_features for part in parts)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, width))
    decoder = nn.Sequential(nn.Linear(read, 16), nn.Unflatten(1, (1, 4, 4)))
    vae = VAE(encoder, decoder, latent, likelihoods.Bernoulli())
    assert set(write_report(tmp_path, vae, "a vae", 0, {}, None)) == {*expected, "report.html"}


def test_the_torus_closes():
    """Opposite borders of the map are neighbours: its steps across the border are no longer than those inside."""
    from accel.cli.vae_training import read_vae
    from accel.vae.paths import torus

    vae, _ = read_vae("zoo:vae_digits")
    shown = torus(vae, 20)[:, :, 0]
    for dim in (0, 1):
        steps = (shown - shown.roll(1, dim)).abs().mean((2, 3)).movedim(dim, 0).mean(1)
        assert steps[0] < 1.5 * steps[1:].max() and steps.min() > 0.005  # both angles say something


def test_topics_are_judged_by_perplexity(tmp_path, capsys):
    lines = [f"2 {k % 4}:30 {4 + k % 3}:20" for k in range(60)]
    (tmp_path / "texts.ldac").write_text("\n".join(lines) + "\n")
    (tmp_path / "texts.tokens").write_text("\n".join("abcdefg") + "\n")
    data, run = ["--data", str(tmp_path / "texts.ldac")], str(tmp_path / "run")
    small = ["fit.steps=300", "data.batch=16", "vae.hidden=[8]", 'vae.latent={kind="dirichlet", dim=3}']
    assert main(["train", "topics", *data, *[w for s in small for w in ("--set", s)], "-o", run, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["eval", run, *data, "--samples", "50", "--quiet", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert math.exp(row["nll"] / 50) == pytest.approx(row["perplexity"], rel=1e-3)
    assert 2 < row["perplexity"] <= row["perplexity_elbo"] < 7 and len(row["topics"]) == 3
    assert main(["eval", run, *data, "--quiet"]) == 0
    assert "topic 3: " in capsys.readouterr().out
    assert main(["eval", run, *data, "-o", str(tmp_path / "report")]) == 1
    assert "examples are texts: leave -o out" in capsys.readouterr().err
    assert main(["eval", run, *data, "--noise", "1"]) == 1
    assert "texts have no binarise and no noise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zoo:vae_digits", "--samples", "0"], "not a whole number of at least 1"),
        (["zoo:vae_digits", "--noise", "-1"], "noise=-1"),
        (["zoo:vae_digits", "--keep", "0", "--limit", "5"], "keep in (0, 1], got 5 values and keep=0"),
        (["zoo:vae_digits", "--data", "nowhere"], "no data set at nowhere"),
        (["zoo:vae_digits", "--weights", "nowhere.safetensors"], "no weights file nowhere.safetensors"),
        (["zoo:resnet20_cifar"], "say with --data where"),
    ],
)
def test_what_cannot_be_judged_is_one_line(arguments, message, capsys):
    pytest.importorskip("sklearn")
    assert main(["eval", *arguments, "--quiet"]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_pictures_of_another_size_are_refused(tmp_path, capsys):
    folder = tmp_path / "test" / "a"
    folder.mkdir(parents=True)
    PIL.Image.new("L", (9, 9), 100).save(folder / "a.png")
    assert main(["eval", "zoo:vae_digits", "--data", str(tmp_path)]) == 1
    assert "[1, 8, 8]" in capsys.readouterr().err


def test_weights_of_another_vae_are_refused(tmp_path, capsys):
    from accel import files

    files.write_tensors(tmp_path / "other.safetensors", one_layer().state_dict())
    assert main(["eval", "zoo:vae_digits", "--weights", str(tmp_path / "other.safetensors")]) == 1
    assert "weights of another model than VAE" in capsys.readouterr().err
