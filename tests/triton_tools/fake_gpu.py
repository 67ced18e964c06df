"""A pretend NVIDIA card: the real launch path of triton on CPU tensors.

Inside `fake_gpu(90)` a launch binds its arguments, specialises on their true alignment, autotunes, compiles with ptxas
and is refused over the card's shared-memory limit, all as on the card. The numbers then come from the interpreter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver

from .interp_switch import interpret, interpreted

SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes a block may ask for, CUDA programming guide table 21
_PROCESSORS = {80: 108, 90: 132, 100: 148}  # A100, H100, B200
_DEVICE_NUMBERS = itertools.count(1000)  # never reused: a kernel caches its target and its binaries per device number


@dataclasses.dataclass
class Launch:
    name: str
    grid: tuple[int, int, int]
    metadata: Any


class _Utils:
    def __init__(self, capability: int):
        self._capability = capability

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": SHARED_LIMIT[self._capability],
            "multiprocessor_count": _PROCESSORS[self._capability],
            "max_num_regs": 65536,
            "warpSize": 32,
        }

    def load_binary(self, name, binary, shared, device):
        no_module, handle, registers, spills, max_threads = None, 1, 0, 0, 1024
        return no_module, handle, registers, spills, max_threads

    def unload_module(self, module) -> None:
        """There is none."""


class _FakeCuda(DriverBase):
    def __init__(self, capability: int, execute: bool):
        self.capability, self.utils, self.number = capability, _Utils(capability), next(_DEVICE_NUMBERS)
        self.launches: list[Launch] = []
        self.tuning = False
        launches = self.launches

        class Launcher:
            def __init__(self, source, metadata):
                self.source, self.metadata = source, metadata

            def __call__(launcher, x, y, z, stream, function, packed, launch_metadata, on_enter, on_exit, *args):
                if self.tuning:
                    return
                launches.append(Launch(launcher.metadata.name, (x, y, z), launcher.metadata))
                if execute:
                    with interpret():
                        interpreted(launcher.source.fn)[(x, y, z)](*args)

        self.launcher_cls = Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, type_name: str) -> str:
        return type_name

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

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
            """Compiles and binds the config; every config takes equally long, so the tuner keeps the first."""
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
def fake_gpu(capability: int = 90, execute: bool = True) -> Iterator[_FakeCuda]:
    """A pretend card of compute capability 80, 90 or 100; its `launches` list what ran."""
    previous = driver._active
    fake = _FakeCuda(capability, execute)
    driver.set_active(fake)
    try:
        yield fake
    finally:
        driver._active = previous
