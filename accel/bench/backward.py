"""Cases of kind `backward`: dX + dW of a perforated convolution against torch's dense backward.

A case: `channels_in`, `channels_out`, `kernel`, `size` [H, W], `batch`, `keep`, `mask`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings
from accel.profiling.distances import relative_norm

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-5  # relative norm of each gradient against autograd through the dense convolution and a gather


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch
    import torch.nn.functional as F

    from accel import ops
    from accel.masks import build_mask
    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import fastest, medians, quantiles

    generator = torch.Generator().manual_seed(settings.seed)
    (height, width), side = case["size"], case["kernel"]
    x = torch.randn(case["batch"], case["channels_in"], height, width, generator=generator)
    weight = torch.randn(case["channels_out"], case["channels_in"], side, side, generator=generator)
    kept = build_mask(case["mask"], case["keep"], height, width, generator=generator)
    pad = side // 2

    def gradients(forward: Callable[[Tensor, Tensor], Tensor], form: torch.memory_format) -> Callable[[], tuple]:
        leaves = [t.contiguous(memory_format=form).requires_grad_() for t in (x.clone(), weight.clone())]
        out = forward(*leaves)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=form)
        return lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)

    def gathered(x: Tensor, weight: Tensor) -> Tensor:
        chosen = kept.positions[kept.nearest.long()].long()
        return F.conv2d(x, weight, padding=pad).flatten(2)[:, :, chosen].unflatten(2, (height, width))

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return ops.perforated_conv2d(x, weight, None, kept, padding=(pad,) * 4)

    sides = {
        "nchw": gradients(lambda x, weight: F.conv2d(x, weight, padding=pad), torch.contiguous_format),
        "channels_last": gradients(lambda x, weight: F.conv2d(x, weight, padding=pad), torch.channels_last),
        "ours": gradients(ours, torch.channels_last),
    }
    expected = gradients(gathered, torch.contiguous_format)()
    error = max(relative_norm(got, want) for got, want in zip(sides["ours"](), expected))
    shape = f"{side}x{side} {case['channels_in']}>{case['channels_out']} @{height}x{width}"
    row = {"geometry": shape, "batch": case["batch"], "keep": case["keep"], "error": error}
    if error > TOLERANCE:
        yield {**row, "correct": False}
        return
    timing = compare(sides, repeats=settings.repeats)
    speedup = ratio(timing[fastest(timing, ("nchw", "channels_last"))], timing["ours"]).median
    yield {**row, "correct": True, **medians(timing), "speedup": round(speedup, 3), "quantiles": quantiles(timing)}
