"""Maps that are handed over in bytes: from layers in eight bits to all that read them, some behind what only moves
numbers (poolings, resizings, concatenations), or add them to what they give; and sums of maps that no layer adds."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from accel.nn import byte_maps
from accel.nn.byte_regions import (
    Named,
    Region,
    asks_meaning,
    find_regions,
    gather_sums,
    moving_call,
    operands,
)
from accel.nn.effects import replace
from accel.nn.graph import concatenation_of, module_of, reads_shape
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import BYTE_ACTIVATIONS, OWN, Meaning, Source

Modules = dict[str, nn.Module]


def pass_bytes(graph: fx.Graph, modules: Modules, passed: dict[str, list[str]], numbers: dict[str, list[str]]) -> None:
    """Let layers in eight bits know that others in eight bits, sums and joins read what they give: they get bytes. The
    largest byte stands for the largest number: poolings take bytes too. What does not know bytes gets the numbers that
    they stand for.

    Args:
        passed: filled with the readers of the bytes that a layer gives, by their names.
        numbers: the same of numbers.
    """
    layers = [node for node in graph.nodes if _in_bytes(node, modules)]
    if not layers:
        return
    gather_sums(graph, modules)
    regions = find_regions(graph, modules)
    _report(layers, regions, passed, numbers)
    borders = _borders(regions)
    for region in regions:
        _give_numbers(region)
    for region in regions:
        _tell_layers(region)
        for node in region.movers:
            function, arguments, how = moving_call(node, modules)
            if (name := asks_meaning(function)) is not None:
                how = {**how, name: _attribute(region.source, node)}
            replace(node, function, arguments, how)
    for border, sources, out in borders:
        how = {"sources": [_attribute(source, border) for source in sources], "out": _attribute(out, border)}
        if border.target is byte_maps.add:
            border.kwargs = {**border.kwargs, **how}
        else:
            replace(border, byte_maps.join, concatenation_of(border), how)


def _in_bytes(node: fx.Node, modules: Modules) -> bool:
    layer = module_of(node, modules)
    return isinstance(layer, PerforatedConv2d) and layer.config.in_bytes


def _borders(regions: list[Region]) -> list[tuple[fx.Node, list[Named], Named]]:
    """(border, what the bytes of its operands stand for, what those that it gives do) of all of them."""
    sources = {value: region.source for region in regions for value in (*region.makers, *region.movers)}
    borders = dict.fromkeys(border for region in regions for border in region.borders)
    return [(node, [sources.get(each, sources[node]) for each in operands(node)], sources[node]) for node in borders]


def _give_numbers(region: Region) -> None:
    """Put the way back to numbers before what does not know bytes: once for every map."""
    made: dict[fx.Node, fx.Node] = {}
    for value, user in region.numbers:
        if value not in made:
            after = value.next
            source = _attribute(region.source, after)
            with value.graph.inserting_before(after):
                made[value] = value.graph.call_function(byte_maps.numbers, (value, source))
        user.replace_input_with(value, made[value])


def _tell_layers(region: Region) -> None:
    """Let the layers of a region know what its bytes stand for."""
    layers = [node for node in region.makers if node.op == "call_module"]
    for name, nodes in (("given", layers), ("read", region.inputs), ("added", region.adders)):
        for node in nodes:
            told = {**Meaning(*node.kwargs.get("meaning", OWN))._asdict(), name: _attribute(region.source, node)}
            node.kwargs = {**node.kwargs, "meaning": Meaning(**told)}
    for node in layers:
        if not (region.adders or "residual" in node.kwargs):  # sums are of maps
            node.kwargs = {**node.kwargs, "compact": True}


def _attribute(source: Named, before: fx.Node) -> Source:
    """What a name stands for, read before a node."""
    with before.graph.inserting_before(before):
        if isinstance(source, str):
            return before.graph.get_attr(source)
        layer, norm, activation = source
        get: Callable[[str], fx.Node] = before.graph.get_attr
        return get(layer), None if norm is None else get(norm), activation


def _report(
    layers: list[fx.Node], regions: list[Region], passed: dict[str, list[str]], numbers: dict[str, list[str]]
) -> None:
    """Note who reads bytes of a layer, and who numbers."""
    for region in regions:
        read = dict.fromkeys([*(node.target for node in region.inputs + region.adders), *map(_name, region.borders)])
        for node in region.makers:
            if node in layers and node.kwargs.get("activation", "none") in BYTE_ACTIVATIONS:
                passed.setdefault(node.target, []).extend(read)
                if region.numbers:
                    numbers.setdefault(node.target, []).extend(_name(user) for _, user in region.numbers)
    for node in layers:
        if node.target not in passed:
            readers = [user for user in node.users if user.op != "output" and not reads_shape(user)]
            numbers.update({node.target: list(map(_name, readers))} if readers else {})


def _name(node: fx.Node) -> str:
    return node.target if node.op == "call_module" else node.name
