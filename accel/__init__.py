"""Convolutional networks that compute only where it matters.

Names are loaded on first use (PEP 562), so that `import accel` touches neither triton nor torchvision nor CUDA.
"""

from __future__ import annotations

import importlib
import pathlib as _pathlib

__version__ = "0.1.0"

_HERE = _pathlib.Path(__file__).resolve().parent
if not (_HERE / "kernels").is_dir() and (_HERE.parent / "pyproject.toml").is_file():
    __path__.append(str(_HERE.parent))  # source checkout: accel.kernels is <root>/kernels, accel.zoo is <root>/zoo

# public name -> module that defines it
_PUBLIC = {
    "Perforate": "accel.config",
    "ACT": "accel.config",
    "SACT": "accel.config",
    "PACT": "accel.config",
    "FixedRepeats": "accel.config",
    "Rules": "accel.config",
    "plan_conversion": "accel.api",
    "convert_model": "accel.api",
    "revert_model": "accel.convert",
    "decompose_model": "accel.low_rank",
    "shorten_model": "accel.depth",
    "search": "accel.greedy.search",
    "finetune": "accel.distill",
    "profile": "accel.profiling.layers",
    "ponder_loss": "accel.nn.adaptive",
    "dense_execution": "accel.nn.adaptive",
    "evaluate_as": "accel.nn.modes",
    "expected_loss": "accel.nn.expected",
    "refresh": "accel.nn.refresh",
    "warm_up": "accel.nn.warming",
    "count_macs": "accel.profiling.flops",
    "save_converted": "accel.serialize",
    "load_converted": "accel.serialize",
    "export_onnx": "accel.export",
    "export_package": "accel.export",
}
_SUBMODULES = ("ops", "masks", "fills", "nn", "mc", "distributions", "vae", "zoo", "kernels")

__all__ = [*_PUBLIC, *_SUBMODULES, "__version__"]


def __getattr__(name: str):
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"accel.{name}")
    raise AttributeError(f"module 'accel' has no attribute {name!r}; public names: {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
