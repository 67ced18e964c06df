"""Estimates from several imputations as one: Rubin's rules, with the degrees of freedom of Barnard and Rubin (1999)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from accel.errors import DataError
from accel.reports.tables import rows_as


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Pooled estimates of P quantities from m imputations; every array float64 [P].

    Attributes:
        names: of the quantities.
        estimates: means of the m estimates.
        within, between: mean of the m variances; variance of the m estimates.
        df: degrees of freedom of the t distribution of (estimate - truth) / standard error.
        missing_information: share of the information that the gaps took.
        num_imputations: m.
    """

    names: tuple[str, ...]
    estimates: np.ndarray
    within: np.ndarray
    between: np.ndarray
    df: np.ndarray
    missing_information: np.ndarray
    num_imputations: int

    @property
    def standard_errors(self) -> np.ndarray:
        return np.sqrt(self.within + (1 + 1 / self.num_imputations) * self.between)

    def intervals(self, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) ends of confidence intervals."""
        half = stats.t.ppf((1 + coverage) / 2, self.df) * self.standard_errors
        return self.estimates - half, self.estimates + half

    @property
    def p_values(self) -> np.ndarray:
        """Two-sided, of a quantity being 0."""
        return 2 * stats.t.sf(np.abs(self.estimates) / self.standard_errors, self.df)

    def rows(self) -> list[dict[str, Any]]:
        """One dict a quantity."""
        lower, upper = self.intervals()
        columns = {
            "name": self.names,
            "estimate": self.estimates,
            "standard_error": self.standard_errors,
            "lower_95": lower,
            "upper_95": upper,
            "df": self.df,
            "p_value": self.p_values,
            "missing_information": self.missing_information,
        }
        return [{key: values[one] for key, values in columns.items()} for one in range(len(self.names))]

    def __str__(self) -> str:
        return rows_as("table", self.rows()).rstrip()


def pool(fits: Sequence[Any], df_complete: float | None = None) -> Pooled:
    """Pool one fit for each imputation.

    Args:
        fits: two or more, all alike: pairs (estimates [P], variances [P] or covariance [P, P]), or results of
            statsmodels (params, cov_params(), df_resid).
        df_complete: degrees of freedom that the fit would have on complete data, rows - parameters; None: what the fits
            say of themselves, else infinitely many.

    Raises:
        DataError: fewer than two fits, fits of different quantities, or variances that are negative or not finite.
    """
    fits = list(fits)
    if len(fits) < 2:
        raise DataError(f"pool needs the fits of two imputations at least, got {len(fits)}")
    read = [_read(fit) for fit in fits]
    names = read[0][0]
    if any(one[0] != names for one in read):
        raise DataError("the fits are of different quantities: pool takes one and the same model for each imputation")
    estimates, variances = (np.stack([one[place] for one in read]) for place in (1, 2))
    if not np.isfinite(estimates).all() or not np.isfinite(variances).all() or (variances < 0).any():
        raise DataError("a fit has estimates or variances that are not finite, or negative variances: pool none such")
    if df_complete is None:
        df_complete = min((one[3] for one in read), default=np.inf)
    if not df_complete > 0:
        raise DataError(f"df_complete must be above 0 (rows - parameters), got {df_complete}")
    return _rubin(names, estimates, variances, float(df_complete))


def _rubin(names: tuple[str, ...], estimates: np.ndarray, variances: np.ndarray, df_complete: float) -> Pooled:
    """Estimates and variances [m, P]."""
    count = len(estimates)
    within, between = variances.mean(0), estimates.var(0, ddof=1)
    total = within + (1 + 1 / count) * between
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0, (1 + 1 / count) * between / total, 0.0)  # lambda
        large_sample = (count - 1) / share**2
        if np.isinf(df_complete):
            df = large_sample
        else:
            observed = (df_complete + 1) / (df_complete + 3) * df_complete * (1 - share)
            df = 1 / (1 / large_sample + 1 / observed)
        increase = share / (1 - share)  # r
        lost = np.where(share < 1, (increase + 2 / (df + 3)) / (increase + 1), 1.0)
    lost = np.where(between > 0, lost, 0.0)
    return Pooled(names, estimates.mean(0), within, between, df, lost, count)


def _read(fit: Any) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, float]:
    """(names, estimates, variances, degrees of freedom) of one fit."""
    if hasattr(fit, "params") and hasattr(fit, "cov_params"):
        estimates, spread, df = fit.params, fit.cov_params(), float(getattr(fit, "df_resid", np.inf))
    else:
        try:
            estimates, spread = fit
        except (TypeError, ValueError):
            raise DataError(
                "a fit must be a pair (estimates, variances or covariance) or a result of statsmodels, "
                f"got {type(fit).__name__}"
            ) from None
        df = np.inf
    names = getattr(estimates, "index", None)
    estimates, spread = np.atleast_1d(np.asarray(estimates, np.float64)), np.asarray(spread, np.float64)
    spread = np.atleast_1d(np.diagonal(spread) if spread.ndim == 2 else spread)
    if estimates.ndim != 1 or spread.shape != estimates.shape:
        raise DataError(
            f"a fit has estimates of shape {estimates.shape} and variances of shape {spread.shape}: give as many"
        )
    labels = tuple(map(str, names if names is not None and not callable(names) else range(len(estimates))))
    return labels, estimates, spread, df
