"""Cases of kind `large`: a small network on a large picture, each side in a process of its own.

A case: `channels` (of every map, the input's first), `size` [H, W], `keep` (list), `mask`. A row: `peak_mb` and
`peak_mb_dense`, the most memory (10**6 bytes) that the process ever held, and their quotient `peak`; `grown_mb` and
`grown_mb_dense`, how much of that it did not hold before the first run; `seconds_first`, `seconds` (of the fastest
later run) and those of the dense network, `seconds_first_dense` and `seconds_dense`; `first` and `second`, quotients
of both by the dense network's fastest run. `error`: the relative norm against torch's convolutions, filled in by the
nearest map.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings
from accel.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 1e-5  # relative norm
RUNS = 3


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    dense = _run(case, None, settings)
    for keep in case["keep"]:
        ours = _run(case, keep, settings)
        yield {
            "keep": keep,
            "size": case["size"],
            "correct": ours["error"] <= TOLERANCE and dense["error"] <= TOLERANCE,
            **ours,
            **{f"{name}_dense": value for name, value in dense.items() if name != "error"},
            "peak": round(ours["peak_mb"] / dense["peak_mb"], 3),
            "first": round(ours["seconds_first"] / dense["seconds"], 3),
            "second": round(ours["seconds"] / dense["seconds"], 3),
        }


def _run(case: Mapping[str, Any], keep: float | None, settings: Settings) -> Row:
    """What `side` measures, in a fresh process."""
    told = json.dumps({**case, "keep": keep, "seed": settings.seed})
    code = "import json, sys; from accel.bench.large import side; print(json.dumps(side(json.loads(sys.argv[1]))))"
    done = subprocess.run([sys.executable, "-c", code, told], capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"the process that runs keep {keep} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def side(case: Mapping[str, Any]) -> Row:
    """Times and peak memory of one network in this process; `keep` None: the dense one."""
    import torch
    from torch import nn

    import accel
    from accel.profiling.distances import relative_norm
    from accel.profiling.memory import peak_resident_bytes, resident_bytes

    torch.manual_seed(case["seed"])
    channels = case["channels"]
    convs = [nn.Conv2d(inner, outer, 3, padding=1) for inner, outer in itertools.pairwise(channels)]
    net = nn.Sequential(*[layer for conv in convs for layer in (conv, nn.ReLU())][:-1]).eval()
    x = torch.rand(1, channels[0], *case["size"])
    if case["keep"] is not None:
        config = accel.Perforate(keep=case["keep"], mask=case["mask"])
        net = accel.convert_model(net, config, example_inputs=x[..., :64, :64])  # a proof on x would copy it
    seconds, before = [], resident_bytes()
    with torch.inference_mode():
        for _ in range(1 + RUNS):
            start = time.perf_counter()
            out = net(x)
            seconds.append(time.perf_counter() - start)
        peak = peak_resident_bytes()
        error = relative_norm(out, layer_by_layer(net, x))
    first, *later = (round(value, 4) for value in seconds)
    memory = {"peak_mb": round(peak / 1e6, 1), "grown_mb": round((peak - before) / 1e6, 1)}
    return {**memory, "seconds_first": first, "seconds": min(later), "error": error}


def layer_by_layer(net: nn.Sequential, x: Tensor) -> Tensor:
    """The network as torch computes it, skipped positions filled in by the nearest map."""
    import torch.nn.functional as F

    for layer in net:
        if not hasattr(layer, "weight"):
            x = layer(x)
            continue
        x = F.conv2d(x, layer.weight, layer.bias, padding=1)
        if hasattr(layer, "position_set"):
            kept = layer.position_set(*x.shape[2:])
            x = x.flatten(2)[:, :, kept.positions[kept.nearest.long()].long()].view_as(x)
    return x
