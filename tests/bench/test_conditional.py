"""The bench of conditional sampling: expectations that are called exact, rows, shapiq's imputers as they are used."""

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the extra impute brings pandas")

from accel.bench import conditional, runner
from accel.bench.conditional_toys import TOYS
from accel.errors import ConfigError

TINY = {"epochs": 2, "width": 8, "depth": 1, "latent": 2}
CASE = {"features": 4, "rows": 120, "explained": 5, "coalitions": 3, "samples": 20, "rivals": [], "imputer": TINY}


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("hidden", [(1, 0, 1, 0), (0, 1, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0)])
def test_expectations_are_exact(name, hidden):
    """E[(f - E[f | seen]) g(seen)] = 0 for every g: what an expectation is defined by."""
    rng, hidden = np.random.default_rng(0), np.array(hidden, dtype=bool)
    toy = TOYS[name](4, rng)
    x = toy.draw(1_000, rng)
    left = toy.predict(x) - np.array([toy.expectation(one, hidden) for one in x])
    if not hidden.any():
        return np.testing.assert_allclose(left, 0, atol=1e-9)
    for g in (np.ones(len(x)), *np.tanh(x - np.median(x, 0)).T[~hidden], *(x < np.median(x, 0)).T[~hidden]):
        assert abs((left * g).mean()) < 4.5 * (left * g).std() / np.sqrt(len(x))


def test_rows_of_a_toy():
    exact, ours = conditional.rows({**CASE, "toy": "mixture"}, runner.Settings())
    assert exact["rmse"] == 0 and exact["over_exact"] == 1
    assert ours["correct"] and ours["rmse"] > 0 and ours["seconds"] > 0 and "over_rival" not in ours


def test_errors_by_hand():
    found = conditional.judge(np.array([[1.0, 3.0]]), np.array([[2.0]]), None, 1.0)
    assert found == {"msev": 1.0}
    values, truth, exact = np.array([[1.0], [3.0]]), np.array([[0.0], [2.0]]), np.array([[1.0], [2.0]])
    assert conditional.judge(values, truth, exact, 0.5) == {
        "msev": 1.0,
        "rmse": round(2 * 0.5**0.5, 5),
        "over_exact": 2.0,
    }


def test_a_rival_that_knows_the_answer_is_near_it():
    """shapiq's Gaussian imputer on a Gaussian: 400 draws of 2000 rows."""
    pytest.importorskip("shapiq", reason="the extra bench brings shapiq")
    case = {**CASE, "toy": "gaussian", "rows": 2000, "samples": 400, "rivals": ["gaussian", "copula"]}
    _, gaussian, copula, ours = conditional.rows(case, runner.Settings())
    assert gaussian["rmse"] < 0.15 and copula["rmse"] < 0.3 and gaussian["correct"] and copula["correct"]
    assert ours["over_rival"] == pytest.approx(ours["rmse"] / min(gaussian["rmse"], copula["rmse"]), rel=1e-2)


def test_rows_of_a_table_have_no_truth(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    x[:, 1] = rng.integers(3, size=200)
    problem = conditional.Problem(x[:150], x[150:154], lambda rows: rows.sum(1), {1: 3}, None)
    monkeypatch.setattr(conditional, "_of_table", lambda case, rng: problem)
    (ours,) = conditional.rows({**CASE, "table": "any"}, runner.Settings())
    assert ours["correct"] and ours["msev"] > 0 and "rmse" not in ours


def test_lost_cells_beside_exact_means():
    (row,) = conditional.rows({**CASE, "toy": "gaussian", "lost": 0.5}, runner.Settings())
    assert row["correct"] and row["over_exact"] > 1 and row["exact_cell_rmse"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toy": "cauchy"}, "no toy is called 'cauchy': known are gaussian, mixture, burr"),
        ({"toy": "burr", "lost": 0.5}, "exact means of lost cells are known of gaussian and mixture"),
        ({"toy": "burr", "rivals": ["tree"]}, "no imputer of shapiq is called 'tree' here"),
    ],
)
def test_cases_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        list(conditional.rows({**CASE, **change}, runner.Settings()))
