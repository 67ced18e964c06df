"""Two checkouts compared: the interval, the processes, and what is refused."""

import json
import math

import pytest

from accel.bench import speed
from accel.cli import main
from accel.errors import ConfigError, DataError


def test_the_interval_is_students_over_the_pairs():
    def pair(ratio):
        return {"a": {"x": ratio, "y": 4 * ratio}}, {"a": {"x": 1.0, "y": 4.0}}

    row = speed.summarize([pair(0.9), pair(1.0), pair(1.1)])[-1]
    logs = [math.log(0.9), 0.0, math.log(1.1)]
    mean = sum(logs) / 3
    half = 4.302653 * math.sqrt(sum((log - mean) ** 2 for log in logs) / 2) / math.sqrt(3)  # t of 2 degrees, 97.5 %
    assert (row["ratio"], row["pairs"], row["configurations"]) == (round(math.exp(mean), 4), 3, 2)
    assert row["low"] == round(math.exp(mean - half), 4) and row["high"] == round(math.exp(mean + half), 4)


def test_a_checkout_against_itself(tmp_path, monkeypatch, capsys):
    cases = tmp_path / "small.toml"
    cases.write_text(
        'kind = "networks"\n[[case]]\nname = "small"\nmodel = "zoo:resnet20_cifar"\nsize = [32, 32]\nbatch = [1]\n'
        'keep = [0.5]\nmask = "lattice"\n'
    )
    monkeypatch.setattr(speed, "CASES", (cases,))
    output = tmp_path / "out"
    argv = ["bench", "speed", "--against", str(speed.ROOT), "--quick", "--output", str(output)]
    assert main.main(argv) == 0
    rows = [json.loads(line) for line in (output / "speed.jsonl").read_text().splitlines()]
    assert [row["cases"] for row in rows] == ["small", "all"] and all(row["pairs"] == 2 for row in rows)
    assert all(0.1 < row["low"] <= row["ratio"] <= row["high"] for row in rows)
    (configuration,) = [json.loads(line) for line in (output / "speed_configurations.jsonl").read_text().splitlines()]
    assert configuration["configuration"] == "small batch 1 keep 0.5" and 0 < configuration["ms"] < 1000
    assert "all: " in capsys.readouterr().out


def test_what_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs --against FOLDER"):
        speed.run(tmp_path)
    (tmp_path / "accel").mkdir()
    (tmp_path / "accel" / "__init__.py").write_text("")
    with pytest.raises(DataError, match="does not run the cases"):
        speed.run(tmp_path / "out", quick=True, against=tmp_path)
