"""Cases of kind `networks`: whole networks, converted against the faster of torch's dense forms.

A case: `model`, `size` [H, W], `batch` (list), `keep` (list), `mask`, and maybe `part`, a submodule that is run alone.
Weights are drawn: they do not change the time. `peak_mb_*` is the most that the tensors a run makes hold at one time,
metered tensor by tensor over the ops of the run (`accel.profiling.memory`), in units of 10**6 bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from accel.bench.runner import Row, Settings
from accel.profiling.distances import relative_norm

TOLERANCE = 1e-4  # relative norm, engine against readable reference; errors of the layers add up along the network
MOST_REPEATS = 7  # a round at batch 8 takes about 3 s on two cores


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch
    from torch import nn

    import accel
    from accel import ops
    from accel.profiling.latency import compare, ratio
    from accel.profiling.memory import peak_activation_bytes
    from accel.profiling.sides import DENSE, fastest, medians, network_sides, quantiles
    from accel.zoo.registry import default_rules, get_model

    torch.manual_seed(settings.seed)
    model = get_model(case["model"], weights="none")
    if "part" in case:  # alone in a container that keeps its name, which the rules go by
        model = nn.Sequential(OrderedDict({case["part"]: model.get_submodule(case["part"])}))
    for batch in case["batch"]:
        x = torch.randn(batch, 3, *case["size"], generator=torch.Generator().manual_seed(settings.seed))
        for keep in case["keep"]:
            rules = default_rules(case["model"], accel.Perforate(keep=keep, mask=case["mask"], seed=settings.seed))
            fast = accel.convert_model(model, rules, example_inputs=x)
            with torch.inference_mode():
                with ops.use_backend("reference"):
                    expected = fast(x)
                error = relative_norm(fast(x), expected)
                row = {"model": case["model"], "batch": batch, "keep": keep, "error": error}
                if error > TOLERANCE:
                    yield {**row, "correct": False}
                    continue
                sides = network_sides(model, fast, x)
                timing = compare(sides, repeats=min(settings.repeats, MOST_REPEATS))
                peaks = {name: peak_activation_bytes(side) for name, side in sides.items()}
            speedup = ratio(timing[fastest(timing, DENSE)], timing["converted"]).median
            yield {
                **row,
                "correct": True,
                **medians(timing),
                "speedup": round(speedup, 3),
                **{f"peak_mb_{name}": round(peak / 1e6, 2) for name, peak in peaks.items()},
                "quantiles": quantiles(timing),
            }
