"""Files and folders: whole or not at all, and one clear line for each mistake."""

import os
import pathlib
import stat

import pytest
import torch
from safetensors.torch import load_file

from accel import files
from accel.errors import ConfigError, DataError


def test_output_folder_appears_whole(tmp_path):
    target = tmp_path / "new" / "out"
    with files.output_folder(target, "done.json") as folder:
        (folder / "done.json").write_text("{}")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["done.json"]
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_output_folder_leaves_nothing_when_the_work_fails(tmp_path):
    with pytest.raises(RuntimeError, match="half way"), files.output_folder(tmp_path / "out", "done.json") as folder:
        (folder / "done.json").write_text("{}")
        raise RuntimeError("half way")
    assert not any(tmp_path.iterdir())


def test_output_folder_replaces_only_its_own(tmp_path):
    for text in ("first", "second"):
        with files.output_folder(tmp_path / "out", "done.json") as folder:
            (folder / "done.json").write_text(text)
    assert (tmp_path / "out" / "done.json").read_text() == "second"

    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("keep me")
    with pytest.raises(DataError, match="letters holds files"), files.output_folder(other, "done.json"):
        pytest.fail("the block must not run")
    assert (other / "dear.txt").read_text() == "keep me"


def test_output_folder_inside_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(DataError, match=r"cannot write the folder .*file"), files.output_folder(target, "m"):
            pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_write_text_leaves_no_partial_file(tmp_path):
    files.write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
    with pytest.raises(DataError, match="cannot write"):
        files.write_text(tmp_path / "a.txt" / "b.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot write"):
        files.write_text(tmp_path / "folder", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_read_toml_names_the_file(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("keep = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml is no TOML"):
        files.read_toml(bad)
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml"):
        files.read_toml(tmp_path / "none.toml")


def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "a.bin"
    files.write_text(path, "before")
    with pytest.raises(RuntimeError, match="half way"), files.replacing(path) as partial:
        partial.write_text("aft")
        raise RuntimeError("half way")
    assert path.read_text() == "before" and [found.name for found in path.parent.iterdir()] == ["a.bin"]


def test_rows_and_tensors_are_open_to_whom_other_files_are(tmp_path):
    files.write_rows(tmp_path / "rows.jsonl", ({"a": number} for number in range(2)))
    assert (tmp_path / "rows.jsonl").read_text() == '{"a": 0}\n{"a": 1}\n'
    before = os.umask(0o027)
    try:
        files.write_tensors(tmp_path / "x.safetensors", {"w": torch.arange(6.0).view(2, 3).t()})
    finally:
        os.umask(before)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["w"], torch.arange(6.0).view(2, 3).t())
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_an_interrupt_between_the_two_renames_brings_the_old_folder_back(tmp_path, monkeypatch):
    target, rename = tmp_path / "out", pathlib.Path.rename
    with files.output_folder(target, "done.json") as folder:
        (folder / "done.json").write_text("first")

    def interrupted(path, other):
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, other)

    monkeypatch.setattr(pathlib.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), files.output_folder(target, "done.json") as folder:
        (folder / "done.json").write_text("second")
    assert (target / "done.json").read_text() == "first" and list(tmp_path.iterdir()) == [target]
