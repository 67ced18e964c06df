"""Cases of kind `layers`: single convolutions of a network, perforated against torch's dense forms.

A case: `model` (torchvision:NAME), `size`, `batch` (list), `keep` (list), `mask`, `sides` (the torch forms to compare
with, some of TORCH_SIDES), `distinct = true` to take layers of one geometry once, and `kind`, one of KINDS, to take
such layers only. Every side computes convolution, bias and ReLU on the same drawn input. `speedup` columns divide the
fastest torch side by ours; `share` columns divide that by the theoretical speed-up of the keep the mask really has;
`speedup_own` divides the engine's own dense form (keep 1) by ours, so that what fusion gains is not counted as
perforation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings
from accel.errors import ConfigError
from accel.profiling.distances import relative_norm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel.kernels.positions import PositionSet
    from accel.profiling.latency import Timing

TORCH_SIDES = ("nchw", "channels_last", "compiled")
OUTPUTS = ("dense_output", "compact_output")
SHOWN = (
    *("case", "layer", "geometry", "batch", "kept", "fastest", "ms_engine_dense", "ms_dense_output"),
    *("speedup_dense_output", "speedup_compact_output", "share_dense_output", "share_compact_output", "speedup_own"),
)
FEW = 40  # kept positions in all, below which a layer is bound by reading its weights
KINDS = {
    "all": lambda layer: True,
    "stem": lambda layer: layer.conv.in_channels == 3,
    "depthwise": lambda layer: layer.conv.groups == layer.conv.in_channels == layer.conv.out_channels > 1,
}
TOLERANCE = 1e-5  # relative norm against torch's dense convolution at the kept positions


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution and the size of the map it reads."""

    name: str
    conv: nn.Conv2d
    height: int
    width: int

    @property
    def geometry(self) -> str:
        conv = self.conv
        kernel = "x".join(map(str, conv.kernel_size))
        grouped = f"/g{conv.groups}" if conv.groups > 1 else ""
        stride = f"/{conv.stride[0]}" if conv.stride[0] > 1 else ""
        return f"{kernel}{stride} {conv.in_channels}>{conv.out_channels}{grouped} @{self.height}x{self.width}"


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    kind = case.get("kind", "all")
    if kind not in KINDS:
        raise ConfigError(f"kind of layers must be one of {', '.join(KINDS)}, got {kind!r}")
    layers = layers_of(case["model"], case["size"], case.get("distinct", False))
    for layer in filter(KINDS[kind], layers):
        for batch in case["batch"]:
            generator = torch.Generator().manual_seed(settings.seed)
            x = torch.randn(batch, layer.conv.in_channels, layer.height, layer.width, generator=generator)
            with torch.inference_mode():
                yield from measure(layer, x.to(memory_format=torch.channels_last), case, settings)


def layers_of(model: str, size: list[int], distinct: bool) -> list[Layer]:
    """The convolutions of a torchvision network, in the order they run, with the sizes of their inputs."""
    import torch
    from torch import nn

    from accel.zoo.registry import get_model

    torch.manual_seed(0)
    net = get_model(model, weights="none")
    found: list[Layer] = []

    def note(name: str, conv: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        found.append(Layer(name, conv, *inputs[0].shape[2:]))

    handles = [
        module.register_forward_pre_hook(lambda conv, inputs, name=name: note(name, conv, inputs))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        net(torch.zeros(1, 3, *size))
    for handle in handles:
        handle.remove()
    return list({layer.geometry: layer for layer in reversed(found)}.values())[::-1] if distinct else found


def measure(layer: Layer, x: Tensor, case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    """A row for every keep: correctness of all sides, then their interleaved times in milliseconds."""
    from accel.kernels.positions import PositionSet
    from accel.masks import build_mask, layer_generator
    from accel.profiling.latency import compare

    expected = torch_side(layer.conv, x, "nchw")()
    size = expected.shape[2:]
    sides = {name: torch_side(layer.conv, x, name) for name in TORCH_SIDES if name in case["sides"]}
    sides["engine_dense"] = engine_side(layer.conv, x, PositionSet.full(*size), compact=False)
    errors = [relative_norm(side(), expected) for side in sides.values()]
    masks = {}
    for keep in case["keep"]:
        generator = layer_generator(settings.seed, layer.name, *size)
        kept = masks[keep] = build_mask(case["mask"], keep, *size, generator=generator)
        for output in OUTPUTS:
            side = sides[f"{output} {keep}"] = engine_side(layer.conv, x, kept, compact=output == "compact_output")
            errors.append(side_error(output, side(), expected, kept))
    error = max(errors)
    timings = compare(sides, repeats=settings.repeats) if error <= TOLERANCE else None
    for keep, kept in masks.items():
        row = {"layer": layer.name, "geometry": layer.geometry, "batch": len(x), "keep": keep}
        row |= {"kept": round(kept.keep, 4), "stem": KINDS["stem"](layer), "few": len(x) * len(kept) < FEW}
        row |= {"error": error, "correct": timings is not None}
        yield row | _times(timings, keep, kept.keep) if timings else row


def _times(timings: Mapping[str, Timing], keep: float, kept: float) -> Row:
    """The columns of one keep, from the timings of all sides of a layer."""
    from accel.profiling.latency import ratio
    from accel.profiling.sides import fastest, medians, quantiles

    shared = {name: timings[name] for name in (*TORCH_SIDES, "engine_dense") if name in timings}
    own = {output: timings[f"{output} {keep}"] for output in OUTPUTS}
    best = fastest(shared, [name for name in TORCH_SIDES if name in shared])
    row = {**medians(shared | own), "fastest": best}
    row["speedup_engine_dense"] = round(ratio(timings[best], timings["engine_dense"]).median, 3)
    for output, timing in own.items():
        speedup = ratio(timings[best], timing).median
        row |= {f"speedup_{output}": round(speedup, 3), f"share_{output}": round(speedup * kept, 3)}
    row["speedup_own"] = round(ratio(timings["engine_dense"], own["dense_output"]).median, 3)
    return row | {"quantiles": quantiles(shared | own)}


def engine_side(conv: nn.Conv2d, x: Tensor, kept: PositionSet, compact: bool) -> Callable[[], Tensor]:
    """Our op with bias and ReLU fused."""
    return functools.partial(at_positions, conv, x, kept, activation="relu", compact=compact)


def at_positions(conv: nn.Conv2d, x: Tensor, kept: PositionSet, **options: Any) -> Tensor:
    """Our op in the place of a convolution."""
    from accel import ops
    from accel.nn.geometry import geometry_of

    _, stride, padding, dilation, groups, mode = geometry_of(conv)
    sizes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    return ops.perforated_conv2d(x, conv.weight, conv.bias, kept, **sizes, **options)


def torch_side(conv: nn.Conv2d, x: Tensor, form: str) -> Callable[[], Tensor]:
    """torch's convolution + bias + ReLU in NCHW, channels_last, or compiled with inductor's freezing."""
    import copy

    from torch import nn

    from accel.profiling.dense_forms import compiled_side
    from accel.profiling.sides import FORMATS, in_format

    net = nn.Sequential(copy.deepcopy(conv), nn.ReLU(inplace=True)).eval()
    return compiled_side(net, x) if form == "compiled" else in_format(net, x, FORMATS[f"dense_{form}"])


def side_error(output: str, got: Tensor, dense: Tensor, kept: PositionSet) -> float:
    """Relative norm of a perforated output against torch's dense result at the kept positions."""
    expected = dense.flatten(2)[:, :, kept.positions.long()]
    if output == "compact_output":
        return relative_norm(got.reshape(len(dense), len(kept), -1).transpose(1, 2), expected)
    return relative_norm(got.flatten(2), expected[:, :, kept.nearest.long()])
