"""Which cells are lost: how many, and by what."""

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra impute brings pandas")

from accel.bench.amputation import MECHANISMS, amputate  # noqa: E402
from accel.errors import ConfigError  # noqa: E402

ROWS = 4000


@pytest.fixture
def table():
    rng = np.random.default_rng(1)
    numbers = rng.normal(size=(ROWS, 3)) * [1, 10, 0.1] + 5
    frame = pd.DataFrame(numbers, columns=list("abc"))
    frame["d"] = rng.choice(["x", "y", "z"], ROWS)
    return frame.astype({"d": object})


def correlation(lost, values):
    return np.corrcoef(lost, values)[0, 1]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_share_is_lost_of_every_column_that_can_lose_any(table, mechanism):
    lost = amputate(table, mechanism, 0.3, np.random.default_rng(0))
    shares = lost.mean(0)
    assert ((shares == 0) | (abs(shares - 0.3) < 0.03)).all()
    assert (shares == 0).sum() == (1 if mechanism == "MAR" else 0)
    assert (lost == amputate(table, mechanism, 0.3, np.random.default_rng(0))).all()


def test_what_decides_under_each_mechanism(table):
    random, seen, hidden = (amputate(table, one, 0.3, np.random.default_rng(3)) for one in MECHANISMS)
    numbers = table[list("abc")].to_numpy()
    assert all(abs(correlation(random[:, k], numbers[:, k])) < 0.06 for k in range(3))
    (driver,) = np.flatnonzero(~seen.any(0))
    others = [k for k in range(4) if k != driver]
    score = table.iloc[:, driver]
    values = pd.factorize(score, sort=True)[0] if driver == 3 else score.to_numpy()
    for k in others:
        rates = pd.Series(seen[:, k]).groupby(pd.qcut(values, 3, duplicates="drop")).mean()
        assert rates.max() - rates.min() > 0.2
        assert k == 3 or abs(correlation(seen[:, k], numbers[:, k])) < 0.06  # columns are independent here
    assert all(abs(correlation(hidden[:, k], numbers[:, k])) > 0.4 for k in range(3))


def test_what_cannot_be_lost_is_refused(table):
    with pytest.raises(ConfigError, match=r"MCAR, MAR, MNAR and a share in \(0, 1\): got MCAR, 1.0"):
        amputate(table, "MCAR", 1.0, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="the table has one column"):
        amputate(table[["a"]], "MAR", 0.3, np.random.default_rng(0))
