"""Memory: of the activations of a run, metered tensor by tensor, and of the whole process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from accel.inputs import tensors_of


def resident_bytes() -> int:
    """What the process holds of the machine's memory now. OSError where there is no /proc."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """The most that it held since it was started."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # there in bytes, elsewhere in KiB


def peak_activation_bytes(run: Callable[[], object]) -> int:
    """The most bytes that tensors made during `run()` held at one time, in inference.

    Counted are the storages of the tensors that torch's ops return, from when they are made until they are freed. What
    was there before (weights, the input, caches) is not, and neither is what an op uses within itself.
    """
    meter = _Meter()
    with torch.inference_mode(), meter:
        run()
    return meter.peak


class _Meter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {StorageWeakRef(tensor.untyped_storage()) for tensor in tensors_of((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_of(out):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference not in given:  # a view, or written in place
                self._live[reference] = storage.nbytes()
        self._live = {reference: size for reference, size in self._live.items() if not reference.expired()}
        self.peak = max(self.peak, sum(self._live.values()))
        return out
