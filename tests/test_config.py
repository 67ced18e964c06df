"""Configurations and rules: what they accept, match, refuse, and write."""

import dataclasses
import json

import pytest

from accel import Perforate, Rules
from accel.config import MISSING, as_rules, config_from_dict
from accel.errors import ConfigError

HALF = Perforate(keep=0.5)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan"), float("inf"), True, "0.5"])
def test_keep_outside_its_range_is_refused(keep):
    with pytest.raises(ConfigError, match=r"keep .* must lie in \(0, 1\], got"):
        Perforate(keep=keep)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mask": "round"}, "unknown mask 'round': choose one of uniform, grid"),
        ({"interpolate": "cubic"}, "unknown interpolate 'cubic': choose one of nearest, fitted, weighted, zero"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"mask": "lattice", "shift": -1}, "shift must be an integer of at least 0, got -1"),
        ({"mask": "lattice", "shift": True}, "shift must be an integer of at least 0, got True"),
        ({"mask": "uniform", "shift": 1}, "shift moves a lattice: mask 'uniform' takes none"),
        ({"correct": "weights"}, "correct 'weights' is part of a fit"),
        ({"mask": "lattice", "keep": 0.9}, "lattice"),
    ],
)
def test_unknown_values_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Perforate(**{"keep": 0.5, **fields})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "give exactly one of keep, speedup, max_drop, macs, got none"),
        ({"keep": 0.5, "speedup": 2}, "got keep and speedup"),
        ({"speedup": 0.5}, "speedup .* must be at least 1, got 0.5"),
        ({"speedup": float("inf")}, "speedup .* must be at least 1"),
        ({"max_drop": -0.1}, "max_drop .* must be at least 0, got -0.1"),
        ({"macs": 0}, r"macs .* must lie in \(0, 1\], got 0"),
        ({"macs": True}, "macs .* got True"),
        ({"speedup": 2, "mask": "uniform"}, "speedup finds mask and interpolate by itself"),
        ({"macs": 0.5, "interpolate": "zero"}, "macs finds mask and interpolate by itself"),
    ],
)
def test_keep_and_targets_exclude_each_other(fields, message):
    with pytest.raises(ConfigError, match=message):
        Perforate(**fields)


def test_a_target_is_known_and_survives_json():
    config = Perforate(speedup=2, seed=3)
    assert config.target == ("speedup", 2) and HALF.target is None
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_configurations_are_frozen_and_take_keywords_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HALF.keep = 0.4
    with pytest.raises(TypeError):
        Perforate(0.5)


def test_first_match_wins_and_star_crosses_dots():
    rules = Rules({"features.0": None, "features.*": HALF, "*": Perforate(keep=0.25)})
    assert rules.match("features.0") is None
    assert rules.match("features.block.conv") is HALF
    assert rules.match("head").keep == 0.25
    assert Rules({"a.*": HALF}).match("A.x") is MISSING and Rules({"a.*": None}).match("b") is MISSING


def test_a_rule_that_matches_nothing_is_named():
    rules = Rules({"*": HALF, "layer9.*": None})
    with pytest.raises(ConfigError, match=r"rule 'layer9\.\*' matches no convolution.*conv1, layer1\.conv"):
        rules.check_used(["conv1", "layer1.conv"])
    rules.check_used(["conv1", "layer9.conv"])


@pytest.mark.parametrize("rules", [{}, {3: HALF}, {"a": 0.5}])
def test_malformed_rules_are_refused(rules):
    with pytest.raises(ConfigError):
        Rules(rules)


def test_everything_that_means_rules():
    rules = Rules({"a": HALF})
    assert as_rules(rules) is rules
    assert dict(as_rules({"a": HALF})) == dict(rules)
    assert as_rules(HALF).match("any.name") is HALF
    with pytest.raises(ConfigError, match=r"expected a configuration .* got 0\.5"):
        as_rules(0.5)


def test_round_trip_through_json():
    config = Perforate(keep=1 / 3, mask="lattice", interpolate="zero", shift=1, seed=7)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    rules = Rules({"a": config, "b.*": None, "*": HALF})
    again = Rules.from_dict(json.loads(json.dumps(rules.to_dict())))
    assert list(again.items()) == list(rules.items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 99}, "version 99"),
        ({"kind": "skip"}, "unknown kind of configuration 'skip'"),
        ({"colour": 1}, "unknown field 'colour'"),
        ({"keep": 2}, "must lie in"),
    ],
)
def test_dicts_from_elsewhere_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict({**HALF.to_dict(), **change})


def test_rules_of_another_version_are_refused():
    with pytest.raises(ConfigError, match="expected rules of version 1, got kind 'rules' of version 2"):
        Rules.from_dict({**Rules({"a": None}).to_dict(), "version": 2})
