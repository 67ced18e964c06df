"""Adaptive networks trained alike: each trained and judged once, compared picture by picture at equal MACs."""

import json

import PIL.Image
import pytest
import torch

from accel.bench import halting_frontier, halting_verdicts, trainings
from accel.bench.halting_gradients import picture, small_network
from accel.bench.halting_noise import gradient_noise
from accel.bench.runner import Settings, read_cases
from accel.cli.main import main
from accel.cli.training import save_state
from accel.config import PACT, VERSION, config_from_dict
from accel.errors import ConfigError
from accel.mc import Concrete, DisARM
from accel.zoo.datasets import load_pictures
from accel.zoo.registry import get_model

FILE = """
kind = "halting_frontier"
[every]
folder = "{0}/runs"
model = "zoo:resnet20_cifar"
recipe = "resnet32_cifar_halting"
weights = "{0}/start.safetensors"
data = "{0}/data"
seeds = 1
batch = 4
compiled = false
"""
ADAPTIVE = """
[[case]]
name = "{name}"
set = [
    'adaptive={{kind="{kind}",target=0.6}}', 'model.name="zoo:resnet20_cifar"', 'data.held_out=4',
    'data.batch=4', 'data.pad=0', 'fit.steps=2', 'fit.lr=0.001',
]
"""
PLAIN = """
[[case]]
name = "2 units"
set = [
    'model={name="zoo:resnet14_cifar",weights_of="zoo:resnet20_cifar"}', 'data.held_out=4', 'data.batch=4',
    'data.pad=0', 'fit.steps=2', 'fit.lr=0.001',
]
[[case]]
name = "compared"
of = ["PACT"]
against = ["SACT", "2 units"]
[[case]]
name = "time"
timed = ["PACT", "2 units"]
"""


@pytest.fixture
def file(tmp_path):
    for index in range(24):
        split = "train" if index < 14 else "test"
        folder = tmp_path / "data" / split / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        PIL.Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    torch.manual_seed(0)
    save_state(get_model("zoo:resnet20_cifar"), tmp_path / "start.safetensors")
    parts = [FILE.format(tmp_path)]
    for kind in ("SACT", "PACT"):
        parts.append(ADAPTIVE.format(name=kind, kind=kind.lower()))
    parts.append("noise = 3\n")
    path = tmp_path / "case.toml"
    path.write_text("".join([*parts, PLAIN]))
    return path


def test_networks_are_trained_and_judged_once_and_compared(file, tmp_path, monkeypatch, trained_here):
    output = tmp_path / "rows.jsonl"
    bench = ["bench", str(file), "--quick", "--quiet", "--output", str(output)]
    assert main(bench) == 0
    rows = {(row["case"], row["network"]): row for row in map(json.loads, output.read_text().splitlines())}
    assert [row["method"] for row in rows.values() if "macs_share" in row] == ["sact", "pact", "shallower"]
    assert all(row["correct"] for row in rows.values())
    pact = rows["PACT", "PACT"]
    assert pact["seeds"] == 1 and pact["pictures"] == 4 + 10 and {"relaxed", "sampled"} <= pact.keys()
    (case,) = (case for case in read_cases(file)["case"] if case["name"] == "PACT")
    found = halting_verdicts.verdicts_on(case, "PACT", 0)
    results = json.loads((tmp_path / "runs" / "PACT" / "seed_0" / "results.json").read_text())
    assert float(found["right"][4:].double().mean()) == pytest.approx(results["accuracy"])
    assert float(found["macs"][4:].double().mean() / found["dense_macs"]) == pytest.approx(results["macs_share"])
    assert pact["macs_share"] == pytest.approx(float(found["macs"].double().mean() / found["dense_macs"]), abs=1e-4)
    assert pact["variance_start"] > 0 and pact["variance_end"] > 0 and pact["signal_end"] > 0
    compared = rows["compared", "PACT"]
    assert compared["low"] <= compared["difference"] <= compared["high"] and rows["compared", "all"]["seeds"] == 1
    assert rows["time", "PACT"]["time_share"] > 0 and "over_shallower" in rows["time", "PACT"]
    assert "over_shallower" not in rows["time", "2 units"]
    monkeypatch.setattr(trainings, "_run", lambda command, folder: pytest.fail("a run that has ended ran again"))
    monkeypatch.setattr(halting_frontier, "_judge", lambda case, seed: pytest.fail("it was judged already"))
    assert next(halting_frontier.rows(case, Settings()))["accuracy"] == pact["accuracy"]
    with PIL.Image.open(tmp_path / "rows.png") as picture:
        assert picture.format == "PNG"


def test_what_is_not_there_yet_is_not_compared(file):
    cases = {case["name"]: case for case in read_cases(file)["case"]}
    with pytest.raises(ConfigError, match="compares what was not judged yet: PACT, SACT, 2 units"):
        next(halting_frontier.rows(cases["compared"], Settings()))
    with pytest.raises(ConfigError, match="of two networks or more"):
        next(halting_frontier.rows({**cases["compared"], "against": ["SACT"]}, Settings()))


def verdict(right, share):
    macs = torch.full((len(right),), round(1000 * share), dtype=torch.int64)
    return {"right": torch.tensor(right, dtype=torch.uint8), "macs": macs, "dense_macs": torch.tensor(1000)}


def test_differences_are_taken_at_equal_macs():
    rivals = [verdict([1, 1, 0, 0], 0.8), verdict([0, 1, 0, 1], 0.4), verdict([1, 1, 1, 1], 0.9)]
    found, beyond = halting_verdicts.difference(verdict([1, 0, 0, 1], 0.5), rivals)
    assert found.tolist() == pytest.approx([1 - 0.25, -1, 0, 1 - 0.75]) and beyond == 0
    found, beyond = halting_verdicts.difference(verdict([1, 0, 0, 1], 0.85), rivals)
    assert found.tolist() == pytest.approx([0, -1, -0.5, 0.5]) and beyond == 0
    found, beyond = halting_verdicts.difference(verdict([0, 0, 0, 0], 0.3), rivals)  # beyond: the same line goes on
    assert found.tolist() == pytest.approx([0.25, -1, 0, -1.25]) and beyond == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="execute the same share of the MACs"):
        halting_verdicts.difference(verdict([1], 0.5), [verdict([1], 0.4), verdict([0], 0.4)])


def test_the_bootstrap_knows_the_error_of_a_mean():
    torch.manual_seed(0)
    found = 0.3 + torch.randn(1, 4000, dtype=torch.float64)
    low, high = halting_verdicts.bootstrap(found, torch.Generator().manual_seed(0))
    assert low < float(found.mean()) < high
    assert high - low == pytest.approx(2 * 1.96 * float(found.std()) / 4000**0.5, rel=0.1)
    seeds = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 4000)
    assert halting_verdicts.bootstrap(seeds, torch.Generator().manual_seed(0)) == (0.0, 1.0)  # seeds are drawn too


def test_held_out_pictures_are_the_same_and_not_learnt_from(file, tmp_path):
    pictures = load_pictures(tmp_path / "data", "train")
    learnt, held = pictures.held_out(4)
    again, same = pictures.held_out(4)
    assert torch.equal(held.pictures, same.pictures) and torch.equal(learnt.labels, again.labels)
    together = {picture.numpy().tobytes() for picture in torch.cat((learnt.pictures, held.pictures))}
    assert len(together) == len(pictures) == len(learnt) + 4 and len(held.and_then(learnt)) == 14


@pytest.mark.parametrize("estimator", [Concrete(2 / 3), DisARM()], ids=["Concrete", "DisARM"])
def test_the_noise_of_a_gradient(estimator):
    """Of a network that decides what it is sure of: none; else what two estimates in a row differ by."""
    net = small_network(PACT(tau=0.1, spatial=False, estimator=estimator), 0)
    x, labels = picture(3, 0), torch.tensor([0, 1, 2])
    found = gradient_noise(net, x, labels, 30, seed=0)
    again = gradient_noise(net, x, labels, 30, seed=1)
    assert found["variance"] > 0 and found["variance"] == pytest.approx(again["variance"], rel=1.0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("halting.conv.bias"):
                parameter.fill_(60.0)
    sure = gradient_noise(net, x, labels, 5, seed=0)
    assert sure["variance"] < 1e-12 * found["variance"]


def test_four_estimators_are_trained_alike(request):
    file = read_cases(request.config.rootpath / "profiles/cases/halting_estimators.toml")
    recipes = [trainings.read_recipe(request.config.rootpath / case["recipe"], case["set"]) for case in file["case"]]
    tables = [recipe.pop("adaptive") for recipe in recipes]
    made = [config_from_dict({"version": VERSION, **table}).estimator for table in tables]
    assert [type(one).__name__ for one in made] == ["Concrete", "ScoreFunction", "DisARM", "MeasureValued"]
    assert all(recipe == recipes[0] for recipe in recipes) and {table["target"] for table in tables} == {0.75}


def test_the_cases_of_the_file_fit_together(request):
    file = read_cases(request.config.rootpath / "profiles/cases/halting_frontier.toml")
    networks = {case["name"]: case for case in file["case"] if not {"of", "timed"} & case.keys()}
    for case in file["case"]:
        assert {*case.get("of", ()), *case.get("against", ()), *case.get("timed", ())} <= networks.keys()
    recipes = {
        name: trainings.read_recipe(request.config.rootpath / case["recipe"], case.get("set", []))
        for name, case in networks.items()
    }
    assert sum(case["seeds"] for case in networks.values()) == 18 + 7
    assert {recipe["data"]["held_out"] for recipe in recipes.values()} == {10000}
    assert {recipe["fit"]["steps"] for recipe in recipes.values()} == {625}
