"""The C sources are laid out as .clang-format says."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

clang_format = pytest.importorskip("clang_format", reason="clang-format is not installed: pip install '.[test]'")
ROOT = pathlib.Path(__file__).resolve().parents[1]


def format_errors(*sources: pathlib.Path) -> str:
    tool = [clang_format.get_executable("clang-format"), f"--style=file:{ROOT / '.clang-format'}"]
    ran = subprocess.run([*tool, "--dry-run", "-Werror", *map(str, sources)], capture_output=True, text=True)
    assert (ran.returncode == 0) == (not ran.stderr), ran.stderr
    return ran.stderr


def test_the_c_sources_are_formatted():
    sources = [path for kind in ("c", "h", "inc") for path in sorted((ROOT / "kernels/cpu").glob(f"*.{kind}"))]
    assert len(sources) > 20
    assert not format_errors(*sources), "clang-format -i kernels/cpu/*.c kernels/cpu/*.h kernels/cpu/*.inc"


@pytest.mark.parametrize(
    "text", ["int f(void) {\n    return 1;\n}\n", "static int\nx = 1;\n", f"int y = {'1 + ' * 40}1;\n"]
)
def test_what_is_laid_out_otherwise_is_found(text, tmp_path):
    (tmp_path / "other.c").write_text(text)
    assert "other.c" in format_errors(tmp_path / "other.c")
