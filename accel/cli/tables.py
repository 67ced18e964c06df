"""Tables in files: CSV, TSV, parquet, feather. What stood in a text file comes back as it was written there."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from accel.errors import DataError
from accel.vae.memory import need_memory

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*SEPARATORS, ".parquet", ".feather")
_BYTES_OF_TEXT = 12  # memory that a byte of text takes: once as text cells, once as numbers, and a copy of each
_BYTES_OF_BINARY = 8  # of a compressed file, by the same count


class Table:
    """A table read from a file.

    Attributes:
        frame: the table with its types.
        ending: of the file's name.

    Raises:
        DataError: the file is missing, empty, larger than memory, of an unknown kind or not what its name says; or two
            columns have one name.
    """

    def __init__(self, path: pathlib.Path, missing: Sequence[str] = ()) -> None:
        self.path, self.ending, self._text = path, path.suffix.lower(), None
        if self.ending not in ENDINGS:
            raise DataError(f"{path} is no table that can be read: its name must end in {', '.join(ENDINGS)}")
        if not path.is_file():
            raise DataError(f"there is no file {path}: name a table ({', '.join(ENDINGS)})")
        factor = _BYTES_OF_TEXT if self.ending in SEPARATORS else _BYTES_OF_BINARY
        need_memory(factor * path.stat().st_size, f"the rows of {path}")
        self.frame = self._read_text(list(missing)) if self.ending in SEPARATORS else self._read_binary()
        if not len(self.frame) or not len(self.frame.columns):
            raise DataError(f"{path} holds no rows: at least two are needed")

    def _read_text(self, missing: list[str]) -> pd.DataFrame:
        options = {"sep": SEPARATORS[self.ending], "na_values": missing, "skipinitialspace": True}
        try:
            heads = pd.read_csv(self.path, header=None, nrows=1, dtype=str, **options).iloc[0]
            if heads.duplicated().any():
                raise DataError(f"{self.path} has two columns called {heads[heads.duplicated()].iloc[0]!r}: rename one")
            self._text = pd.read_csv(self.path, dtype=str, **options)
            return pd.read_csv(self.path, low_memory=False, **options)
        except pd.errors.EmptyDataError:
            raise DataError(f"{self.path} is empty: it needs a line of column names and at least two rows") from None
        except (pd.errors.ParserError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} is no table of text ({' '.join(str(error).split())}): repair it") from error

    def _read_binary(self) -> pd.DataFrame:
        try:
            return pd.read_parquet(self.path) if self.ending == ".parquet" else pd.read_feather(self.path)
        except ImportError as error:
            raise DataError(f"{self.path} needs pyarrow: pip install pyarrow, or give CSV") from error
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise DataError(f"{self.path} is no {self.ending[1:]} file ({' '.join(str(error).split())})") from error

    def write(self, path: pathlib.Path, completed: pd.DataFrame) -> None:
        """A completed table, in the format that this one was read from."""
        if self.ending == ".parquet":
            completed.to_parquet(path)
        elif self.ending == ".feather":
            completed.to_feather(path)
        else:
            gaps = self.frame.isna().to_numpy()
            text = self._text.to_numpy(dtype=object)
            text[gaps] = [_written(value) for value in completed.to_numpy(dtype=object)[gaps]]
            lines = pd.DataFrame(np.where(pd.isna(text), "", text), columns=self._text.columns)
            lines.to_csv(path, index=False, sep=SEPARATORS[self.ending])


def _written(value: object) -> str:
    """An imputed cell as text: seven digits, what it was computed to; nothing for what was handed through."""
    if pd.isna(value):
        return ""
    return f"{value:.7g}" if isinstance(value, (float, np.floating)) else str(value)
