"""Which maps of a graph can lie in bytes, and which of them share what their bytes stand for.

A region is what shares one meaning: the layers in eight bits that give a map, what only moves its numbers (poolings,
resizings, bounds, concatenations), and all that read it. Sums, and concatenations of maps whose readers need other
ranges, lie between regions: they read bytes of some and give bytes of another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from torch import fx, nn

from accel.nn import byte_maps, compact, dense
from accel.nn.effects import is_settled, memory, stand_in, writes
from accel.nn.graph import (
    activation_of,
    concatenation_of,
    is_addition,
    module_of,
    only_reader,
    pool_of,
    reads_shape,
    resizing_of,
)
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import BYTE_ACTIVATIONS

Modules = dict[str, nn.Module]
# Of what bytes stand for, by names: a layer, whose input they are; or (layer, norm or None, activation), what it gives.
Named = str | tuple[str, str | None, str]
_COARSER = 2  # times its own step: what a layer reads has seven bits then
_MOVERS_OF_BYTES = (byte_maps.blend, byte_maps.mean, byte_maps.bounded, compact.mean_pool)  # they ask what bytes mean


@dataclasses.dataclass(eq=False)
class Region:
    """Maps whose bytes stand for the same.

    Attributes:
        makers: what gives them: layers, sums, and joins of other regions' maps.
        movers: what moves their numbers.
        inputs, adders: the layers that read them, as their input or as what they add.
        borders: sums and joins that read them and give bytes of another region.
        numbers: (map, what reads the numbers of it) of what does not know bytes.
        source: what says what the bytes stand for; None where they cannot be bytes.
    """

    makers: list[fx.Node] = dataclasses.field(default_factory=list)
    movers: list[fx.Node] = dataclasses.field(default_factory=list)
    inputs: list[fx.Node] = dataclasses.field(default_factory=list)
    adders: list[fx.Node] = dataclasses.field(default_factory=list)
    borders: list[fx.Node] = dataclasses.field(default_factory=list)
    numbers: list[tuple[fx.Node, fx.Node]] = dataclasses.field(default_factory=list)
    source: Named | None = None
    refused: bool = False

    @property
    def joins(self) -> list[fx.Node]:
        return [node for node in self.movers if concatenation_of(node)]


def find_regions(graph: fx.Graph, modules: Modules) -> list[Region]:
    """The regions that can be of bytes. Where a concatenation spoils one, it is tried as a border; a border that cannot
    give bytes reads numbers; to numbers, numbers are added."""
    split: set[fx.Node] = set()
    plain: set[fx.Node] = set()
    while True:
        found = _Finder(graph, modules, split, plain).regions()
        known = {value: region for region in found if region.source is not None for value in _values(region)}
        spoilt = {join for region in found if region.source is None for join in region.joins}
        if not spoilt:
            impossible = {border for border in _borders(graph, split, plain) if not _is_possible(border, known)}
            impossible |= {region.makers[0] for region in found if not _is_worthwhile(region, known)}
            if not impossible:
                return [region for region in found if region.source is not None]
            plain |= impossible
        split |= spoilt


def _values(region: Region) -> list[fx.Node]:
    return [*region.makers, *region.movers]


def _borders(graph: fx.Graph, split: set[fx.Node], plain: set[fx.Node]) -> Iterator[fx.Node]:
    return (node for node in graph.nodes if (node in split or node.target is byte_maps.add) and node not in plain)


def _is_possible(border: fx.Node, known: dict[fx.Node, Region]) -> bool:
    """Whether a border gives bytes of a region. The numbers that are joined with bytes become bytes; of what is added
    nobody knows how far it reaches."""
    read = [operand in known for operand in operands(border)]
    return border in known and (all(read) if border.target is byte_maps.add else any(read))


def _is_worthwhile(region: Region, known: dict[fx.Node, Region]) -> bool:
    """Whether something makes bytes of the bytes of a region: what no layer reads is only rounded for those that add
    it."""
    return not isinstance(region.source, tuple) or bool(region.borders) or any(map(known.__contains__, region.adders))


def operands(border: fx.Node) -> list[fx.Node]:
    """The maps that are added or joined."""
    return list(border.args[:2]) if border.target is byte_maps.add else concatenation_of(border)[0]


class _Finder:
    """One look at a graph, in which some concatenations are `split`, and some of these, of the sums and of the layers
    are `plain`: they give numbers."""

    def __init__(self, graph: fx.Graph, modules: Modules, split: set[fx.Node], plain: set[fx.Node]) -> None:
        self._graph, self._modules, self._plain = graph, modules, plain
        self._borders = set(_borders(graph, split, plain))
        self._split = split

    def regions(self) -> list[Region]:
        found, seen = [], set()
        for node in self._graph.nodes:
            if self._makes(node) and node not in seen:
                region = self._grow(node)
                seen.update(region.makers)
                found.append(region)
        for region in found:
            region.source = None if region.refused else self._source(region)
        for _ in found:  # a join of joins hands its meaning on
            for region in found:
                region.source = region.source or self._handed_on(region, found)
        return found

    def _makes(self, node: fx.Node) -> bool:
        return node in self._borders or (gives_bytes(node, self._modules) and node not in self._plain)

    def _moves(self, node: fx.Node) -> bool:
        return node not in self._split and moving_call(node, self._modules) is not None

    def _grow(self, start: fx.Node) -> Region:
        """All that shares the meaning of the bytes of a maker."""
        region, seen, waiting = Region(), set(), [start]
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            if self._makes(value):
                region.makers.append(value)
            elif self._moves(value):
                region.movers.append(value)
                waiting += _moved(value, self._modules)
            else:
                region.refused = True
                continue
            for user in value.users:
                self._read(value, user, region, waiting)
        if region.joins and not {_activation(node) for node in region.makers} <= {*BYTE_ACTIVATIONS}:
            region.refused = True  # one of the maps may be of numbers: bytes do not have every activation
        return region

    def _read(self, value: fx.Node, user: fx.Node, region: Region, waiting: list[fx.Node]) -> None:
        """Note how a node reads a value."""
        layer, given = module_of(user, self._modules), dict(user.kwargs)
        if reads_shape(user):
            return
        if user in self._borders:
            region.borders.append(user)
        elif self._moves(user):
            waiting.append(user)
        elif isinstance(layer, PerforatedConv2d) and layer.config.in_bytes:
            adds = given.pop("residual", None) is value
            region.inputs += [user] * (bool(user.args) and user.args[0] is value)
            region.adders += [user] * adds
            region.refused |= value in (*user.args[1:], *given.values())
        elif _may_read_numbers(value, user, self._modules):
            region.numbers.append((value, user))
        else:
            region.refused = True

    def _source(self, region: Region) -> Named | None:
        """What says what the bytes of a region stand for: the layer that reads the widest range, or else what gives
        them."""
        if region.inputs:
            return self._widest(region) if self._covers_means(region) else None
        maker = region.makers[0]
        if len(region.makers) > 1 or not (region.adders or any(map(_is_sum, region.borders))) or _is_border(maker):
            return None
        norm, activation = maker.kwargs.get("norm"), _activation(maker)
        quantization = self._modules[maker.target].quantization
        if quantization is None or quantization.reach is None or maker.kwargs.get("residual") is not None:
            return None
        named = (maker.target, None if norm is None else norm.target, activation)
        return named if activation in BYTE_ACTIVATIONS else None

    def _handed_on(self, region: Region, found: list[Region]) -> Named | None:
        """Of maps that only a join reads, the meaning of what it gives: its bytes are moved as they are."""
        if region.refused or region.inputs or len({*region.borders}) != 1 or _is_sum(region.borders[0]):
            return None
        return next((other.source for other in found if region.borders[0] in other.makers), None)

    def _widest(self, region: Region) -> str | None:
        """The reader whose bytes reach as far as those of all others; None where they would be too coarse for another,
        or where nothing was calibrated."""
        known = [self._modules[reader.target].quantization for reader in region.inputs]
        if None in known:
            return None
        ends = [each.input.ends for each in known]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        if high - low > _COARSER * min(high - low for low, high in ends):
            return None
        return next((reader.target for reader, each in zip(region.inputs, ends) if each == (low, high)), None)

    def _covers_means(self, region: Region) -> bool:
        """Whether a layer reads what means are made of as well: the range of the means alone would cut off its
        peaks."""
        means = [node for node in region.movers if self._is_mean(node)]
        return all(self._is_read(node.args[0], region) for node in means)

    def _is_read(self, value: fx.Node, region: Region) -> bool:
        moved = [user for user in value.users if user in region.movers and not self._is_mean(user)]
        read = any(user in region.inputs and user.args[0] is value for user in value.users)
        return read or any(self._is_read(user, region) for user in moved)

    def _is_mean(self, node: fx.Node) -> bool:
        call = moving_call(node, self._modules)
        return call is not None and call[0] in (compact.mean_pool, byte_maps.mean)


def _is_sum(border: fx.Node) -> bool:
    return border.target is byte_maps.add


def _is_border(maker: fx.Node) -> bool:
    return maker.op != "call_module"


def _activation(maker: fx.Node) -> str:
    return "none" if _is_border(maker) else maker.kwargs.get("activation", "none")


def gives_bytes(node: fx.Node, modules: Modules) -> bool:
    """Whether the node is a layer that can give bytes."""
    layer = module_of(node, modules)
    if not isinstance(layer, PerforatedConv2d) or not layer.config.in_bytes:
        return False
    filling = layer.config.filling
    return layer.config.keep == 1 or filling.by_nearest or filling.sums


def moving_call(node: fx.Node, modules: Modules) -> tuple[Callable, tuple, dict] | None:
    """(function, arguments, keywords) of what moves a map's numbers, means or bounds them; None of any other node. The
    functions of `asks_meaning` take a `meaning` or `source` besides."""
    if not node.args:  # called by keyword
        return None
    if node.target is compact.max_pool:
        return node.target, node.args, {"compact": True}
    if node.target is compact.avg_pool:
        source, kernel, stride, padding, *count = node.args
        return compact.mean_pool, (source, kernel, stride, padding, False, *count), {}
    pool, module = pool_of(node, modules), module_of(node, modules)
    if pool is not None and pool.kind == "max":
        return *compact.pool_call(pool, node.args[0]), {"compact": True}
    if pool is not None and not (pool.window.ceil_mode and pool.count_include_pad):
        return compact.mean_pool, (node.args[0], *pool.window, pool.count_include_pad, pool.divisor), {}
    if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        return byte_maps.mean, node.args[:1], {}
    resizing = resizing_of(node, modules)
    if resizing is not None:
        return (byte_maps.blend if resizing.get("mode") == "bilinear" else compact.resize), node.args[:1], resizing
    activation = activation_of(node, modules)
    if activation in BYTE_ACTIVATIONS and _is_alone(node):
        return byte_maps.bounded, node.args[:1], {"activation": activation}
    joined = concatenation_of(node)
    return None if joined is None else (compact.join, joined, {})


def asks_meaning(function: Callable) -> str | None:
    """The name of the argument by which what moves bytes is told what they stand for; None where it need not know."""
    if function not in _MOVERS_OF_BYTES:
        return None
    return "meaning" if function is compact.mean_pool else "source"


def _moved(node: fx.Node, modules: Modules) -> list[fx.Node]:
    """The maps whose numbers are moved."""
    first = moving_call(node, modules)[1][0]
    return first if isinstance(first, list) else [first]


def _is_alone(node: fx.Node) -> bool:
    """Whether nothing else looks at what the node writes to, if it writes anything: a new map would do as well."""
    written = writes(node)
    others = (other for other in node.graph.nodes if other is not node and memory(other) & written)
    return not written or not any(user is not node for other in others for user in other.users)


def _may_read_numbers(value: fx.Node, user: fx.Node, modules: Modules) -> bool:
    """Whether a node that does not know bytes may be given the numbers that they stand for: no layer, which is in fp32
    because somebody wants it to be exact, nor the caller of the model."""
    layer = module_of(user, modules)
    if user.op == "output" or user.target is dense.convolve or value.kwargs.get("compact"):
        return False
    if user.op == "call_module" and (layer is None or next(layer.parameters(), None) is not None):
        return False
    return is_settled(value)


def gather_sums(graph: fx.Graph, modules: Modules) -> None:
    """Make one call of every sum of two maps that may lie in bytes, and of the activation that alone reads it."""
    maps: set[fx.Node] = set()
    for node in list(graph.nodes):
        if gives_bytes(node, modules):
            maps.add(node)
        elif is_addition(node) and maps.issuperset(node.args) and _is_alone(node):
            maps.add(_gathered(node, modules))
        elif (call := moving_call(node, modules)) is not None:
            moved = call[1][0] if isinstance(call[1][0], list) else [call[1][0]]
            maps |= {node} if maps.issuperset(moved) else set()


def _gathered(addition: fx.Node, modules: Modules) -> fx.Node:
    """The call in the place of a sum."""
    activation = only_reader(addition)
    kind = None if activation is None else activation_of(activation, modules)
    last = activation if kind in BYTE_ACTIVATIONS else addition
    with addition.graph.inserting_before(addition):
        made = addition.graph.call_function(byte_maps.add, (*addition.args, kind if last is activation else "none"))
    for node in dict.fromkeys((last, addition)):
        stand_in(made, node)
        node.replace_all_uses_with(made)
        node.graph.erase_node(node)
    return made
