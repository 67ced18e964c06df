"""Maps that are handed over in bytes: from a layer in eight bits to all that read it, some behind a max pooling, or add
it to what they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import fx, nn

from accel.nn import compact
from accel.nn.effects import replace
from accel.nn.graph import module_of, pool_of
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import OWN, Meaning

Modules = dict[str, nn.Module]


@dataclasses.dataclass
class _Readers:
    """Who reads a map: layers in eight bits as their input, or as what they add; max poolings that lie between."""

    inputs: list[fx.Node] = dataclasses.field(default_factory=list)
    adders: list[fx.Node] = dataclasses.field(default_factory=list)
    pools: list[fx.Node] = dataclasses.field(default_factory=list)


def pass_bytes(conv: fx.Node, modules: Modules, passed: dict[str, list[str]]) -> None:
    """Let a layer in eight bits know that others in eight bits alone read what it gives: they get bytes, whose meaning
    is that of the one with the widest range. The largest byte stands for the largest number: poolings take bytes too.
    """
    config, adds = modules[conv.target].config, "residual" in conv.kwargs
    whole_or_nearest = config.keep == 1 or config.filling.by_nearest
    readers = _Readers()
    if not config.in_bytes or not (whole_or_nearest or (config.filling.sums and not adds)):
        return
    if not _collect(conv, modules, readers) or (widest := _widest(readers.inputs, modules)) is None:
        return
    for pool in readers.pools:
        replace(pool, *_max_pool_call(pool, modules), {"compact": True})
    for name, nodes in (("given", [conv]), ("read", readers.inputs), ("added", readers.adders)):
        for node in nodes:
            _tell(node, name, widest)
    if not (adds or readers.adders):  # sums are of maps
        conv.kwargs = {**conv.kwargs, "compact": True}
    passed.setdefault(conv.target, []).extend(dict.fromkeys(node.target for node in readers.inputs + readers.adders))


def _tell(node: fx.Node, name: str, layer: fx.Node) -> None:
    """Let a layer know whose input says what bytes stand for."""
    with node.graph.inserting_before(node):
        told = {**Meaning(*node.kwargs.get("meaning", OWN))._asdict(), name: node.graph.get_attr(layer.target)}
    node.kwargs = {**node.kwargs, "meaning": Meaning(**told)}


def _collect(node: fx.Node, modules: Modules, readers: _Readers) -> bool:
    """Whether none but layers in eight bits and max poolings before such layers read the node's value."""
    for user in node.users:
        layer, given = module_of(user, modules), dict(user.kwargs)
        adds, reads = given.pop("residual", None) is node, bool(user.args) and user.args[0] is node
        if node in (*user.args[1:], *given.values()) or user.op == "output":
            return False
        if isinstance(layer, PerforatedConv2d) and layer.config.in_bytes:
            readers.inputs += [user] * reads
            readers.adders += [user] * adds
        elif _is_max_pool(user, modules) and reads:
            readers.pools.append(user)
            if not _collect(user, modules, readers):
                return False
        else:
            return False
    return True


def _is_max_pool(node: fx.Node, modules: Modules) -> bool:
    pool = pool_of(node, modules)
    return node.target is compact.max_pool or (pool is not None and pool.kind == "max")


def _max_pool_call(node: fx.Node, modules: Modules) -> tuple[Callable, tuple]:
    pool = pool_of(node, modules)
    return (node.target, node.args) if pool is None else compact.pool_call(pool, node.args[0])


def _widest(readers: list[fx.Node], modules: Modules) -> fx.Node | None:
    """The reader whose bytes reach as far as those of all others; None where there is none, or nothing calibrated."""
    found = [modules[reader.target].quantization for reader in readers]
    if not found or None in found:
        return None
    ends = [each.input.ends for each in found]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return next((reader for reader, each in zip(readers, ends) if each == (low, high)), None)
