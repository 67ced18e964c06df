"""The wheel: what is in it, that it needs no compiler, and that the Hugging Face package `kernels` keeps its name."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import threading
import zipfile

import pytest

import accel

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built from a copy of the sources where every call of the compiler fails."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools builds the wheel")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is older than pyproject.toml asks for")
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("accel", "kernels", "zoo"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd"))
    out = tmp_path_factory.mktemp("wheel")
    environment = {"PATH": "", "CC": "no-such-compiler", "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> pathlib.Path:
    """A folder of installed packages: the wheel, and a distribution that owns the name `kernels`."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text("OWNER = 'somebody else'\n")
    return folder


def run(code: str, cwd: pathlib.Path, site: pathlib.Path) -> str:
    """Standard output of `python -c code` in a folder, with `site` before everything that is installed here."""
    script = f"import sys; sys.path.insert(1, {str(site)!r})\n{code}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_everything_is_under_accel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f"skimconv-{accel.__version__}.dist-info/"
    assert [name for name in names if not name.startswith(("accel/", info))] == []
    assert zipfile.ZipFile(wheel).read(f"{info}top_level.txt").decode().split() == ["accel"]


def test_every_source_file_is_shipped(wheel):
    """Python files, recipes and weights, where the import map puts them; tests and profiles stay out."""
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"accel/py.typed"}
    for top, inside in (("accel", "accel"), ("kernels", "accel/kernels"), ("zoo", "accel/zoo")):
        for path in (ROOT / top).rglob("*"):
            if path.suffix in (".py", ".toml", ".safetensors"):
                expected.add(f"{inside}/{path.relative_to(ROOT / top).as_posix()}")
    assert expected <= names, sorted(expected - names)
    assert not [name for name in names if "tests/" in name or "profiles/" in name]


def test_without_a_compiler_the_reference_runs(site, tmp_path):
    code = (
        "import torch, accel\n"
        "from accel.kernels.positions import PositionSet\n"
        "with torch.no_grad(): out = accel.ops.interpolate(torch.ones(4, 2), PositionSet.full(2, 2))\n"
        "print(accel.ops.active_backend(out), tuple(out.shape), 'cpu' in accel.ops.available_backends())"
    )
    assert run(code, tmp_path, site) == "reference (1, 2, 2, 2) False"


def test_the_installed_package_and_kernels_are_two(site, tmp_path):
    code = (
        "import accel, kernels, accel.kernels.positions as positions\n"
        "print(kernels.OWNER, positions.__file__, accel.__file__)"
    )
    expected = f"somebody else {site / 'accel/kernels/positions.py'} {site / 'accel/__init__.py'}"
    assert run(code, tmp_path, site) == expected


def test_a_checkout_and_kernels_are_two(site):
    """In the root of the sources, python finds the folder `kernels` first, but a real package outranks it."""
    code = "import accel, kernels, accel.kernels.positions as positions\nprint(kernels.OWNER, positions.__file__)"
    assert run(code, ROOT, site) == f"somebody else {ROOT / 'kernels/positions.py'}"


def test_the_folders_hold_no_package_marker():
    """An `__init__.py` there would make `kernels` and `zoo` importable under those names."""
    for name in ("kernels", "zoo"):
        assert not (ROOT / name / "__init__.py").exists()


def test_torch_finds_the_backend(site, tmp_path):
    code = (
        "import torch, accel\n"
        "net, x = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval(), torch.ones(1, 3, 8, 8)\n"
        "fast = accel.convert_model(net, accel.Perforate(keep=0.5), example_inputs=x)\n"
        "with torch.no_grad(): print(torch.allclose(torch.compile(fast, backend='accel')(x), fast(x)))"
    )
    assert run(code, tmp_path, site) == "True"


def test_the_files_of_an_extension_are_compiled_at_the_same_time(monkeypatch):
    """Every one waits until another has begun; the objects come in the order of the files."""
    build_ext = pytest.importorskip("setuptools.command.build_ext", reason="setuptools builds the wheel").build_ext
    from accel.kernels.cpu.build import Build

    meeting, seen = threading.Barrier(2, timeout=20), []

    class Compiler:
        def compile(self, sources, output_dir=None):
            meeting.wait()
            seen.append((sources, output_dir))
            return [f"{source}.o" for source in sources]

    def build(self):
        self.objects = self.compiler.compile(["a.c", "b.c"], output_dir="there")

    monkeypatch.setattr(build_ext, "build_extensions", build)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    command = Build.__new__(Build)
    command.compiler = Compiler()
    command.build_extensions()
    assert command.objects == ["a.c.o", "b.c.o"] and sorted(seen) == [(["a.c"], "there"), (["b.c"], "there")]


def test_an_editable_install_keeps_what_was_built(tmp_path, monkeypatch):
    """Until a file that it is made from is newer; other builds, and those of other flags, make their own."""
    build_ext = pytest.importorskip("setuptools.command.build_ext", reason="setuptools builds the wheel").build_ext
    from setuptools import Distribution, Extension

    from accel.kernels.cpu.build import Build

    compiled = []
    monkeypatch.setattr(build_ext, "build_extension", lambda self, ext: compiled.append(ext.name))
    monkeypatch.chdir(tmp_path)
    for name in ("pyproject.toml", "a.c", "a.h"):
        (tmp_path / name).write_text("")
    command = Build(Distribution({"packages": ["p"], "package_dir": {"p": "p"}}))
    command.build_lib, command.editable_mode = "lib", True
    ext = Extension("p.engine", ["a.c"], depends=["a.h"])
    made = tmp_path / "p" / command.get_ext_filename("engine")
    made.parent.mkdir()

    command.build_extension(ext)  # there is nothing yet
    made.write_text("built")
    for changed in (None, "a.h", "a.c", "pyproject.toml"):
        for file in (made, *tmp_path.glob("*.*")):
            os.utime(file, (2e9, 2e9 + (file == made) + 2 * (file.name == changed)))
        command.build_extension(ext)
    assert len(compiled) == 4 and (tmp_path / "lib" / "p" / made.name).read_text() == "built"
    os.utime(made, (3e9, 3e9))
    monkeypatch.setenv("CFLAGS", "-fsanitize=address")
    command.build_extension(ext)
    monkeypatch.delenv("CFLAGS")
    command.editable_mode = False
    command.build_extension(ext)
    assert len(compiled) == 6
