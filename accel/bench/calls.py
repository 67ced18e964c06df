"""Cases of kind `calls`: what a converted network costs beside its arithmetic.

A case: `model`, `size`, `keep` and `mask`; or, in the place of `model`, `layer`: [C_in, C_out, kernel] of a network of
that convolution alone. The row: `first_s`, seconds of the first call with inputs of a size that the conversion did not
see; `check_us`, microseconds of a call whose rewritten path returns at once: what looking whether it still holds takes;
of a single layer, which has no such path, `share`: its speed-up over the faster dense form divided by the theoretical
one. `error`: relative norm against the readable reference.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = ("case", "check_us", "first_s", "ms_dense", "ms_converted", "kept", "share", "error")
TOLERANCE = 1e-5  # as of kind `leaks`


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    import accel

    torch.manual_seed(settings.seed)
    dense, config = _dense(case), accel.Perforate(keep=case["keep"], mask=case["mask"])
    channels = next(dense.parameters()).shape[1]
    x = torch.randn(1, channels, *case["size"])
    fast = accel.convert_model(dense, _rules(case, config), example_inputs=x)
    with torch.inference_mode():
        other = torch.randn(1, channels, *[length + 32 for length in case["size"]])
        begin = time.perf_counter()
        fast(other)
        first = round(time.perf_counter() - begin, 3)
        row = {"error": _error(fast, x), "first_s": first}
        if row["error"] > TOLERANCE:
            yield {**row, "correct": False}
            return
        measured = _share(dense, fast, x, settings.repeats) if "layer" in case else _check(fast, x, settings.repeats)
        yield {**row, **measured, "correct": True}


def _dense(case: Mapping[str, Any]) -> nn.Module:
    from torch import nn

    from accel.zoo.registry import get_model

    if "layer" not in case:
        return get_model(case["model"], weights="none")
    c_in, c_out, kernel = case["layer"]
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)).eval()


def _rules(case: Mapping[str, Any], config: Any) -> Any:
    from accel.zoo.registry import default_rules

    return config if "layer" in case else default_rules(case["model"], config)


def _error(network: nn.Module, x: Tensor) -> float:
    from accel import ops
    from accel.profiling.distances import relative_norm

    found = network(x)
    with ops.use_backend("reference"):
        return relative_norm(found, network(x))


def _share(dense: nn.Module, fast: nn.Module, x: Tensor, repeats: int) -> Row:
    from accel.nn.perforated import PerforatedConv2d
    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import DENSE, fastest, network_sides

    timing = compare(network_sides(dense, fast, x), repeats)
    best = timing[fastest(timing, DENSE)]
    (layer,) = (module for module in fast.modules() if isinstance(module, PerforatedConv2d))
    kept = layer.position_set(*x.shape[2:]).keep
    return {
        **{"ms_dense": round(best.median_ms, 4), "ms_converted": round(timing["converted"].median_ms, 4)},
        **{"kept": kept, "share": round(ratio(best, timing["converted"]).median * kept, 3)},
    }


def _check(fast: nn.Module, x: Tensor, repeats: int) -> Row:
    """The whole call but its path."""
    from accel.nn.inference import installed
    from accel.profiling.latency import compare

    ((_, path),) = installed(fast)
    rewritten = dataclasses.replace(path.plan.rewritten, fast=lambda root, *inputs: None)
    path.plan = dataclasses.replace(path.plan, rewritten=rewritten)
    if fast(x) is not None:
        raise RuntimeError(f"{type(fast).__name__} does not run its rewritten path: its check was not timed")
    return {"check_us": round(compare({"check": lambda: fast(x)}, repeats)["check"].median_ms * 1e3, 1)}
