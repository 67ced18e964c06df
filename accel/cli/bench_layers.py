"""Cases of kind `layers`: single convolutions of a network, perforated against torch's dense forms.

A case: `model` (torchvision:NAME), `size`, `batch` (list), `keep` (list), `mask`, `sides` (some of SIDES), and
`distinct = true` to take layers of one geometry once. Every side computes convolution + bias + ReLU on the same drawn
input. `speedup` columns divide the fastest dense torch side by ours; `share` columns divide that by the theoretical
speed-up of the keep the mask really has; `speedup_own` divides the engine's own dense form (keep 1) by ours, so that
what fusion gains is not counted as perforation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.cli.bench import Row, Settings
from accel.cli.bench_exactness import relative_norm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel.kernels.positions import PositionSet

TORCH_SIDES = ("nchw", "channels_last", "compiled")
SIDES = (*TORCH_SIDES, "engine_dense", "dense_output", "compact_output")
FEW = 40  # kept positions in all, below which a layer is bound by reading its weights
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

    for layer in layers_of(case["model"], case["size"], case.get("distinct", False)):
        for batch in case["batch"]:
            generator = torch.Generator().manual_seed(settings.seed)
            x = torch.randn(batch, layer.conv.in_channels, layer.height, layer.width, generator=generator)
            x = x.to(memory_format=torch.channels_last)
            for keep in case["keep"]:
                with torch.inference_mode():
                    yield measure(layer, x, keep, case, settings)


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


def measure(layer: Layer, x: Tensor, keep: float, case: Mapping[str, Any], settings: Settings) -> Row:
    """One row: correctness of every side, then their interleaved times in milliseconds."""
    from accel.cli.sides import fastest, medians, quantiles
    from accel.masks import build_mask, layer_generator
    from accel.profiling.latency import compare, ratio

    expected = torch_side(layer.conv, x, "nchw")()
    generator = layer_generator(settings.seed, layer.name, *expected.shape[2:])
    kept = build_mask(case["mask"], keep, *expected.shape[2:], generator=generator)
    row = {"layer": layer.name, "geometry": layer.geometry, "batch": len(x), "keep": keep, "kept": round(kept.keep, 4)}
    row |= {"stem": layer.conv.in_channels == 3, "few": len(x) * len(kept) < FEW}
    sides = {name: side(layer.conv, x, kept, name) for name in case["sides"]}
    error = max(side_error(name, sides[name](), expected, kept) for name in sides)
    if error > TOLERANCE:
        return {**row, "error": error, "correct": False}
    timing = compare(sides, repeats=settings.repeats)
    dense = timing[fastest(timing, [name for name in TORCH_SIDES if name in sides])]
    row |= {"error": error, "correct": True, **medians(timing)}
    for name in ("engine_dense", "dense_output", "compact_output"):
        if name in sides:
            row[f"speedup_{name}"] = round(ratio(dense, timing[name]).median, 3)
    for name in ("dense_output", "compact_output"):
        if name in sides:
            row[f"share_{name}"] = round(row[f"speedup_{name}"] * kept.keep, 3)
    if {"dense_output", "engine_dense"} <= sides.keys():
        row["speedup_own"] = round(ratio(timing["engine_dense"], timing["dense_output"]).median, 3)
    row["quantiles"] = quantiles(timing)
    return row


def side(conv: nn.Conv2d, x: Tensor, kept: PositionSet, name: str) -> Callable[[], Tensor]:
    from accel.kernels.positions import PositionSet

    if name in TORCH_SIDES:
        return torch_side(conv, x, name)
    if name == "engine_dense":
        return engine_side(conv, x, PositionSet.full(kept.height, kept.width), compact=False)
    return engine_side(conv, x, kept, compact=name == "compact_output")


def engine_side(conv: nn.Conv2d, x: Tensor, kept: PositionSet, compact: bool) -> Callable[[], Tensor]:
    """Our op with bias and ReLU fused."""
    from accel import ops

    (top, left) = conv.padding

    def call() -> Tensor:
        return ops.perforated_conv2d(
            x,
            conv.weight,
            conv.bias,
            kept,
            stride=conv.stride,
            padding=(top, top, left, left),
            dilation=conv.dilation,
            groups=conv.groups,
            activation="relu",
            compact=compact,
        )

    return call


def torch_side(conv: nn.Conv2d, x: Tensor, form: str) -> Callable[[], Tensor]:
    """torch's convolution + bias + ReLU in NCHW, channels_last, or compiled with inductor's freezing."""
    import copy

    import torch
    from torch import nn

    net = nn.Sequential(copy.deepcopy(conv), nn.ReLU(inplace=True)).eval()
    memory = torch.contiguous_format if form == "nchw" else torch.channels_last
    net, given = net.to(memory_format=memory), x.contiguous(memory_format=memory)
    if form != "compiled":
        return lambda: net(given)
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True), torch.no_grad():
        compiled = torch.compile(net)
        compiled(given)
    return lambda: compiled(given)


def side_error(name: str, got: Tensor, dense: Tensor, kept: PositionSet) -> float:
    """Relative norm against torch's dense result, read where the side has its values from."""
    if name not in ("dense_output", "compact_output"):
        return relative_norm(got, dense)
    flat = dense.flatten(2)
    expected = flat[:, :, kept.positions.long()]
    if name == "compact_output":
        return relative_norm(got.reshape(len(dense), len(kept), -1).transpose(1, 2), expected)
    return relative_norm(got.flatten(2), expected[:, :, kept.nearest.long()])
