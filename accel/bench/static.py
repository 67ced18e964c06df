"""`accel bench --static`: what the compilers make of the Triton kernels, and a bound on their time; needs no GPU.

Two tables, as rows in triton_static.jsonl and to read in triton_static.md: every kernel and config per target
(registers, spills, shared memory, tensor-core instructions, width of loads, blocks per multiprocessor), and the layers
of VGG-16 and ResNet-50 per target and keep, with the roofline of the best config. The second is an ESTIMATE from
compiled code, a lower bound on the time; nothing in either was run.
"""

from __future__ import annotations

import datetime
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from accel.bench.layers import Layer, layers_of
from accel.files import write_rows, write_text
from accel.reports.tables import markdown

Row = dict[str, Any]

NETWORKS = {"VGG-16": "torchvision:vgg16", "ResNet-50": "torchvision:resnet50"}
SIZE, BATCH, KEEPS = [224, 224], 32, (1.0, 0.5, 0.25)
SIDES = ("BLOCK_ROWS", "BLOCK_OUT", "BLOCK_IN")
NOTE = (
    "Estimates from compiled code, not measurements: a lower bound on the time, which no card reaches.\n"
    f"float16, batch {BATCH}, {SIZE[0]}x{SIZE[1]} pixels, dense (interpolated) output; the best config of the list.\n"
)


def run(out_dir: pathlib.Path, seed: int = 0, quick: bool = False) -> list[Row]:
    """Compile, read, write both files into `out_dir` and return the rows; `quick` is one target, VGG-16, keep 1/2.

    The seed changes nothing: compilers draw no random numbers.
    """
    import triton

    from accel.profiling.pretend_gpu import TARGETS

    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    targets = ["sm90"] if quick else list(TARGETS)
    networks = {"VGG-16": NETWORKS["VGG-16"]} if quick else NETWORKS
    keeps = (0.5,) if quick else KEEPS
    kernels = [row for target in targets for row in kernel_rows(target)]
    layers = [
        row for target in targets for name, model in networks.items() for row in layer_rows(target, name, model, keeps)
    ]
    stamp = {"triton": triton.__version__, "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat()}
    rows = [{**row, **stamp} for row in (*kernels, *layers)]
    write_rows(out_dir / "triton_static.jsonl", rows)
    write_text(
        out_dir / "triton_static.md",
        f"# Compiled kernels\n\n{table(kernels)}\n# Layers\n\n{NOTE}\n{table(layers)}",
    )
    return rows


def kernel_rows(target: str) -> Iterator[Row]:
    """One row per kernel and config, float16; the same code made for several ops comes once."""
    import torch

    from accel.profiling.kernel_catalogue import launches
    from accel.profiling.machine_code import read
    from accel.profiling.pretend_gpu import pretend_gpu

    for op, call in launches(torch.float16).items():
        with pretend_gpu(target) as record:
            call()
        for kernel in record.kernels:
            code = read(kernel)
            tile = [str(kernel.constants[side]) for side in SIDES] if set(SIDES) <= kernel.constants.keys() else []
            yield {
                "table": "kernels",
                "target": target,
                "op": op,
                "kernel": kernel.name,
                "tile": "x".join(tile),
                "warps": code.warps,
                "stages": kernel.metadata["num_stages"],
                "registers": code.registers,
                "spills": code.spills,
                "shared": code.shared,
                "tensor_ops": code.tensor_ops,
                "load_widths": code.loads,
                "blocks": code.blocks,
                "loop_instructions": len(code.loop),
            }


def layer_rows(target: str, network: str, model: str, keeps: tuple[float, ...]) -> Iterator[Row]:
    """The roofline of every distinct convolution of a network, at each keep."""
    from accel.profiling.roofline import CARDS, Problem, bound

    for layer in layers_of(model, SIZE, distinct=True):
        conv, configs = layer.conv, compiled_configs(target, layer)
        out_pixels = math.ceil(layer.height / conv.stride[0]) * math.ceil(layer.width / conv.stride[1])
        values = BATCH * (layer.height * layer.width * conv.in_channels + out_pixels * conv.out_channels)
        for keep in keeps:
            rows = BATCH * max(1, round(keep * out_pixels))
            taps = conv.kernel_size[0] * conv.kernel_size[1]
            memory = 2 * (values + conv.weight.numel())
            problem = Problem(rows, conv.out_channels, conv.in_channels, taps, memory)
            bounds = {tile: bound(target, code, tile, problem) for tile, code in configs.items()}
            tile = min(bounds, key=lambda t: bounds[t].total)
            best = bounds[tile]
            yield {
                "table": "layers",
                "estimate": True,
                "target": target,
                "card": CARDS[target].name,
                "network": network,
                "layer": layer.name,
                "geometry": layer.geometry,
                "keep": keep,
                "tile": f"{tile.rows}x{tile.out}x{tile.inner}",
                "spills": max(code.spills for code in configs.values()),
                "tiles": best.tiles,
                "tiles_per_processor": best.tiles_per_processor,
                "bound_us": round(best.total * 1e6, 2),
                "bound_by": best.unit,
                "peak_us": round(problem.flop / CARDS[target].half_flops * 1e6, 2),
            }


def compiled_configs(target: str, layer: Layer) -> dict[Any, Any]:
    """Tile -> machine code of the layer's forward kernel, one per config."""
    from accel.kernels.triton.launch import Tile
    from accel.profiling.kernel_catalogue import convolution
    from accel.profiling.machine_code import read
    from accel.profiling.pretend_gpu import pretend_gpu

    conv = layer.conv
    with pretend_gpu(target) as record:
        convolution(conv.out_channels, conv.in_channels, conv.kernel_size, conv.stride)
    found = {}
    for kernel in record.kernels:
        sides = (kernel.constants[side] for side in SIDES)
        found[Tile(*sides, kernel.metadata["num_warps"], kernel.metadata["num_stages"])] = read(kernel)
    return found


def table(rows: list[Row]) -> str:
    """Rows of one table as markdown."""
    columns = [name for name in rows[0] if name not in ("table", "estimate", "card")]
    return markdown(columns, ([_cell(row[name]) for name in columns] for row in rows))


def _cell(value: Any) -> str:
    """{16: 24, 4: 8} -> "24 of 16, 8 of 4"; anything else as it prints."""
    if isinstance(value, dict):
        return ", ".join(
            f"{count} {name}" if isinstance(name, str) else f"{count} of {name}" for name, count in value.items()
        )
    return str(value)
