"""Many masks of a table at once: their shapes, and the frame that holds the samples drawn under them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from accel.errors import DataError
from accel.vae import frames
from accel.vae.columns import Column


def checked_mask(mask: Any, rows: int, width: int) -> np.ndarray:
    """bool [N, D], of one row [M, D], or [N, M, D].

    Raises:
        DataError: a mask of another shape or type.
    """
    mask = np.asarray(mask)
    fits = mask.ndim in (2, 3) and mask.shape[-1] == width and mask.dtype == bool and mask.size
    if fits and mask.ndim == 2 and (rows == 1 or len(mask) == rows):
        return mask
    if fits and mask.ndim == 3 and len(mask) in (1, rows):
        return np.broadcast_to(mask, (rows, *mask.shape[1:]))
    raise DataError(
        f"a mask for {rows} rows of {width} columns must be bool of shape [{rows}, {width}], of one row "
        f"[masks, {width}], or [{rows} or 1, masks, {width}]: got {mask.dtype} {mask.shape}"
    )


def long_frame(frame: pd.DataFrame, columns: Sequence[Column], mask: np.ndarray, drawn: np.ndarray) -> pd.DataFrame:
    """Samples [rows times masks, S, D] below each other, in the dtypes of `frame`, under levels row, mask, sample.

    Args:
        mask: as `checked_mask` has it; level mask is left out where each row has one.
    """
    per_row, count = len(drawn) // len(frame), drawn.shape[1]
    owner = np.repeat(np.arange(len(frame)), per_row * count)
    hidden = np.repeat(mask.reshape(-1, mask.shape[-1]), count, 0) | frame.isna().to_numpy()[owner]
    found = frames.fill(frame.iloc[owner], columns, drawn.reshape(-1, drawn.shape[-1]), hidden)
    levels = {"row": frame.index[owner]}
    if mask.ndim == 3 or per_row > 1:
        levels["mask"] = np.tile(np.repeat(np.arange(per_row), count), len(frame))
    levels["sample"] = np.tile(np.arange(count), len(drawn))
    return found.set_axis(pd.MultiIndex.from_arrays(list(levels.values()), names=list(levels)))
