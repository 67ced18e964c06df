"""Gradients of halting decisions by estimator: every row is judged rightly, few samples suffice."""

from accel.bench import halting_gradients
from accel.bench.runner import Settings, read_cases

FILE = "profiles/cases/halting_gradients.toml"


def test_rows_and_what_they_are_judged_by(request, monkeypatch):
    file = read_cases(request.config.rootpath / FILE)
    assert [case["tau"] for case in file["case"]] == [0.0, 0.3, 0.3] and file["case"][0]["samples"] == 100_000
    for slow in ("REBAR", "measure-valued"):
        monkeypatch.delitem(halting_gradients.ESTIMATORS, slow)
    monkeypatch.setattr(halting_gradients, "_COPIES", 100)
    rows = {row["estimator"]: row for row in halting_gradients.rows({"tau": 0.3, "samples": 6000}, Settings())}
    assert list(rows) == list(halting_gradients.ESTIMATORS)
    assert all(row["correct"] and row["samples"] == 6000 for row in rows.values())
    assert rows["planted"]["worst_z"] >= 4 > rows["DisARM"]["worst_z"]
    assert rows["DisARM"]["variance"] <= rows["leave one out"]["variance"]
    assert rows["Concrete 2/3"]["bias"] > rows["Concrete 0.05"]["bias"]
