"""Other imputers, in environments of their own: their requirements cannot live beside ours.

`run_rival` makes a virtual environment once, under the user's cache folder, installs what the rival is pinned to, and
hands tables over as files. This file is also what runs there: it imports nothing of the package.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

COMMON = ("pandas==2.3.3", "numpy==2.2.6", "scikit-learn==1.6.1")
RIVALS = {  # what pip installs beside COMMON; mice is R's, which the system brings
    "missforest": ("missforest==4.2.3", "tqdm==4.67.1", "lightgbm==4.6.0"),
    "miceforest": ("miceforest==6.0.5", "lightgbm==4.6.0"),
    "gcimpute": ("gcimpute==0.0.4",),
    "extra_trees": (),
    "mice": (),  # trees (cart)
    "mice_default": (),  # predictive mean matching, logistic regressions
}
_MICE = """
arguments <- commandArgs(trailingOnly = TRUE)
suppressPackageStartupMessages(library(mice))
kinds <- strsplit(arguments[4], "")[[1]]
types <- ifelse(kinds == "n", "numeric", "character")
data <- read.csv(arguments[1], na.strings = "", colClasses = types)
for (k in seq_along(kinds)) if (kinds[k] != "n") data[[k]] <- factor(data[[k]])
new <- seq_len(nrow(data)) > as.integer(arguments[6])
fit <- mice(data, m = as.integer(arguments[3]), method = if (arguments[7] == "mice") "cart" else NULL, ignore = new,
            printFlag = FALSE, seed = as.integer(arguments[5]))
for (k in seq_len(fit$m)) {
  done <- complete(fit, k)
  if (any(new)) done <- done[new, , drop = FALSE]
  write.csv(done, sprintf("%s_%03d.csv", arguments[2], k), row.names = FALSE, na = "")
}
"""


def run_rival(name: str, frame, num_imputations: int, seed: int, learn_from: int | None = None) -> tuple[list, float]:
    """(completed data frames: `num_imputations`, or one of a rival that knows but one answer; seconds it took).

    Answers are kept beside the environments: the same question is not put twice, and seconds are those of the first.

    Args:
        frame: columns of float64 or of text, NaN where missing.
        learn_from: how many rows, from the first on, are learned from: those after them alone are completed. None: all
            are learned from, and completed.

    Raises:
        RuntimeError: the rival failed; what it printed.
    """
    import pandas as pd

    learn_from = len(frame) if learn_from is None else learn_from
    kinds = "".join("n" if pd.api.types.is_numeric_dtype(dtype) else "c" for dtype in frame.dtypes)
    settings, table = [str(num_imputations), kinds, str(seed), str(learn_from)], frame.to_csv(index=False)
    how = inspect.getsource(_METHODS[name]) if name in _METHODS else _MICE
    question = [name, how, *COMMON, *RIVALS[name], *settings, table]
    answer = cache() / "answers" / f"{name}_{hashlib.sha256(json.dumps(question).encode()).hexdigest()[:24]}"
    if not answer.is_dir():
        _ask(name, table, settings, answer)
    seconds = json.loads((answer / "seconds.json").read_text(encoding="utf-8"))
    types = {column: float if kind == "n" else str for column, kind in zip(frame.columns, kinds)}
    files = sorted(answer.glob("completed_*.csv"))
    found = [pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[]) for path in files]
    rows = frame.index if learn_from == len(frame) else frame.index[learn_from:]
    return [one.set_axis(rows).set_axis(frame.columns, axis=1) for one in found], seconds


def _ask(name: str, table: str, settings: list[str], answer: pathlib.Path) -> None:
    """Run the rival on a table, as CSV, and leave the folder `answer`, complete or not at all."""
    answer.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=answer.parent) as scratch:
        given, out = pathlib.Path(scratch, "given.csv"), pathlib.Path(scratch, "answer")
        out.mkdir()
        given.write_text(table, encoding="utf-8")
        arguments = [str(given), str(out / "completed"), *settings]
        if name.startswith("mice_") or name == "mice":
            script = pathlib.Path(scratch, "mice.R")
            script.write_text(_MICE, encoding="utf-8")
            command = ["Rscript", str(script), *arguments, name]
        else:
            command = [str(_environment(name)), __file__, name, *arguments]
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_as_many_threads())
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}")
        (out / "seconds.json").write_text(json.dumps(round(time.monotonic() - begin, 1)), encoding="utf-8")
        out.rename(answer)


def _as_many_threads() -> dict[str, str]:
    """The environment in which LightGBM, which asks for a thread a core, gets as many as OMP_NUM_THREADS gives ours."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return {**os.environ, "OMP_THREAD_LIMIT": threads} if threads else dict(os.environ)


def cache() -> pathlib.Path:
    """Where benches keep what they fetch."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"), "skimconv")


def _environment(name: str) -> pathlib.Path:
    """The Python of the rival's environment, which is made if it is not there."""
    folder = cache() / "rivals" / name
    python, ready = folder / "bin" / "python", folder / "ready.json"
    wanted = json.dumps([*COMMON, *RIVALS[name]])
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *json.loads(wanted)], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return python


def _missforest(frame, new, classes, _count, seed):
    import numpy as np
    from missforest import MissForest

    np.random.seed(seed)
    coded, labels = _coded(frame, new, classes)
    forest = MissForest(categorical=classes or None, verbose=0).fit(coded[0])
    return [_decoded(forest.transform(coded[1])[list(frame)], labels)]


def _coded(frame, new, classes):
    """((both tables with numbers for their classes, as missforest wants them), the labels of each column's numbers)."""
    labels = {column: sorted(frame[column].dropna().unique()) for column in classes}
    coded = frame.copy(), new.copy()
    for column, known in labels.items():
        codes = {label: float(code) for code, label in enumerate(known)}
        for one in coded:
            one[column] = one[column].map(codes).astype(float)
    return coded, labels


def _decoded(coded, labels):
    decoded = coded.copy()
    for column, known in labels.items():
        decoded[column] = [known[int(code)] for code in coded[column]]
    return decoded


def _miceforest(frame, new, classes, count, seed):
    """It learns from new rows too: what its impute_new_data of 6.0.5 gives has nothing to do with the row's cells.

    Classes are drawn by their probabilities ("fast"): looking for alike rows fails where a probability is 0.
    """
    import miceforest
    import pandas as pd

    whole = frame if new is frame else pd.concat([frame, new], ignore_index=True)
    types = {column: pd.CategoricalDtype(sorted(frame[column].dropna().unique())) for column in classes}
    matching = {column: "fast" if column in classes else "normal" for column in whole}
    kernel = miceforest.ImputationKernel(
        whole.astype(types), num_datasets=count, mean_match_strategy=matching, random_state=seed
    )
    kernel.mice(5)
    return [kernel.complete_data(k)[-len(new) :] for k in range(count)]


def _gcimpute(frame, new, classes, _count, seed):
    from gcimpute.gaussian_copula import GaussianCopula

    if classes or new is not frame:
        raise SystemExit("gcimpute takes numbers and ordered classes, no others, and completes what it learns from")
    completed = frame.copy()
    completed[:] = GaussianCopula(verbose=0, random_state=seed).fit_transform(frame.to_numpy())
    return [completed]


def _extra_trees(frame, new, classes, _count, seed):
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    if classes:
        raise SystemExit("scikit-learn's IterativeImputer takes numbers only")
    trees = ExtraTreesRegressor(n_estimators=100, random_state=seed)
    completed = new.copy()
    completed[:] = IterativeImputer(trees, max_iter=10, random_state=seed).fit(frame).transform(new)
    return [completed]


_METHODS = {
    "missforest": _missforest,
    "miceforest": _miceforest,
    "gcimpute": _gcimpute,
    "extra_trees": _extra_trees,
}


def _main(name: str, given: str, out: str, count: str, kinds: str, seed: str, learn_from: str) -> None:
    import pandas as pd

    columns = pd.read_csv(given, nrows=0).columns
    types = {column: float if kind == "n" else str for column, kind in zip(columns, kinds)}
    whole = pd.read_csv(given, dtype=types, keep_default_na=False, na_values=[""])
    frame = whole[: int(learn_from)]
    new = frame if len(frame) == len(whole) else whole[int(learn_from) :].reset_index(drop=True)
    classes = [column for column, kind in zip(columns, kinds) if kind == "c"]
    for number, completed in enumerate(_METHODS[name](frame, new, classes, int(count), int(seed)), 1):
        completed.to_csv(f"{out}_{number:03d}.csv", index=False)


if __name__ == "__main__":
    _main(*sys.argv[1:])
