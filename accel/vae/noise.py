"""Random numbers that belong to a row: drawn by counting, from a seed, the row's content, and the number of the draw.

So a row's samples do not depend on the rows beside it, on the order of calls, or on the platform. Rows that are equal
in every cell get equal samples.
"""

from __future__ import annotations

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits whose every output bit hangs on every input bit."""
    x = x + _STEP
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_keys(table: np.ndarray, seed: int) -> np.ndarray:
    """uint64 [N], a number for the content of each row of float64 [N, D]; every NaN counts alike, and -0 as 0."""
    bits = np.where(np.isnan(table), np.nan, table + 0.0).view(np.uint64)
    keys = np.full(len(table), _mix(np.array([seed], np.uint64))[0])
    for column in bits.T:
        keys = _mix(keys ^ column)
    return keys


def uniforms(keys: np.ndarray, draws: np.ndarray, count: int) -> np.ndarray:
    """float64 in (0, 1), [N, S, count], for keys [N] and numbers of draws [S]."""
    each = _mix(keys[:, None] ^ _mix(draws.astype(np.uint64)))
    bits = _mix(each[..., None] ^ _mix(np.arange(count, dtype=np.uint64) + np.uint64(1 << 32)))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
