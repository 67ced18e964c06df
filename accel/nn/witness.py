"""The way that a forward takes through the Python code of a model, instruction by instruction.

A graph holds for real inputs where the forward takes the same way on them as when it was traced: `isinstance`,
`hasattr` and whatever else may answer otherwise for what stands in for a tensor shows here. The code that ran also
says which names from outside the model its forward reads.
"""

from __future__ import annotations

import contextlib
import gc
import pathlib
import sys
import sysconfig
import threading
from collections.abc import Iterator
from types import CodeType, FrameType

import torch

from accel.kernels import dispatch

# Code that runs for stand-ins otherwise than for tensors, and decides nothing by itself.
_LIBRARIES = tuple(f"{pathlib.Path(file).parent}/" for file in (torch.__file__, __file__, dispatch.__file__))
_STANDARD = f"{sysconfig.get_path('stdlib')}/"
_FROZEN = "<frozen "

_lock = threading.Lock()
_watching, _collects = 0, True  # forwards that are watched now; whether the collector ran before


class Steps:
    """Instructions that ran in a thread, but those of torch, of Python's library and of this package's own.

    Attributes:
        taken: (code, offset of the instruction), in order.
        ran: the codes and their global names.
    """

    def __init__(self) -> None:
        self.taken: list[tuple[CodeType, int]] = []
        self.ran: dict[tuple[CodeType, int], dict[str, object]] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block the steps of this thread are taken down; a debugger is out of work meanwhile."""
        before = sys.gettrace()
        with _no_collections():
            sys.settrace(self._enter)
            try:
                yield
            finally:
                sys.settrace(before)

    def _enter(self, frame: FrameType, _event: str, _argument: object) -> object:
        code = frame.f_code
        if is_library(code.co_filename) or str(frame.f_globals.get("__name__")).startswith("namedtuple_"):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        self.ran[code, id(frame.f_globals)] = frame.f_globals
        return self._step

    def _step(self, frame: FrameType, event: str, _argument: object) -> object:
        if event == "opcode":
            self.taken.append((frame.f_code, frame.f_lasti))
        return self._step


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """The garbage collector rests: what it calls, finalizers and `gc.callbacks`, is no part of a forward.

    It does so for all threads, until the last of them that watches is done.
    """
    global _watching, _collects
    with _lock:
        if not _watching:
            _collects = gc.isenabled()
        _watching += 1
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            _watching -= 1
            if not _watching and _collects:
                gc.enable()


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Within the block no steps are taken down."""
    before = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(before)


def is_library(file: str) -> bool:
    """Whether code of this file decides nothing by itself, or is not the model's; "" is the interpreter's."""
    if not file or file.startswith((*_LIBRARIES, _FROZEN)):
        return True
    return file.startswith(_STANDARD) and "site-packages" not in file and "dist-packages" not in file
