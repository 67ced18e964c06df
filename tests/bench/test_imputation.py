"""The bench of imputation: tables as they are read, errors that can be worked out by hand, rows of methods."""

import sys

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra impute brings pandas")

from accel.bench import imputation, imputation_rivals, runner  # noqa: E402
from accel.errors import ConfigError  # noqa: E402

TRUTH = pd.DataFrame({"a": [0.0, 2.0, 4.0, 6.0], "b": ["x", "y", "x", None]})
LOST = np.array([[True, False], [True, True], [False, True], [False, True]])


def test_errors_by_hand():
    """Numbers off by 1 and 3 on the mean of two answers; of two judged classes one wrong by the majority of three."""
    answers = [
        TRUTH.assign(a=[1.0, 4.0, 4.0, 6.0], b=["x", "y", "y", "x"]),
        TRUTH.assign(a=[1.0, 6.0, 4.0, 6.0], b=["x", "y", "y", "x"]),
        TRUTH.assign(a=[1.0, 5.0, 4.0, 6.0], b=["x", "x", "x", "x"]),
    ]
    found = imputation.errors(TRUTH, answers, LOST)
    assert found == {"nrmse": pytest.approx(((1 + 9) / 2) ** 0.5 / 5**0.5, abs=1e-4), "pfc": 0.5}
    numbers = imputation.errors(TRUTH[["a"]], [one[["a"]] for one in answers], LOST[:, :1])
    assert numbers["standardised_mse"] == pytest.approx((1 + 9) / 2 / 5, abs=1e-4)


def test_tables_are_read_as_numbers_and_classes(tmp_path):
    path = tmp_path / "some.data"
    path.write_text("name  0.5  ?  A\nother  1.5  u  B\n")
    table = imputation.read_table({"table": path, "separator": r"\s+", "columns": "-ncc"})
    assert list(table) == ["c1", "c2", "c3"] and table["c1"].tolist() == [0.5, 1.5]
    assert table["c2"].isna().tolist() == [True, False] and table["c3"].tolist() == ["A", "B"]


def test_rows_say_how_far_a_method_is_from_the_best_and_who_changes_what_was_given(monkeypatch):
    truth = pd.DataFrame({"a": np.linspace(0, 1, 40), "b": np.linspace(1, 0, 40)})
    monkeypatch.setattr(imputation, "read_table", lambda case: truth)

    def methods(case, given, seed):
        mean, zero = given.fillna(given.mean()), given.fillna(0.0)
        return {"mean": lambda: ([mean], 0.0), "zero": lambda: ([zero], 0.0), "spoils": lambda: ([mean + 1e-3], 0.0)}

    monkeypatch.setattr(imputation, "_ours", methods)
    case = {"table": "any", "numpy_seed": 0, "share": 0.5, "imputations": 1, "rivals": []}
    mean, zero, spoils = imputation.rows(case, runner.Settings())
    assert mean["over_best"] == 1.0 < zero["over_best"] and mean["nrmse"] < zero["nrmse"]
    assert mean["correct"] and zero["correct"] and not spoils["correct"]


def test_a_rival_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="no rival imputer is called guess: known are missforest"):
        imputation._rivals({"rivals": ["guess"]}, TRUTH, 0)


def test_what_runs_elsewhere_hands_back_what_it_was_given(monkeypatch, tmp_path):
    """The exchange of files, with a method of the file's own in place of a rival's."""

    def filled(frame, new, classes, count, seed):
        assert classes == ["b"] and frame["a"].tolist() == [0.0, 2.0, 4.0] and new["b"].isna().tolist() == [True]
        return [new.fillna({"b": f"{seed}{k}"}) for k in range(count)]

    monkeypatch.setitem(imputation_rivals._METHODS, "echo", filled)
    TRUTH.to_csv(tmp_path / "given.csv", index=False)
    imputation_rivals._main("echo", str(tmp_path / "given.csv"), str(tmp_path / "out"), "2", "nc", "7", "3")
    found = [pd.read_csv(tmp_path / f"out_{k:03d}.csv", dtype={"b": str}) for k in (1, 2)]
    assert [one["b"].tolist() for one in found] == [["70"], ["71"]] and found[0]["a"].tolist() == [6.0]


def test_an_answer_is_asked_for_once_and_its_seconds_are_kept(monkeypatch, tmp_path):
    """A stranger's program that fails says so and leaves nothing; what it answered comes with the rows it is of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(imputation_rivals, "_environment", lambda name: sys.executable)
    program = tmp_path / "program.py"
    monkeypatch.setattr(imputation_rivals, "__file__", str(program))
    program.write_text("raise SystemExit('no forest')")
    with pytest.raises(RuntimeError, match=r"missforest failed: .*no forest"):
        imputation_rivals.run_rival("missforest", TRUTH, 1, 0, 3)
    program.write_text("import sys\nopen(sys.argv[3] + '_001.csv', 'w').write('a,b\\n6.0,z\\n')")
    first = imputation_rivals.run_rival("missforest", TRUTH, 1, 0, 3)
    program.write_text("raise SystemExit('asked twice')")
    (again,), seconds = imputation_rivals.run_rival("missforest", TRUTH, 1, 0, 3)
    assert again["b"].tolist() == ["z"] and again.index.tolist() == [3] and seconds == first[1]
