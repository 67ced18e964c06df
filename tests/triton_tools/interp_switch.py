"""Run Triton kernels on CPU tensors, inside a process that imported triton normally.

`TRITON_INTERPRET=1` is read when triton is imported, for the whole process, and torch's compiler imports triton early.
`interpret()` switches one block of code instead: inside it every `kernel[grid](...)` runs in triton's interpreter, with
bf16 arithmetic repaired (`interp_bf16`) and every memory access checked (`interp_guard`). Outside, the same kernel
objects compile for a GPU as ever.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import types
from collections.abc import Iterator

import pytest
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, _patch_lang
from triton.runtime.jit import JITFunction

import accel.kernels.triton

from . import interp_bf16, interp_guard

for _module in pkgutil.iter_modules(accel.kernels.triton.__path__):
    # inside the switch @triton.jit would make kernels that can only ever be interpreted
    importlib.import_module(f"accel.kernels.triton.{_module.name}")

_TWINS: dict[int, tuple[JITFunction, InterpretedFunction]] = {}  # by id: hashing a JITFunction hashes its source


def interpreted(kernel: JITFunction) -> InterpretedFunction:
    """The interpreter's form of a compiled kernel, made once."""
    if id(kernel) not in _TWINS:
        _TWINS[id(kernel)] = (kernel, InterpretedFunction(kernel.fn))
    return _TWINS[id(kernel)][1]


def _run(self: JITFunction, *args, grid, warmup, **kwargs):
    return interpreted(self).run(*args, grid=grid, warmup=warmup, **kwargs)


def _call(self: JITFunction, *args, **kwargs):
    return interpreted(self)(*args, **kwargs)


@contextlib.contextmanager
def interpret() -> Iterator[None]:
    """Inside the block, launches and calls of `@triton.jit` functions run in the checked interpreter.

    Skips the test where Triton's interpreter never lets go of what it patches (3.4): kernels compiled later would meet
    that.
    """
    if not hasattr(interpreter, "_LangPatchScope"):
        pytest.skip("the interpreter of this Triton keeps triton.language patched")
    saved = JITFunction.run, JITFunction.__call__
    JITFunction.run, JITFunction.__call__ = _run, _call
    # A nested jit function of another module patches triton.language without restoring it. This outermost scope has
    # seen the originals of both names it is known by, and puts them back.
    scope = _patch_lang(types.FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core}))
    try:
        with knobs.runtime.scope(), interp_bf16.exact_bfloat16(), interp_guard.checked_memory():
            knobs.runtime.interpret = True
            yield
    finally:
        scope.restore()
        JITFunction.run, JITFunction.__call__ = saved
