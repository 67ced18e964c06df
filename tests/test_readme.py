"""The house in one page: every file that it names is there, and holds what it is named for."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "accel" / "README.md").read_text(encoding="utf-8")
ANSWERS = {  # what a reader has to find in the file that answers
    "fitted fill solved": "class Fitted(Fill)",
    "add a mask": "class Mask(abc.ABC):",
    "add a fill": "class Fill:",
    "add an op": 'define("ponder_cost"',
    "converted VGG": "class InferencePath",
    "batch norm folded": "def fold(",
    "MACs counted": "def count_macs(",
    "halting rule": "N = min {",
    "benchmark case": "def read_cases(",
    "speed-up decided": "def search(",
    "residual unit": "def register_unit(",
    "REINFORCE": "class ScoreFunction",
    "training loop": "def fit(",
}


def test_every_file_named_is_there():
    named = re.findall(r"`((?:accel|kernels|zoo)/[\w/]+\.py)`", PAGE)
    named += [f"accel/{path}" for path in re.findall(r"\(`([\w/]+\.py)`\)", PAGE)]
    assert len(named) > 15 and [path for path in named if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("question", ANSWERS)
def test_a_question_is_answered_by_its_file(question):
    (line,) = [line for line in PAGE.splitlines() if question in line and line.startswith("|") and "?" in line]
    (path, *_) = re.findall(r"`([\w/]+\.py)`", line)
    assert ANSWERS[question] in (ROOT / path).read_text(encoding="utf-8")
