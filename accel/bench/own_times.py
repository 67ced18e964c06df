"""How long this checkout's own side of some benchmark cases takes: the worker of `accel bench speed`.

Read from standard input by an interpreter that runs in the checkout to be measured, which may be older than this file:
it uses only what every version has. Arguments: repeats, and case files of the kinds networks, adaptive and layers.
Prints JSON, {file: {configuration: median milliseconds}}.
"""

from __future__ import annotations

import importlib
import itertools
import json
import pathlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

import accel
from accel.kernels.positions import PositionSet
from accel.masks import build_mask, layer_generator
from accel.profiling.latency import compare
from accel.zoo.registry import default_rules, get_model


def _module(name: str, before: str) -> ModuleType:
    """The module, or what it was called in checkouts whose benchmarks were still among the verbs."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return importlib.import_module(before)


bench_adaptive = _module("accel.bench.adaptive", "accel.cli.bench_adaptive")
bench_layers = _module("accel.bench.layers", "accel.cli.bench_layers")
files = _module("accel.files", "accel.cli.common")
Side = tuple[str, Callable[[], object]]


def networks(case: Mapping[str, Any]) -> Iterator[Side]:
    model = get_model(case["model"], weights="none")
    if "part" in case:
        model = nn.Sequential(OrderedDict({case["part"]: model.get_submodule(case["part"])}))
    for batch, keep in itertools.product(case["batch"], case["keep"]):
        x = torch.randn(batch, 3, *case["size"]).contiguous(memory_format=torch.channels_last)
        rules = default_rules(case["model"], accel.Perforate(keep=keep, mask=case["mask"]))
        fast = accel.convert_model(model, rules, example_inputs=x[:1]).eval()
        yield f"{case['name']} batch {batch} keep {keep}", lambda fast=fast, x=x: fast(x)


def adaptive(case: Mapping[str, Any]) -> Iterator[Side]:
    model = get_model(case["model"], weights="none")
    for batch in case["batch"]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, 3, *case["size"], generator=generator).contiguous(memory_format=torch.channels_last)
        for kind, active in itertools.product(case["maps"], case["active"]):
            field = bench_adaptive.draw_field(kind, batch, case["size"], generator)
            net = accel.convert_model(model, accel.SACT(), example_inputs=x[:1]).eval()
            bench_adaptive.give_scores(net, x, field, active)
            yield f"{case['name']} batch {batch} {kind} {active}", lambda net=net, x=x: net(x)


def layers(case: Mapping[str, Any]) -> Iterator[Side]:
    for layer, batch in itertools.product(
        bench_layers.layers_of(case["model"], case["size"], case["distinct"]), case["batch"]
    ):
        x = torch.randn(batch, layer.conv.in_channels, layer.height, layer.width)
        x = x.contiguous(memory_format=torch.channels_last)
        size = tuple(layer.conv(x).shape[2:])
        sets = {"all": PositionSet.full(*size)}
        for keep in case["keep"]:
            generator = layer_generator(0, layer.name, *size)
            sets[f"keep {keep}"] = build_mask(case["mask"], keep, *size, generator=generator)
        for (name, positions), compact in itertools.product(sets.items(), (False, True)):
            output = "rows" if compact else "map"
            side = bench_layers.engine_side(layer.conv, x, positions, compact)
            yield f"{case['name']} {layer.name} {name} {output}", side


KINDS = {"networks": networks, "adaptive": adaptive, "layers": layers}


@torch.inference_mode()
def median_times(path: pathlib.Path, repeats: int) -> dict[str, float]:
    """Configuration -> median milliseconds, one at a time: only one checkout's sides fit into a process anyway."""
    file = files.read_toml(path)
    sides = (side for case in file["case"] for side in KINDS[file["kind"]](case))
    return {name: compare({name: call}, repeats, warmup=1)[name].median_ms for name, call in sides}


if __name__ == "__main__":
    torch.manual_seed(0)
    measured = {path: median_times(pathlib.Path(path), int(sys.argv[1])) for path in sys.argv[2:]}
    print(json.dumps(measured))
