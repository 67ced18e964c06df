"""Rewriting a model's graph for inference: fused epilogues, and chains of layers that pass compact rows.

First the batch norm and the activation behind a perforated convolution move into its call. Then a perforated
convolution whose every reader can work on compact rows hands these over: position-wise layers run on the rows, and the
next convolution or pooling reads them through the nearest map (Figurnov et al., NIPS 2016, implicit interpolation), so
that nothing of dense size is written between them. In eight bits a layer gives bytes to those in eight bits that alone
read it, some behind what works on bytes as well: see `accel.nn.byte_regions`.
Where a dense map is written and a residual added to it, the sum and the activation behind it move into the
convolution's call as well.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable

import torch
from torch import fx, nn

from accel.nn import compact, dense
from accel.nn.bf16_chains import pass_bf16
from accel.nn.byte_chains import pass_bytes
from accel.nn.effects import annotate, following, is_read_only_after, may_move, replace, stand_in
from accel.nn.graph import (
    activation_of,
    is_addition,
    is_pointwise,
    is_pointwise_conv,
    module_of,
    norm_of,
    only_reader,
    pool_of,
)
from accel.nn.perforated import PerforatedConv2d
from accel.nn.ranks import ask_for_ranks_early
from accel.nn.replay import Segment, compile_graph, cut_segments

Modules = dict[str, nn.Module]
_WITHOUT_EFFECT = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation


@dataclasses.dataclass
class Chains:
    """What the rewriting did, by the names of the convolutions: what was fused into each, and who reads its rows.

    Attributes: fused, such as ["norm", "relu"], into a perforated convolution; dense, the same into one that stays
    dense; compact, names of modules, or of graph nodes where a function reads; bytes and bf16, names of layers in
    eight bits and in bf16, or of nodes; numbers, names of modules or nodes that read fp32 of a layer in eight bits.
    """

    fused: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    dense: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    compact: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    bytes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    numbers: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    bf16: dict[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """Functions of the root module and its inputs, and what they are made of.

    Attributes: code; fast, the same in fewer calls, where nobody needs to see them: the segments run as one each, see
    `accel.nn.replay`; chains; inputs, how many there are.
    """

    code: Callable
    fast: Callable
    chains: Chains
    segments: list[Segment]
    inputs: int


def build(graph: fx.Graph, modules: Modules) -> Rewritten | None:
    """What the graph becomes; None where there was nothing to rewrite.

    Args:
        graph: the root's graph; it is rewritten.
        modules: the root's modules by name, shared ones under every name.
    """
    chains = Chains()
    for node in graph.nodes:
        _by_position(node, modules)
    annotate(graph, modules)
    ask_for_ranks_early(graph, modules)
    for node in list(graph.nodes):
        _simplify(node, modules)
    for node in list(graph.nodes):
        if isinstance(module_of(node, modules), PerforatedConv2d):
            _fuse(node, modules, chains)
    _pass_rows(graph, modules, chains)
    for node in list(graph.nodes):
        if type(module_of(node, modules)) is nn.Conv2d:
            _fuse_dense(node, modules, chains)
    for node in list(graph.nodes):
        if is_addition(node):
            _fuse_sum(node, modules, chains)
    pass_bytes(graph, modules, chains.bytes, chains.numbers)
    for node in list(graph.nodes):
        if isinstance(module_of(node, modules), PerforatedConv2d):
            pass_bf16(node, modules, chains.bf16)
    if not (chains.fused or chains.dense or chains.compact or chains.bytes or chains.bf16):
        return None
    inputs = sum(node.op == "placeholder" for node in graph.nodes)
    code = compile_graph(graph)
    segments = cut_segments(graph, modules)
    return Rewritten(code, compile_graph(graph), chains, segments, inputs)


def _by_position(node: fx.Node, modules: Modules) -> None:
    """Give a module its input as all that follows looks for it, where the model names it."""
    if node.op != "call_module" or node.args or "input" not in node.kwargs:
        return
    if list(inspect.signature(type(modules[node.target]).forward).parameters)[1:2] == ["input"]:
        node.args = (node.kwargs["input"],)
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "input"}


def _simplify(node: fx.Node, modules: Modules) -> None:
    """Drop a module without effect; let a `view` read a map of any layout, where a copy would do as well."""
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if type(module_of(node, modules)) in _WITHOUT_EFFECT and source is not None:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
    elif _is_view(node) and is_read_only_after(node):
        node.target = "reshape"


def _is_view(node: fx.Node) -> bool:
    """Whether the node is `Tensor.view` of another shape, not of another dtype."""
    named = node.op == "call_method" and node.target == "view" and not node.kwargs
    return named and not isinstance(node.args[-1], torch.dtype)


def _fuse(conv: fx.Node, modules: Modules, chains: Chains) -> None:
    """Move the norm and the activation behind `conv` into its call, where nothing else reads what lies between."""
    if not modules[conv.target].config.filling.from_rows:
        return  # a norm or activation would act on the background too
    options, fused = _take_what_follows(conv, modules)
    if fused:
        chains.fused[conv.target] = fused
        conv.kwargs = options


def _fuse_dense(conv: fx.Node, modules: Modules, chains: Chains) -> None:
    """The same for a convolution that stays dense, if anything can be fused into it."""
    module = modules[conv.target]
    if len(conv.args) != 1 or conv.kwargs or module.groups > 1:
        return
    options, fused = _take_what_follows(conv, modules)
    if fused:
        chains.dense[conv.target] = fused
        with conv.graph.inserting_before(conv):
            owner = conv.graph.get_attr(conv.target)
        replace(conv, dense.convolve, (owner, *conv.args), options)


def _fuse_sum(addition: fx.Node, modules: Modules, chains: Chains) -> None:
    """Move an addition, and the activation behind it, into the call of a convolution whose map it alone reads.

    The call takes the addition's place, where the other operand is known already.
    """
    convs = [node for node in addition.args if _can_add(node, addition, modules)]
    if not convs:
        return
    conv = convs[0]
    (residual,) = (node for node in addition.args if node is not conv)
    activation = only_reader(addition)
    kind = None if activation is None else activation_of(activation, modules)
    addition.append(conv)
    conv.kwargs = {**conv.kwargs, "residual": residual, **({"activation": kind} if kind else {})}
    for node in (addition, activation) if kind else (addition,):
        stand_in(conv, node)
        node.replace_all_uses_with(conv)
    if kind:
        addition.graph.erase_node(activation)
    addition.graph.erase_node(addition)
    kinds = chains.fused if conv.op == "call_module" else chains.dense
    name = conv.target if conv.op == "call_module" else conv.args[0].target
    kinds.setdefault(name, []).extend(["residual", *([kind] if kind else [])])


def _can_add(conv: object, addition: fx.Node, modules: Modules) -> bool:
    """Whether an operand of `addition` is a convolution that can add the other one to the map it writes."""
    module = module_of(conv, modules)
    perforated = isinstance(module, PerforatedConv2d) and module.config.filling.from_rows and _is_static(module)
    if not (perforated or conv.target is dense.convolve) or list(conv.users) != [addition]:
        return False
    if addition.args[0] is addition.args[1] or not conv.kwargs.keys().isdisjoint(("compact", "activation", "residual")):
        return False
    if addition.target is operator.iadd and addition.args[0] is not conv:
        return False  # it changes a map that others may read
    return may_move(conv, following(conv, addition))


def _take_what_follows(conv: fx.Node, modules: Modules) -> tuple[dict[str, object], list[str]]:
    """Erase the norm and the activation behind `conv`; (arguments that stand for them, their kinds)."""
    moved, options, end = [], {}, conv
    norm = only_reader(end)
    name = None if norm is None else norm_of(norm, modules)
    if name is not None and may_move(norm, following(conv, norm)):
        with conv.graph.inserting_before(conv):
            options["norm"] = conv.graph.get_attr(name)
        moved.append(norm)
        end = norm
    activation = only_reader(end)
    kind = activation_of(activation, modules) if activation is not None else None
    if kind is not None:
        options["activation"] = kind
        moved.append(activation)
        end = activation
    if moved:
        end.replace_all_uses_with(conv)
    for node in reversed(moved):
        stand_in(conv, node)
        conv.graph.erase_node(node)
    return options, [*(["norm"] if "norm" in options else []), *([kind] if kind else [])]


def _pass_rows(graph: fx.Graph, modules: Modules, chains: Chains) -> None:
    """Let every convolution whose readers all take rows hand over rows, and its readers work on them."""
    origins = _origins(graph, modules)
    compacted = _compact_nodes(modules, origins)
    readers = [(node, origins[node.args[0]].target) for node in graph.nodes if node.args and node.args[0] in compacted]
    for node in compacted:
        if origins[node] is node:
            node.kwargs = {**node.kwargs, "compact": True}
    for node, origin in readers:
        chains.compact.setdefault(origin, []).append(node.target if node.op == "call_module" else node.name)
        _read_rows(node, modules, dense=node not in compacted)


def _read_rows(node: fx.Node, modules: Modules, dense: bool) -> None:
    """Let the node, whose first input is compact, work on rows; `dense` if its readers want a map."""
    module, pool, source = module_of(node, modules), pool_of(node, modules), node.args[0]
    if isinstance(module, PerforatedConv2d):
        return  # reads rows by itself
    if pool is not None:
        replace(node, *compact.pool_call(pool, source))
    elif _is_global_mean(module):
        replace(node, compact.global_mean, (source,))
    elif is_addition(node):
        replace(node, compact.add_ if node.target is operator.iadd else compact.add, node.args)
    else:
        _replace_pointwise(node, source, dense)


def _origins(graph: fx.Graph, modules: Modules) -> dict[fx.Node, fx.Node]:
    """For every node whose value could stay compact, the convolution on whose position set it would lie."""
    origins: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        module = module_of(node, modules)
        if isinstance(module, PerforatedConv2d):
            if module.config.filling.by_nearest and module.config.keep < 1 and _is_static(module):
                origins[node] = node
        elif is_pointwise(node, modules) or is_pointwise_conv(module):
            if node.args and node.args[0] in origins and len(node.all_input_nodes) == 1:
                origins[node] = origins[node.args[0]]
        elif is_addition(node):
            first, second = (origins.get(arg) for arg in node.args)
            if first is not None and first is second:
                origins[node] = first
    return origins


def _compact_nodes(modules: Modules, origins: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """The nodes whose value stays compact: what they read is, and every reader can take rows."""

    def takes_rows(reader: fx.Node, node: fx.Node, compacted: set[fx.Node]) -> bool:
        module = module_of(reader, modules)
        if is_addition(reader):
            return reader in compacted
        if not reader.args or reader.args[0] is not node:
            return False
        if isinstance(module, PerforatedConv2d):
            return _is_static(module)
        if _is_global_mean(module) or is_pointwise_conv(module):
            return True
        pool = pool_of(reader, modules)
        if pool is not None:
            return pool.kind == "max" or not pool.window.ceil_mode
        return reader in compacted

    compacted, before = set(origins), None
    while compacted != before:  # it only shrinks
        before = compacted
        compacted = {
            node
            for node in before
            if (origins[node] is node or before.issuperset(node.all_input_nodes))
            and node.users
            and all(takes_rows(reader, node, before) for reader in node.users)
        }
    return compacted


def _is_static(layer: PerforatedConv2d) -> bool:
    """Whether its positions are known before its input, which an adaptive mask reads as a map."""
    return layer.config.masking.is_static


def _is_global_mean(module: nn.Module | None) -> bool:
    return type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1))


def _replace_pointwise(node: fx.Node, source: fx.Node, dense: bool) -> None:
    """Let a position-wise node work on rows; with `dense`, fill in the map behind it."""
    if node.op == "call_module":
        with node.graph.inserting_before(node):
            module = node.graph.get_attr(node.target)
        call = (compact.apply_module, (module, source))
    elif node.op == "call_method":
        call = (compact.apply_method, (node.target, source))
    else:
        call = (compact.lifted(node.target), (source, *node.args[1:]))
    kwargs = node.kwargs if node.op == "call_function" else {}
    replace(node, *call, kwargs, then=compact.to_dense if dense else None)
