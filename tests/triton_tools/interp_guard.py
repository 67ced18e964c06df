"""A sanitiser for triton's interpreter.

Inside `checked_memory()` every active element of a load, store or atomic must lie in one of the launch's tensors
(`OutOfBounds`), no element may be touched by two programs with a plain store among the accesses (`Race`), and two lanes
of one store may not write different values to one address (`Race`). On a GPU all three are silent.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
from triton.runtime import interpreter as ti

ATOMIC, LOAD, STORE = 0, 1, 2  # a race: two programs on one element, the highest kind STORE, or LOAD with ATOMIC
_KINDS = ("atomic", "load", "store")
MAX_ACCESSES = 20_000_000  # element accesses kept per launch for the race check: 240 MB


class OutOfBounds(IndexError):
    pass


class Race(RuntimeError):
    pass


@dataclasses.dataclass
class _Launch:
    """Tensor extents [(first byte, past the last byte, name)] and accesses [(addresses, program, kind)] of a launch."""

    extents: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)
    accesses: list[tuple[np.ndarray, int, int]] = dataclasses.field(default_factory=list)
    kept: int = 0

    def describe(self, address: int) -> str:
        first, end, name = min(self.extents, key=lambda e: min(abs(address - e[0]), abs(address - e[1])))
        return f"argument {name!r}, byte {address - first} of {end - first}"

    def record(self, kind: int, pointers: np.ndarray, mask: np.ndarray, size: int, values: np.ndarray | None = None):
        shape = np.broadcast_shapes(pointers.shape, mask.shape)
        active = np.broadcast_to(mask, shape).astype(bool)  # the interpreter splats an int1 scalar as integers
        where = np.broadcast_to(pointers, shape)[active].astype(np.uint64)
        if where.size == 0:
            return
        inside = np.zeros(where.shape, bool)
        for first, end, _ in self.extents:
            inside |= (where >= np.uint64(first)) & (where + np.uint64(size) <= np.uint64(end))
        builder = ti.interpreter_builder
        if not inside.all():
            raise OutOfBounds(
                f"{_KINDS[kind]}: {int((~inside).sum())} elements outside every tensor; "
                f"nearest: {self.describe(int(where[~inside][0]))}; program {builder.grid_idx}"
            )
        if values is not None:
            self._same_values(where, np.broadcast_to(values, shape)[active])
        grid, index = builder.grid_dim, builder.grid_idx
        if int(np.prod(grid)) > 1 and self.kept + where.size <= MAX_ACCESSES:
            program = (index[0] * grid[1] + index[1]) * grid[2] + index[2]
            self.accesses.append((np.unique(where), program, kind))
            self.kept += where.size

    def _same_values(self, where: np.ndarray, values: np.ndarray) -> None:
        order = np.argsort(where, kind="stable")
        where, values = where[order], values[order]
        both_nan = (values[1:] != values[1:]) & (values[:-1] != values[:-1])
        clash = (where[1:] == where[:-1]) & (values[1:] != values[:-1]) & ~both_nan
        if clash.any():
            raise Race(f"lanes of one store write different values to {self.describe(int(where[1:][clash][0]))}")

    def check_races(self) -> None:
        if not self.accesses:
            return
        where = np.concatenate([addresses for addresses, _, _ in self.accesses])
        sizes = [addresses.size for addresses, _, _ in self.accesses]
        program = np.repeat([p for _, p, _ in self.accesses], sizes)
        kind = np.repeat([k for _, _, k in self.accesses], sizes)
        order = np.argsort(where, kind="stable")
        where, program, kind = where[order], program[order], kind[order]
        start = np.r_[0, np.flatnonzero(where[1:] != where[:-1]) + 1]
        shared = np.minimum.reduceat(program, start) != np.maximum.reduceat(program, start)
        lowest, highest = np.minimum.reduceat(kind, start), np.maximum.reduceat(kind, start)
        racing = shared & ((highest == STORE) | ((highest == LOAD) & (lowest == ATOMIC)))
        if racing.any():
            first = start[racing][0]
            end = np.searchsorted(where, where[first], "right")
            who = sorted({(int(p), _KINDS[k]) for p, k in zip(program[first:end], kind[first:end])})
            raise Race(
                f"{int(racing.sum())} elements touched by two programs; first: "
                f"{self.describe(int(where[first]))}: {who[:4]}"
            )


class _Memory:
    """The interpreter's native memory functions, each access recorded first."""

    def __init__(self, real, launches: list[_Launch]):
        self._real, self._launches = real, launches

    def __getattr__(self, name: str):
        return getattr(self._real, name)

    def load(self, pointers, mask, other, dtype):
        self._launches[-1].record(LOAD, pointers, mask, np.dtype(dtype).itemsize)
        return self._real.load(pointers, mask, other, dtype)

    def store(self, pointers, values, mask):
        self._launches[-1].record(STORE, pointers, mask, values.dtype.itemsize, values)
        return self._real.store(pointers, values, mask)

    def atomic_rmw(self, op, pointers, values, mask, order):
        self._launches[-1].record(ATOMIC, pointers, mask, values.dtype.itemsize)
        return self._real.atomic_rmw(op, pointers, values, mask, order)

    def atomic_cas(self, pointers, expected, values, order):
        self._launches[-1].record(ATOMIC, pointers, np.ones(pointers.shape, bool), values.dtype.itemsize)
        return self._real.atomic_cas(pointers, expected, values, order)


def _extents(names: list[str], args, kwargs) -> list[tuple[int, int, str]]:
    found = []
    for name, value in [*zip(names, args), *kwargs.items()]:
        if hasattr(value, "data_ptr") and value.numel():
            span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride()))
            found.append((value.data_ptr(), value.data_ptr() + span * value.element_size(), name))
    return found


@contextlib.contextmanager
def checked_memory() -> Iterator[None]:
    launches: list[_Launch] = []
    real, enter, leave = ti._interpreter, ti.GridExecutor._init_args_hst, ti.GridExecutor._restore_args_dev

    def start(self, args, kwargs):
        host_args, host_kwargs = enter(self, args, kwargs)
        launches.append(_Launch(_extents(self.arg_names, host_args, host_kwargs)))
        return host_args, host_kwargs

    def finish(self, *args):
        leave(self, *args)
        launches.pop().check_races()

    ti._interpreter = _Memory(real, launches)
    ti.GridExecutor._init_args_hst, ti.GridExecutor._restore_args_dev = start, finish
    try:
        yield
    finally:
        ti._interpreter = real
        ti.GridExecutor._init_args_hst, ti.GridExecutor._restore_args_dev = enter, leave
