"""Other imputers, in environments of their own: their requirements cannot live beside ours.

`run_rival` makes a virtual environment once, under the user's cache folder, installs what the rival is pinned to, and
hands tables over as files. This file is also what runs there: it imports nothing of the package.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

COMMON = ("pandas==2.3.3", "numpy==2.2.6", "scikit-learn==1.6.1")
RIVALS = {  # what pip installs beside COMMON; mice is R's, which the system brings
    "missforest": ("missforest==4.2.3", "tqdm==4.67.1", "lightgbm==4.6.0"),
    "miceforest": ("miceforest==6.0.5", "lightgbm==4.6.0"),
    "gcimpute": ("gcimpute==0.0.4",),
    "extra_trees": (),
    "mice": (),
}
_MICE = """
arguments <- commandArgs(trailingOnly = TRUE)
suppressPackageStartupMessages(library(mice))
kinds <- strsplit(arguments[4], "")[[1]]
types <- ifelse(kinds == "n", "numeric", "character")
data <- read.csv(arguments[1], na.strings = "", colClasses = types)
for (k in seq_along(kinds)) if (kinds[k] != "n") data[[k]] <- factor(data[[k]])
fit <- mice(data, m = as.integer(arguments[3]), method = "cart", printFlag = FALSE, seed = as.integer(arguments[5]))
for (k in seq_len(fit$m)) write.csv(complete(fit, k), sprintf("%s_%d.csv", arguments[2], k), row.names = FALSE, na = "")
"""


def run_rival(name: str, frame, num_imputations: int, seed: int) -> list:
    """Completed data frames: `num_imputations`, or one of a rival that knows but one answer.

    Args:
        frame: columns of float64 or of text, NaN where missing.

    Raises:
        RuntimeError: the rival failed; what it printed.
    """
    import pandas as pd

    kinds = "".join("n" if pd.api.types.is_numeric_dtype(dtype) else "c" for dtype in frame.dtypes)
    with tempfile.TemporaryDirectory() as scratch:
        given, out = pathlib.Path(scratch, "given.csv"), pathlib.Path(scratch, "completed")
        frame.to_csv(given, index=False)
        arguments = [str(given), str(out), str(num_imputations), kinds, str(seed)]
        if name == "mice":
            script = pathlib.Path(scratch, "mice.R")
            script.write_text(_MICE, encoding="utf-8")
            command = ["Rscript", str(script), *arguments]
        else:
            command = [str(_environment(name)), __file__, name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}")
        files = sorted(pathlib.Path(scratch).glob("completed_*.csv"))
        types = {column: float if kind == "n" else str for column, kind in zip(frame.columns, kinds)}
        return [pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[]) for path in files]


def _environment(name: str) -> pathlib.Path:
    """The Python of the rival's environment, which is made if it is not there."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    folder = cache / "skimconv" / "rivals" / name
    python, ready = folder / "bin" / "python", folder / "ready.json"
    wanted = json.dumps([*COMMON, *RIVALS[name]])
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *json.loads(wanted)], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return python


def _missforest(frame, classes, _count, seed):
    import numpy as np
    from missforest import MissForest

    np.random.seed(seed)
    return [MissForest(categorical=classes or None, verbose=0).fit_transform(frame)]


def _miceforest(frame, classes, count, seed):
    import miceforest

    kernel = miceforest.ImputationKernel(
        frame.astype(dict.fromkeys(classes, "category")), num_datasets=count, random_state=seed
    )
    kernel.mice(5)
    return [kernel.complete_data(k) for k in range(count)]


def _gcimpute(frame, classes, _count, seed):
    from gcimpute.gaussian_copula import GaussianCopula

    if classes:
        raise SystemExit("gcimpute takes numbers and ordered classes, no others")
    completed = frame.copy()
    completed[:] = GaussianCopula(verbose=0, random_state=seed).fit_transform(frame.to_numpy())
    return [completed]


def _extra_trees(frame, classes, _count, seed):
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    if classes:
        raise SystemExit("scikit-learn's IterativeImputer takes numbers only")
    trees = ExtraTreesRegressor(n_estimators=100, random_state=seed)
    completed = frame.copy()
    completed[:] = IterativeImputer(trees, max_iter=10, random_state=seed).fit_transform(frame)
    return [completed]


_METHODS = {
    "missforest": _missforest,
    "miceforest": _miceforest,
    "gcimpute": _gcimpute,
    "extra_trees": _extra_trees,
}


def _main(name: str, given: str, out: str, count: str, kinds: str, seed: str) -> None:
    import pandas as pd

    columns = pd.read_csv(given, nrows=0).columns
    types = {column: float if kind == "n" else str for column, kind in zip(columns, kinds)}
    frame = pd.read_csv(given, dtype=types, keep_default_na=False, na_values=[""])
    classes = [column for column, kind in zip(columns, kinds) if kind == "c"]
    for number, completed in enumerate(_METHODS[name](frame, classes, int(count), int(seed)), 1):
        completed.to_csv(f"{out}_{number:03d}.csv", index=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
