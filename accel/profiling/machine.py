"""The machine a measurement was taken on, as plain values: what a reader needs to judge or repeat it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import platform

import torch


def machine_record() -> dict[str, str | int | None]:
    """Processor, threads, instruction set and versions; holds nothing that names the computer or its user."""
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "skimconv": _version("skimconv"),
        "engine": "built" if importlib.util.find_spec("accel.kernels.cpu._engine") else "not built",
    }


def _cpu_model() -> str:
    """The processor's marketing name, where the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int | None:
    """Cores this process may run on: a container's share, not the computer's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
