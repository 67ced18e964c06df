"""The frame of the command: help, bad usage, errors as one line, exit codes."""

import subprocess
import sys

import pytest

from accel.cli import main

VERBS = (
    "demo",
    "env",
    "list",
    "plan",
    "profile",
    "convert",
    "search",
    "finetune",
    "bench",
    "export",
    "train",
    "eval",
    "ponder",
    "impute",
    "inpaint",
)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from accel.cli.main import main; assert main(['--help']) == 0;"
        "print([name for name in ('torch', 'torchvision', 'triton', 'rich', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_verb(capsys):
    assert main.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {verb} " in printed for verb in VERBS)
    assert len(main.VERB_MODULES) == len(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    assert main.main([verb, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"example:\n  accel {verb}" in printed
    assert "--seed" in printed


@pytest.mark.parametrize("argv", [[], ["dance"], ["list", "--format", "xml"], ["list", "planets"]])
def test_bad_usage_is_one_line_and_exit_code_2(argv, capsys):
    assert main.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("accel")


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("skimconv ")


def test_python_dash_m_and_exit_code():
    done = subprocess.run([sys.executable, "-m", "accel", "dance"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'dance'" in done.stderr
