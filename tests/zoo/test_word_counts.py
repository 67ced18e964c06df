"""Counts of words from files in LDA-C format."""

import pytest
import torch

from accel.errors import DataError
from accel.zoo.word_counts import load_counts


def write(folder, lines, words="red green blue"):
    (folder / "texts.ldac").write_text("".join(f"{line}\n" for line in lines))
    (folder / "texts.tokens").write_text("".join(f"{word}\n" for word in words.split()))
    return folder / "texts.ldac"


def test_every_tenth_text_is_held_out(tmp_path):
    path = write(tmp_path, [f"2 0:{k + 1} 2:7" for k in range(20)])
    train, words = load_counts(path, "train")
    test, _ = load_counts(path, "test")
    assert words == ["red", "green", "blue"] and train.shape == (18, 3) and train.dtype is torch.float32
    assert test.tolist() == [[10.0, 0.0, 7.0], [20.0, 0.0, 7.0]]
    assert train[9].tolist() == [11.0, 0.0, 7.0]


def test_texts_without_words_are_left_out(tmp_path):
    train, _ = load_counts(write(tmp_path, ["1 0:1", "0", "", "1 1:2"]), "train")
    assert train.tolist() == [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0:1", "line 2 is not in LDA-C format"),
        ("1 3:1", "line 2 is not in LDA-C format"),
        ("1 0:-1", "line 2 is not in LDA-C format"),
        ("1 red:1", "line 2 is not in LDA-C format"),
        ("1 0", "line 2 is not in LDA-C format"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        load_counts(write(tmp_path, ["1 0:1", line]), "train")


def test_missing_files_and_splits_are_one_line(tmp_path):
    with pytest.raises(DataError, match="no text for the test split"):
        load_counts(write(tmp_path, ["1 0:1"]), "test")
    with pytest.raises(DataError, match="split must be"):
        load_counts(tmp_path / "texts.ldac", "valid")
    (tmp_path / "texts.tokens").unlink()
    with pytest.raises(DataError, match=r"cannot read .*texts\.tokens"):
        load_counts(tmp_path / "texts.ldac", "train")
