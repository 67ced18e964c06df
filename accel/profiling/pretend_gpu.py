"""A pretend card: triton's real launch path on CPU tensors, for a GPU that is not there.

Inside `pretend_gpu("sm90")` a launch binds its arguments, specialises on their true alignment, tunes over its configs,
is compiled down to machine code, and is refused over the card's shared-memory limit, all as on the card. Then it runs
nothing: the block's record holds the compiled kernels (`accel.profiling.machine_code` reads them) and the launches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.autotuner import Autotuner
from triton.runtime.driver import driver

from accel.kernels.triton.launch import tuner

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Shared memory a block may ask for, bytes, and multiprocessors of the card that we mean: A100, H100, B200, MI300X.
SHARED_LIMIT = {"sm80": 166_912, "sm90": 232_448, "sm100": 232_448, "gfx942": 65_536}
PROCESSORS = {"sm80": 108, "sm90": 132, "sm100": 148, "gfx942": 304}
_DEVICE_NUMBERS = itertools.count(1000)  # never reused: a kernel caches its target and its binaries per device number


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One kernel as a GPU would load it: metadata of the compiler, text of its stages, and the binary."""

    name: str
    target: str
    metadata: dict[str, Any]
    constants: dict[str, Any]  # name of each constexpr argument -> its value
    files: dict[str, pathlib.Path]  # "ttgir", "ptx" or "amdgcn", "cubin" or "hsaco" -> file in triton's cache


@dataclasses.dataclass(frozen=True)
class Launch:
    name: str
    grid: tuple[int, int, int]
    metadata: Any


@dataclasses.dataclass
class Record:
    kernels: list[Compiled] = dataclasses.field(default_factory=list)
    launches: list[Launch] = dataclasses.field(default_factory=list)


class _Utils:
    def __init__(self, target: str):
        self._target = target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_LIMIT[self._target],
            "multiprocessor_count": PROCESSORS[self._target],
            "max_num_regs": 65536,
            "warpSize": TARGETS[self._target].warp_size,
        }

    def load_binary(self, name, binary, shared, device):
        no_module, handle, registers, spills, max_threads = None, 1, 0, 0, 1024
        return no_module, handle, registers, spills, max_threads

    def unload_module(self, module) -> None:
        """There is none."""


class _PretendDriver(DriverBase):
    def __init__(self, target: str, record: Record, execute: Callable | None):
        self.target, self.utils, self.number = target, _Utils(target), next(_DEVICE_NUMBERS)
        self.tuning = False

        class Launcher:
            def __init__(self, source, metadata):
                self.source, self.metadata = source, metadata

            def __call__(launcher, x, y, z, stream, function, packed, launch_metadata, on_enter, on_exit, *args):
                if self.tuning:
                    return
                record.launches.append(Launch(launcher.metadata.name, (x, y, z), launcher.metadata))
                if execute is not None:
                    execute(launcher.source.fn, (x, y, z), args)

        self.launcher_cls = Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, type_name: str) -> str:
        return type_name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> int:
        return self.number

    def set_current_device(self, device: int) -> None:
        """There is one."""

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def get_benchmarker(self):
        def bench(launch, quantiles):
            """Compiles and binds the config. Every config takes equally long, so the tuner keeps the first."""
            self.tuning = True
            try:
                launch()
            finally:
                self.tuning = False
            return [1.0] * len(quantiles)

        return bench

    def get_empty_cache_for_benchmark(self) -> None:
        return None

    def clear_cache(self, cache) -> None:
        """There is none."""


@contextlib.contextmanager
def pretend_gpu(target: str, execute: Callable | None = None) -> Iterator[Record]:
    """Launches inside the block go to a pretend card.

    Args:
        target: a key of `TARGETS`.
        execute: called as execute(kernel function, grid, arguments) for every launch; None runs nothing.
    """
    record = Record()

    def listen(*, src, metadata, metadata_group, **_):
        files = {pathlib.Path(path).suffix[1:]: pathlib.Path(path) for path in metadata_group.values()}
        constants = {src.fn.arg_names[index]: value for (index,), value in src.constants.items()}
        record.kernels.append(Compiled(metadata["name"], target, metadata, constants, files))

    def bench_now(self, key, configs, bench):
        """In place of the tuner's disk cache: a real card must never find what this one wrote."""
        bench()
        return False

    previous, disk_cache = driver._active, Autotuner.check_disk_cache
    driver.set_active(_PretendDriver(target, record, execute))
    Autotuner.check_disk_cache = bench_now
    tuner.cache_clear()
    try:
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.listener = listen
            yield record
    finally:
        tuner.cache_clear()
        driver._active, Autotuner.check_disk_cache = previous, disk_cache
