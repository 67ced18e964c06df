"""What to keep, from options and from rules files."""

import argparse
import json

import pytest

from accel.cli import conversion
from accel.config import Perforate, Rules
from accel.errors import ConfigError


def options(**given):
    base = {"keep": None, "mask": None, "interpolate": None, "precision": None, "rules": None, "seed": 3}
    return argparse.Namespace(**(base | given))


def test_options_become_one_config():
    assert conversion.read_rules(options(), None) == Perforate(keep=0.5, seed=3)
    chosen = conversion.read_rules(options(keep=0.25, mask="lattice", interpolate="zero"), None)
    assert chosen == Perforate(keep=0.25, mask="lattice", interpolate="zero", seed=3)


def test_eight_bits_by_options_take_the_whole_network_of_the_zoo():
    rules = conversion.read_rules(options(keep=1.0, precision="int8"), None)
    assert rules == Perforate(keep=1.0, precision="int8", seed=3)
    assert conversion.needs_calibration(rules) and conversion.wants_conversion(options(precision="int8"))
    rules = conversion.read_rules(options(precision="int8"), "zoo:hed_vgg16")
    whole, half = Perforate(keep=1.0, precision="int8", seed=3), Perforate(keep=0.5, precision="int8", seed=3)
    assert rules.match("features.0") == whole and rules.match("features.2") == half
    assert conversion.read_rules(options(), "zoo:hed_vgg16").match("features.0") is None


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan")])
def test_keep_outside_its_range(keep):
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        conversion.read_rules(options(keep=keep), None)


def test_rules_files_by_hand_and_by_program_agree(tmp_path):
    wanted = Rules({"features.0": None, "features.*": Perforate(keep=0.25, mask="uniform", seed=9)})
    by_program = tmp_path / "rules.json"
    by_program.write_text(json.dumps(wanted.to_dict()))
    by_hand = tmp_path / "rules.toml"
    by_hand.write_text(
        '[[rule]]\nlayers = "features.0"\ndense = true\n\n'
        '[[rule]]\nlayers = "features.*"\nkeep = 0.25\nmask = "uniform"\nseed = 9\n'
    )
    for path in (by_program, by_hand):
        assert conversion.read_rules(options(rules=path), None).to_dict() == wanted.to_dict()


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("r.toml", "keep = ", "is no TOML"),
        ("r.json", "{", "is no JSON"),
        ("r.json", "[1]", "holds a list"),
        ("r.toml", "keep = 0.5", "expected rules"),
        ("r.toml", "rule = 3", "rules file"),
        ("r.toml", "[[rule]]\nkeep = 0.5", "'layers' is missing"),
        ("r.toml", '[[rule]]\nlayers = "*"', "keep"),
        ("r.toml", '[[rule]]\nlayers = "*"\nkeep = 7', r"\(0, 1\]"),
        ("r.toml", '[[rule]]\nlayers = "*"\nkeep = 0.5\nrate = 1', "unknown field 'rate'"),
        ("r.toml", '[[rule]]\nlayers = "*"\nkeep = 0.5\ndense = true', "is dense"),
        ("r.json", '{"kind": "rules", "version": 99}', "version 99"),
        ("r.json", '{"kind": "rules", "version": 1}', "'rules' is missing"),
        ("r.json", '{"kind": "rules", "version": 1, "rules": [["*", 3]]}', "rules file"),
    ],
)
def test_a_bad_rules_file_is_named(tmp_path, name, text, complaint):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        conversion.read_rules(options(rules=path), None)
    assert str(path) in str(caught.value)


def test_rules_and_keep_together_contradict(tmp_path):
    with pytest.raises(ConfigError, match="--rules already says"):
        conversion.read_rules(options(rules=tmp_path / "r.toml", keep=0.5), None)
