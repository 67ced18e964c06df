"""Maps that are handed over in bytes: from layers in eight bits to all that read them, some behind what only moves
numbers (poolings, resizings to the nearest position, concatenations), or add them to what they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import fx, nn

from accel.nn import compact
from accel.nn.effects import replace
from accel.nn.graph import concatenation_of, module_of, pool_of, reads_shape, resizing_of
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import BYTE_ACTIVATIONS, OWN, Meaning

Modules = dict[str, nn.Module]
_COARSER = 2  # times its own step: what a layer reads has seven bits then


@dataclasses.dataclass
class _Region:
    """Maps whose bytes stand for the same: the layers that give them, what moves them, and the layers that read them,
    as their input or as what they add."""

    makers: list[fx.Node] = dataclasses.field(default_factory=list)
    movers: list[fx.Node] = dataclasses.field(default_factory=list)
    inputs: list[fx.Node] = dataclasses.field(default_factory=list)
    adders: list[fx.Node] = dataclasses.field(default_factory=list)


def pass_bytes(conv: fx.Node, modules: Modules, passed: dict[str, list[str]]) -> None:
    """Let a layer in eight bits, and those whose maps join its own, know that others in eight bits alone read what they
    give: they get bytes, whose meaning is that of the one with the widest range. The largest byte stands for the
    largest number: poolings take bytes too.
    """
    if "meaning" in conv.kwargs and Meaning(*conv.kwargs["meaning"]).given is not None:
        return
    region = _region_of(conv, modules)
    if (
        region is None
        or _joins_numbers(region)
        or not _covers_means(region, modules)
        or (widest := _widest(region.inputs, modules)) is None
    ):
        return
    for node in region.movers:
        function, arguments, how = _moving_call(node, modules)
        if function is compact.mean_pool:
            with node.graph.inserting_before(node):
                how = {"meaning": node.graph.get_attr(widest.target)}
        replace(node, function, arguments, how)
    for name, nodes in (("given", region.makers), ("read", region.inputs), ("added", region.adders)):
        for node in nodes:
            _tell(node, name, widest)
    for node in region.makers:
        if not (region.adders or "residual" in node.kwargs):  # sums are of maps
            node.kwargs = {**node.kwargs, "compact": True}
        readers = passed.setdefault(node.target, [])
        readers += dict.fromkeys(reader.target for reader in region.inputs + region.adders)


def _tell(node: fx.Node, name: str, layer: fx.Node) -> None:
    """Let a layer know whose input says what bytes stand for."""
    with node.graph.inserting_before(node):
        told = {**Meaning(*node.kwargs.get("meaning", OWN))._asdict(), name: node.graph.get_attr(layer.target)}
    node.kwargs = {**node.kwargs, "meaning": Meaning(**told)}


def _region_of(conv: fx.Node, modules: Modules) -> _Region | None:
    """All that shares the meaning of the bytes of `conv`; None where one of these cannot give or read bytes."""
    region, seen, waiting = _Region(), set(), [conv]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if _gives_bytes(value, modules):
            region.makers.append(value)
        elif (call := _moving_call(value, modules)) is not None:
            region.movers.append(value)
            waiting += call[1][0] if isinstance(call[1][0], list) else call[1][:1]
        else:
            return None
        for user in value.users:
            if not _read(value, user, modules, region, waiting):
                return None
    return region


def _read(value: fx.Node, user: fx.Node, modules: Modules, region: _Region, waiting: list[fx.Node]) -> bool:
    """Note how a node reads a value; False where it cannot read bytes."""
    if reads_shape(user):
        return True
    if _moving_call(user, modules) is not None:
        waiting.append(user)
        return True
    layer, given = module_of(user, modules), dict(user.kwargs)
    adds = given.pop("residual", None) is value
    if not isinstance(layer, PerforatedConv2d) or not layer.config.in_bytes:
        return False
    if value in (*user.args[1:], *given.values()):
        return False
    region.inputs += [user] * (bool(user.args) and user.args[0] is value)
    region.adders += [user] * adds
    return True


def _joins_numbers(region: _Region) -> bool:
    """Whether maps are joined of which one may be of numbers: bytes do not have every activation."""
    activations = {node.kwargs.get("activation", "none") for node in region.makers}
    return any(map(concatenation_of, region.movers)) and not activations <= {*BYTE_ACTIVATIONS}


def _covers_means(region: _Region, modules: Modules) -> bool:
    """Whether a layer reads what means are made of as well: the range of the means alone would cut off its peaks."""
    means = [node for node in region.movers if _is_mean(node, modules)]
    return all(_is_read(node.args[0], region, modules) for node in means)


def _is_read(value: fx.Node, region: _Region, modules: Modules) -> bool:
    moved = [user for user in value.users if user in region.movers and not _is_mean(user, modules)]
    read = any(user in region.inputs and user.args[0] is value for user in value.users)
    return read or any(_is_read(user, region, modules) for user in moved)


def _is_mean(node: fx.Node, modules: Modules) -> bool:
    call = _moving_call(node, modules)
    return call is not None and call[0] is compact.mean_pool


def _gives_bytes(node: fx.Node, modules: Modules) -> bool:
    layer = module_of(node, modules)
    if not isinstance(layer, PerforatedConv2d) or not layer.config.in_bytes:
        return False
    config = layer.config
    whole_or_nearest = config.keep == 1 or config.filling.by_nearest
    return whole_or_nearest or (config.filling.sums and "residual" not in node.kwargs)


def _moving_call(node: fx.Node, modules: Modules) -> tuple[Callable, tuple, dict] | None:
    """(function, arguments, keywords) of what moves a map's numbers, or their means; None of any other node."""
    if not node.args:  # called by keyword
        return None
    if node.target is compact.max_pool:
        return node.target, node.args, {"compact": True}
    if node.target is compact.avg_pool:
        source, kernel, stride, padding, *count = node.args
        return compact.mean_pool, (source, kernel, stride, padding, False, *count), {}
    pool = pool_of(node, modules)
    if pool is not None and pool.kind == "max":
        return *compact.pool_call(pool, node.args[0]), {"compact": True}
    if pool is not None and not (pool.window.ceil_mode and pool.count_include_pad):
        return compact.mean_pool, (node.args[0], *pool.window, pool.count_include_pad, pool.divisor), {}
    resizing = resizing_of(node, modules)
    if resizing is not None:
        return compact.resize, node.args[:1], resizing
    joined = concatenation_of(node)
    return None if joined is None else (compact.join, joined, {})


def _widest(readers: list[fx.Node], modules: Modules) -> fx.Node | None:
    """The reader whose bytes reach as far as those of all others; None where there is none, where they would be too
    coarse for another, or where nothing was calibrated."""
    found = [modules[reader.target].quantization for reader in readers]
    if not found or None in found:
        return None
    ends = [each.input.ends for each in found]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if high - low > _COARSER * min(high - low for low, high in ends):
        return None
    return next((reader for reader, each in zip(readers, ends) if each == (low, high)), None)
