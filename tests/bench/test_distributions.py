"""`accel bench distributions`, quick: every kind of row is there, and the file holds what run returns."""

from __future__ import annotations

import json

from accel.bench import distributions


def test_quick_run(tmp_path):
    rows = distributions.run(tmp_path / "new", seed=1, quick=True)
    assert [
        json.loads(line) for line in (tmp_path / "new" / "distributions.jsonl").read_text().splitlines()
    ] == json.loads(json.dumps(rows))
    by_kind = {kind: [row for row in rows if row["row"] == kind] for kind in ("accuracy", "speed", "variance")}
    assert {row["distribution"] for row in by_kind["accuracy"]} == {
        "Gamma",
        "Beta",
        "Dirichlet",
        "StudentT",
        "VonMises",
    }
    assert all(row["reached"] for row in by_kind["accuracy"] + by_kind["variance"] if "bar" in row)
    assert all(row["accel_ms"] > 0 for row in by_kind["speed"])
    assert all(row["torch_error"] > row["error"] for row in by_kind["accuracy"] if row["torch_error"] is not None)
