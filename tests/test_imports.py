"""Who imports whom: the floors of the package, read from the sources; and what a bare `import accel` loads."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The floors from the ground up: a part imports itself, lower floors, and its own floor where that makes no circle.
FLOORS = [
    {"kernels", "errors", "files", "registry"},
    {"ops", "inputs", "running", "masks", "fills", "config", "config_halting", "config_values"}
    | {"mc", "distributions", "halting", "profiling", "reports", "train"},
    {"nn", "vae", "distill"},
    {"convert", "calibrate"},
    {"impact", "low_rank", "depth"},
    {"greedy", "serialize", "zoo", "export"},
    {"api"},
    {"bench"},
    {"cli"},
]
LEVEL = {part: level for level, floor in enumerate(FLOORS) for part in floor}
ONLY = {  # parts that stay close to the ground: all of accel that they may import
    "kernels": set(),
    "ops": {"kernels"},
    "mc": set(),
    "distributions": {"kernels"},
    "halting": {"ops", "kernels"},
}
THIRD_PARTY = {
    "kernels": {"torch", "triton", "numpy", "setuptools"},
    "mc": {"torch"},
    "distributions": {"torch"},
    "ops": set(),
}


def sources() -> list[pathlib.Path]:
    return sorted(path for folder in ("accel", "kernels", "zoo") for path in (ROOT / folder).rglob("*.py"))


def part_of(module: str) -> str:
    """ "accel.nn.perforated" -> "nn"; "accel" itself -> ""."""
    return module.split(".")[1] if "." in module else ""


def module_of(path: pathlib.Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "accel":
        parts.insert(0, "accel")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: pathlib.Path) -> list[tuple[str, int]]:
    """Full names of the modules that a file imports anywhere, with the line."""
    found = []
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(name.name, node.lineno) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base == "accel":
                found += [(f"accel.{name.name}", node.lineno) for name in node.names]
            else:
                found.append((base, node.lineno))
    return found


def problem(importer: str, target: str) -> str | None:
    """Why part `importer` may not import part `target`."""
    if importer == target:
        return None
    for part in (importer, target):
        if part not in LEVEL:
            return f"{part!r} is on no floor: give it one in this test"
    if LEVEL[target] <= LEVEL[importer] and target in ONLY.get(importer, LEVEL):
        return None
    return f"{importer} (floor {LEVEL[importer]}) may not import {target} (floor {LEVEL[target]})"


def parts_imported() -> dict[str, set[str]]:
    """Part -> the other parts that its files import anywhere."""
    edges: dict[str, set[str]] = {}
    for path in sources():
        importer = part_of(module_of(path))
        targets = {part_of(name) for name, _ in imported(path) if name.startswith("accel.")}
        edges.setdefault(importer, set()).update(targets - {importer})
    return edges


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    importer = part_of(module_of(path))
    if importer in ("", "__main__"):  # accel/__init__.py loads names lazily; accel/__main__.py starts the command
        assert all(not name.startswith("accel.") or part_of(name) == "cli" for name, _ in imported(path))
        return
    wrong = []
    for name, line in imported(path):
        top = name.split(".")[0]
        if top == "accel":
            if name == "accel" and importer in ("bench", "cli"):
                continue  # they may use the package as its users do
            reason = problem(importer, part_of(name)) if "." in name else "name the module that is needed"
            wrong += [f"line {line}: {name}: {reason}"] if reason else []
        elif top in ("kernels", "zoo"):
            wrong.append(f"line {line}: say accel.{name}")
        elif importer in THIRD_PARTY and top not in THIRD_PARTY[importer] | sys.stdlib_module_names:
            wrong.append(f"line {line}: {importer} may not import {top}")
    assert not wrong, "\n".join(wrong)


def test_there_are_no_circles():
    """Between parts, wherever in a file the import stands."""
    edges = {part: targets for part, targets in parts_imported().items() if part in LEVEL}
    while edges:
        leaves = {part for part, targets in edges.items() if not targets & edges.keys()}
        assert leaves, f"circular imports among {sorted(edges)}"
        edges = {part: targets for part, targets in edges.items() if part not in leaves}


def test_no_module_bears_the_name_of_a_public_function():
    """Importing such a module would overwrite the function of the package."""
    import accel

    for path in (ROOT / "accel").iterdir():
        name = path.stem
        if name in accel._PUBLIC:
            raise AssertionError(f"{path.name} would hide accel.{name}")


def test_every_public_name_loads():
    import accel

    for name in accel.__all__:
        assert getattr(accel, name) is not None
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'; public names: .*convert_model"):
        _ = accel.nonsense
    assert sorted(accel.__all__) == dir(accel)


def test_importing_accel_is_lean():
    """No triton, no torchvision, no torch even: names load what they need on first use."""
    code = (
        "import sys, accel\n"
        "loaded = {'triton', 'torch', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'import accel loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_accel_is_quick():
    """0.3 s more than torch at the most; of the processor, as others may use the machine too."""
    code = "import time, torch; start = time.process_time(); import accel; print(time.process_time() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(done.stdout) < 0.3


def test_the_rule_bites():
    assert problem("kernels", "nn") and problem("masks", "cli") and problem("nn", "convert") and problem("mc", "ops")
    assert problem("api", "convert") is None and problem("halting", "ops") is None
    assert "on no floor" in problem("nn", "somewhere")
