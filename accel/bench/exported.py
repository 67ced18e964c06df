"""Cases of kind `exported`: what converted networks save in ONNX Runtime, against their own dense form there.

A case: `model`, a name or a pattern of names such as "zoo:*", `size` [H, W], `batch` (list), `keep` (list),
`interpolate` (list) and `mask`. Weights are drawn where a network can be: they do not change the time; fitted fills are
fitted to noise. Adaptive networks are exported as they are, beside what they were made from. Rows: `dense_ms`, `ms`,
`speedup` of the exported files in one process, taking turns; `error`, of the converted network's file against the
network itself; of a file that is refused, `reason`.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from accel.bench.runner import Row, Settings

SHOWN = ("case", "model", "batch", "keep", "interpolate", "dense_ms", "ms", "speedup", "error")


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    from accel.zoo.registry import list_models

    for name in fnmatch.filter(list_models(), case["model"]) or [case["model"]]:
        yield from _rows_of(name, case, settings)


def _rows_of(name: str, case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    import accel
    from accel.errors import ConversionError
    from accel.profiling.latency import compare, ratio
    from accel.zoo.registry import can_be_drawn, default_rules, get_model, is_adaptive

    torch.manual_seed(settings.seed)
    model = get_model(name, weights="none" if can_be_drawn(name) else None).eval()
    for batch, keep, how in itertools.product(case["batch"], case["keep"], case["interpolate"]):
        asked = {"model": name, "batch": batch, "keep": keep, "interpolate": how}
        x = torch.randn(batch, 3, *case["size"], generator=torch.Generator().manual_seed(settings.seed))
        config = accel.Perforate(keep=keep, mask=case["mask"], interpolate=how, seed=settings.seed)
        data = {"calibration": [x]} if config.needs_calibration else {}
        if is_adaptive(name):
            dense, fast = accel.revert_model(model), model
        else:
            dense, fast = model, accel.convert_model(model, default_rules(name, config), example_inputs=x, **data)
        with tempfile.TemporaryDirectory() as folder:
            files = {name: pathlib.Path(folder, f"{name}.onnx") for name in ("dense", "converted")}
            try:
                accel.export_onnx(dense, files["dense"], x)
                done = accel.export_onnx(fast, files["converted"], x)
            except ConversionError as error:
                yield {**asked, "correct": False, "reason": str(error)}
                continue
            sides = {name: functools.partial(_run, _session(path), x.numpy()) for name, path in files.items()}
            timing = compare(sides, settings.repeats)
        yield {
            **asked,
            **{"error": done.difference, "correct": True},
            "dense_ms": round(timing["dense"].median_ms, 3),
            "ms": round(timing["converted"].median_ms, 3),
            "speedup": round(ratio(timing["dense"], timing["converted"]).median, 3),
            "sparse": len(done.sparse),
        }


def _session(path: pathlib.Path):
    """Of as many threads as torch has."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session, x) -> None:
    session.run(None, {session.get_inputs()[0].name: x})
