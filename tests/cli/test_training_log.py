"""What a training run leaves to read: rows that replace those of an interrupted run, lines, and a progress bar."""

import argparse

import pytest

from accel.cli.training_log import training_log


def logged(folder, steps, *, first=0, quiet=False):
    args = argparse.Namespace(quiet=quiet, tensorboard=False)
    measured = {"tau": 0.5}
    with training_log(folder, 40, measured, args) as log:
        for step in range(first, steps):
            measured["tau"] = step / 10
            log(step, 1.0 / (step + 1))
    return (folder / "loss.csv").read_text().splitlines()


def test_rows_name_what_they_hold(tmp_path):
    assert logged(tmp_path, 3) == ["step,loss,tau", "1,1,0", "2,0.5,0.1", "3,0.3333333,0.2"]
    assert [path.name for path in tmp_path.iterdir()] == ["loss.csv"]


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path):
    whole = logged(tmp_path, 8)
    with (tmp_path / "loss.csv").open("a") as file:
        file.write("9,0.1")  # killed in the middle of a row
    assert logged(tmp_path, 8, first=5) == whole
    assert logged(tmp_path, 2) == whole[:3]  # a run from the start begins a new file


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    logged(tmp_path, 40)
    assert capsys.readouterr().err.splitlines() == ["step 20/40  loss 0.05  tau 1.9", "step 40/40  loss 0.025  tau 3.9"]
    logged(tmp_path, 40, quiet=True)
    assert capsys.readouterr().err == ""


def test_a_progress_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    logged(tmp_path, 40)
    assert "40/40" in capsys.readouterr().err


def test_the_log_ends_with_the_block(tmp_path):
    args = argparse.Namespace(quiet=True, tensorboard=False)
    with pytest.raises(KeyboardInterrupt), training_log(tmp_path, 4, {}, args) as log:
        log(0, 1.0)
        raise KeyboardInterrupt
    assert (tmp_path / "loss.csv").read_text() == "step,loss\n1,1\n"
