"""Every tensor that the package makes says of what dtype and where: torch's defaults are the user's, and change."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# torch's makers of tensors: those that follow the default device, and of these the ones that follow the default dtype
FOLLOW_DTYPE = {"empty", "zeros", "ones", "full", "eye", "rand", "randn", "linspace", "logspace", "tensor"}
FOLLOW_DEVICE = FOLLOW_DTYPE | {"arange", "randint", "randperm", "as_tensor", "tril_indices", "triu_indices"}


def unsaid(source: str) -> list[str]:
    """The calls in a source that leave a dtype or a device to the defaults."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        if not isinstance(call.func.value, ast.Name) or call.func.value.id != "torch":
            continue
        said = {keyword.arg for keyword in call.keywords}
        needed = {"dtype"} if call.func.attr in FOLLOW_DTYPE else set()
        needed |= {"device"} if call.func.attr in FOLLOW_DEVICE else set()
        needed = set() if None in said else needed  # **options: said elsewhere
        if needed - said:
            found.append(f"line {call.lineno}: torch.{call.func.attr} without {' and '.join(sorted(needed - said))}")
    return found


def sources() -> list[pathlib.Path]:
    """All but the command line and its benchmarks, whose process is their own."""
    files = [path for folder in ("accel", "kernels") for path in (ROOT / folder).rglob("*.py")]
    return [path for path in files if not {"cli", "bench"} & set(path.relative_to(ROOT).parts)]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_allocations_say_their_dtype_and_device(path):
    assert unsaid(path.read_text()) == []


def test_the_check_finds_what_it_looks_for():
    assert unsaid("import torch\nx = torch.empty(3)") == ["line 2: torch.empty without device and dtype"]
    assert unsaid("import torch\nx = torch.arange(3, dtype=torch.int32)") == ["line 2: torch.arange without device"]
    assert unsaid("import torch\nx = torch.empty(3, dtype=torch.int32, device='cpu')") == []
