"""Texts as counts of words, from files in LDA-C format: one text a line, `number index:count index:count ...`."""

from __future__ import annotations

import pathlib

import torch
from torch import Tensor

from accel.errors import DataError

_EVERY = 10  # every tenth text is held out


def load_counts(path: str | pathlib.Path, split: str) -> tuple[Tensor, list[str]]:
    """(counts float32 [N, words], the words) of the `split` ("train" or "test"; every tenth text is for the test).

    Args:
        path: NAME.ldac, such as lda/tests/reuters.ldac of the package `lda`; the words lie in NAME.tokens beside it,
            one a line. Texts without words are left out.

    Raises:
        DataError: naming the file and line that cannot be read, or no text in the split.
    """
    path = pathlib.Path(path)
    if split not in ("train", "test"):
        raise DataError(f"split must be train or test, got {split!r}")
    words = _lines(path.with_suffix(".tokens"))
    rows = [_read(line, number, len(words), path) for number, line in enumerate(_lines(path), 1) if line.strip()]
    chosen = [row for k, row in enumerate(rows) if (k % _EVERY == _EVERY - 1) == (split == "test") and row]
    if not chosen:
        raise DataError(f"{path} holds no text for the {split} split: give a file with ten texts or more")
    counts = torch.zeros(len(chosen), len(words), dtype=torch.float32, device="cpu")
    for text, row in zip(counts, chosen):
        for index, count in row.items():
            text[index] = count
    return counts, words


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error}): give a file NAME.ldac with NAME.tokens beside it") from error


def _read(line: str, number: int, words: int, path: pathlib.Path) -> dict[int, int]:
    try:
        stated, *pairs = line.split()
        found = {int(index): int(count) for index, _, count in (pair.partition(":") for pair in pairs)}
        if int(stated) != len(found) or any(not 0 <= i < words or n < 0 for i, n in found.items()):
            raise ValueError(f"{stated} words of {words} promised")
    except ValueError as error:
        raise DataError(f"{path}, line {number} is not in LDA-C format ({error}): save it again") from error
    return found
