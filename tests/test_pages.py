"""The pages for people: every Python block runs, in an empty folder; every command is one that the command line has;
every link and file that they name is there."""

import pathlib
import re
import shlex

import pytest
import torch

from accel.cli.main import build_parser

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    *(f"{folder}/README.md" for folder in ("accel", "kernels", "zoo", "tests", "profiles")),
    *(f"accel/{part}/README.md" for part in ("cli", "convert", "halting", "mc", "vae")),
]
_OTHERS = {"Imputer": "pandas", "export_onnx": "onnxscript"}  # what a block needs that an extra brings


def blocks(page, kind):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.M | re.S)


def commands(page):
    """What stands in blocks as something to type, long lines joined."""
    text = "".join(block for kind in ("", "toml") for block in blocks(page, kind)).replace("\\\n", " ")
    lines = [line.split("    #")[0].removeprefix("$ ").strip() for line in text.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("accel ")]


def test_these_are_all_pages():
    found = {str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ROOT.glob("[a-z]*/**/README.md")]}
    assert {page for page in found if page.partition("/")[0] not in ("build", "runs", "venv")} == set(PAGES)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_code_runs(page, tmp_path, monkeypatch, capsys):
    code = "\n".join(blocks(page, "python"))
    for name, package in _OTHERS.items():
        if name in code:
            pytest.importorskip(package, reason=f"{name} needs {package}")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, page, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
    for command in commands(page):
        build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
