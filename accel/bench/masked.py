"""Cases of kind `masked`: masked_conv2d at random active positions against torch's dense convolution.

A case: `channels`, `size` [H, W], `batch`, `active` (fraction of the positions). Two sides of ours: compact rows
against the convolution alone, and the update of a residual stream against convolution + addition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from accel.bench.runner import Row, Settings
from accel.profiling.distances import relative_norm

TOLERANCE = 1e-5  # relative norm against torch's dense result at the active positions
FORMATS = ("nchw", "channels_last")


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch
    import torch.nn.functional as F

    from accel import ops
    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import fastest, medians, quantiles

    generator = torch.Generator().manual_seed(settings.seed)
    channels, (height, width), batch = case["channels"], case["size"], case["batch"]
    x, residual = (torch.randn(batch, channels, height, width, generator=generator) for _ in range(2))
    weight = torch.randn(channels, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    mask = torch.rand(batch, height, width, generator=generator) < case["active"]
    active = ops.active_positions(mask)

    def dense(form: str, add: bool):
        memory = torch.contiguous_format if form == "nchw" else torch.channels_last
        given, kernel, stream = (t.contiguous(memory_format=memory) for t in (x, weight, residual))
        if add:
            return lambda: F.conv2d(given, kernel, padding=1).add_(stream)
        return lambda: F.conv2d(given, kernel, padding=1)

    nhwc, stream = x.to(memory_format=torch.channels_last), residual.to(memory_format=torch.channels_last)
    same = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    sides = {
        **{f"{form}{'_add' * add}": dense(form, add) for form in FORMATS for add in (False, True)},
        "rows": lambda: ops.masked_conv2d(nhwc, weight, None, active, **same),
        "update": lambda: ops.masked_conv2d(nhwc, weight, None, active, **same, residual=stream),
    }
    with torch.inference_mode():
        expected = F.conv2d(x, weight, padding=1)
        at_active = expected.permute(0, 2, 3, 1)[mask]
        error = max(
            relative_norm(sides["rows"]()[: active.total], at_active),
            relative_norm(sides["update"](), torch.where(mask[:, None], residual + expected, residual)),
        )
        row = {
            "channels": channels,
            "size": f"{height}x{width}",
            "batch": batch,
            "active": case["active"],
            "error": error,
        }
        if error > TOLERANCE:
            yield {**row, "correct": False}
            return
        timing = compare(sides, repeats=settings.repeats)
    added = fastest(timing, [f"{form}_add" for form in FORMATS])
    yield {
        **row,
        "correct": True,
        **medians(timing),
        "speedup_rows": round(ratio(timing[fastest(timing, FORMATS)], timing["rows"]).median, 3),
        "speedup_update": round(ratio(timing[added], timing["update"]).median, 3),
        "quantiles": quantiles(timing),
    }
