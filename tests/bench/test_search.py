"""The bench of the search, with a search that answers at once: what is compared with what."""

import types

import accel
from accel import Perforate, Rules
from accel.bench import runner
from accel.bench import search as bench_search


class Found(Rules):
    """Rules with what a search says of them."""

    chosen, tried = types.SimpleNamespace(origin="uniform"), ["one", "two"]


def test_rows_compare_with_uniform_rules_and_longer_searches(monkeypatch):
    half, quarter = (Perforate(keep=keep, mask="lattice", interpolate="fitted") for keep in (0.5, 0.25))
    answers = iter([Found({"*": half}), Found({"*": quarter})])
    asked = []

    def search(model, *, example_inputs, calibration, **options):
        asked.append((len(example_inputs), sum(map(len, calibration)), *options.values()))
        return next(answers)

    monkeypatch.setattr(accel, "search", search)
    uniform = {"a half": Rules({"*": half}), "a quarter": Rules({"*": quarter})}
    monkeypatch.setattr(bench_search, "_uniform_rules", lambda dense, example, precision: uniform)
    monkeypatch.setattr(  # both answers and both rules take their time exactly
        bench_search, "_speedups", lambda *_: {"ours": 1.99, "a half": 2.0, "a quarter": 3.0}
    )
    case = {"model": "zoo:demo_resnet", "shapes": 24, "size": [80, 80], "batch": 4, "calibrate": 12}
    first, second = bench_search.rows({**case, "searches": [[2, 1], [2, 0.5]]}, runner.Settings(quick=True))
    assert asked == [(4, 12, 2, 1, "fp32", 0), (4, 12, 2, 0.5, "fp32", 0)]
    assert (first["uniform"], first["relative"], first["start"], first["tried"]) == ("a half", 1.0, "uniform", 2)
    assert "longer" not in first and first["overrun"] < 1 and second["drop"] >= first["drop"] >= 0
    assert round(second["relative"], 3) == second["longer"] > 1  # a quarter loses more than a half
    assert second["uniform_loss"] == first["loss"] == first["uniform_loss"]
