"""Rubin's rules: against the formulas by hand, against the truth by simulation, and what they refuse."""

import types

import numpy as np
import pandas as pd
import pytest

from accel.errors import DataError
from accel.vae import pool


def test_by_hand():
    """Three estimates 1, 2, 3 of variance 0.5: T = 0.5 + 4/3; lambda = 8/11; Barnard-Rubin with 20 degrees."""
    found = pool([([value], [0.5]) for value in (1.0, 2.0, 3.0)], df_complete=20)
    share = (4 / 3) / (0.5 + 4 / 3)
    old, observed = 2 / share**2, 21 / 23 * 20 * (1 - share)
    df = 1 / (1 / old + 1 / observed)
    assert found.estimates[0] == 2 and found.within[0] == 0.5 and found.between[0] == 1
    np.testing.assert_allclose(found.standard_errors, np.sqrt(0.5 + 4 / 3))
    np.testing.assert_allclose(found.df, df)
    r = share / (1 - share)
    np.testing.assert_allclose(found.missing_information, (r + 2 / (df + 3)) / (r + 1))
    lower, upper = found.intervals(0.95)
    assert lower < 2 < upper and 0 < found.p_values[0] < 1 and "estimate" in str(found)
    large = pool([([value], [0.5]) for value in (1.0, 2.0, 3.0)])
    np.testing.assert_allclose(large.df, old)


def test_nothing_missing_is_the_complete_analysis():
    found = pool([([1.0, 2.0], np.diag([0.5, 0.1]))] * 4, df_complete=30)
    np.testing.assert_allclose(found.standard_errors**2, [0.5, 0.1])
    np.testing.assert_allclose(found.df, 31 / 33 * 30)
    assert (found.missing_information == 0).all()


def test_results_of_statsmodels_bring_names_and_degrees():
    def result(shift):
        covariance = pd.DataFrame(np.eye(2), index=["a", "b"], columns=["a", "b"])
        return types.SimpleNamespace(
            params=pd.Series([1.0 + shift, 2.0], index=["a", "b"]), cov_params=lambda: covariance, df_resid=7.0
        )

    found = pool([result(0.0), result(1.0)])
    assert found.names == ("a", "b") and (found.df < 7).all() and found.estimates.tolist() == [1.5, 2.0]
    assert [row["name"] for row in found.rows()] == ["a", "b"]


def test_intervals_cover_when_imputations_are_proper():
    """A normal mean, 40 % missing, imputed with a draw of its parameters: intervals of 95 % hold it as often."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x = rng.normal(1.0, 2.0, 30)
        fits = []
        for _ in range(10):
            variance = x.var(ddof=1) * 29 / rng.chisquare(29)
            middle = rng.normal(x.mean(), np.sqrt(variance / 30))
            full = np.concatenate([x, rng.normal(middle, np.sqrt(variance), 20)])
            fits.append(([full.mean()], [full.var(ddof=1) / 50]))
        lower, upper = pool(fits, df_complete=49).intervals()
        covered += bool(lower[0] <= 1.0 <= upper[0])
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize(
    "fits, options, message",
    [
        ([([1.0], [1.0])], {}, "two imputations at least, got 1"),
        ([([1.0], [1.0]), ([1.0, 2.0], [1.0, 1.0])], {}, "of different quantities"),
        ([([1.0], [1.0]), ([np.nan], [1.0])], {}, "not finite"),
        ([([1.0], [-1.0])] * 2, {}, "negative variances"),
        ([([1.0], [1.0, 2.0])] * 2, {}, "give as many"),
        ([3.0, 4.0], {}, "must be a pair"),
        ([([1.0], [1.0])] * 2, {"df_complete": 0}, "df_complete must be above 0"),
    ],
)
def test_what_cannot_be_pooled_is_refused(fits, options, message):
    with pytest.raises(DataError, match=message):
        pool(fits, **options)
