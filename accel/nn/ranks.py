"""How many dimensions a value has: who asks need not read the value itself.

Norms of foreign networks check their input (`torch._assert(x.ndim == 4, ...)`). Such a check would be a second reader
of what a convolution gives, which then could take over no norm behind it; it asks at an input of the network instead.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from accel.nn.effects import writes
from accel.nn.graph import is_pointwise, module_of, pool_of

_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_COMBINE = (operator.add, operator.sub, operator.mul, torch.add, torch.sub, torch.mul)


def ask_for_ranks_early(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let `x.ndim` and `x.dim()` read the first value on the way to x that is known to have as many dimensions.

    `graph` is annotated. One in which a write could change a value's dimensions stays as it is.
    """
    if any(writes(node) and not (node.target in _IN_PLACE or _keeps_rank(node, modules)) for node in graph.nodes):
        return
    sources = {node: node for node in graph.nodes if node.op == "placeholder"}  # of what is a tensor
    for node in list(graph.nodes):
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if first is not None and _keeps_rank(node, modules):
            sources[node] = sources.setdefault(first, first)
        elif first in sources and (node.target in _IN_PLACE or _combines(node, sources)):
            sources[node] = sources[first]
        elif first in sources and _asks(node):
            node.args = (sources[first], *node.args[1:])
            if not node.users:
                graph.erase_node(node)


def _asks(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return node.args[1:] == ("ndim",)
    return node.op == "call_method" and node.target == "dim"


def _keeps_rank(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the value is a tensor of as many dimensions as the first argument has; and so is what it may write to."""
    if isinstance(module_of(node, modules), nn.Conv2d) or node.target is F.batch_norm:
        return True
    return "out" not in node.kwargs and (is_pointwise(node, modules) or pool_of(node, modules) is not None)


def _combines(node: fx.Node, sources: dict[fx.Node, fx.Node]) -> bool:
    """Whether the node combines values of one source element by element, or one with a number."""
    if node.target not in _COMBINE or len(node.args) != 2 or "out" in node.kwargs:
        return False
    first, other = node.args
    return isinstance(other, (int, float)) or sources.get(other) is sources[first]
