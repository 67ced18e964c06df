"""What the nodes of a graph write to, and which of their values share memory: what may move past what.

Nothing is recognised by being run. Torch's own operations say in their schemas what they write and what they return;
the functions of `torch.nn.functional` and the modules of `torch.nn` write where they are told to (`inplace`, `out`,
training); whatever else a graph calls may write to anything. A value counts as sharing the memory of all that its node
reads, unless the operation is known to return memory of its own.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from accel.nn.graph import module_of
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized_linear import QuantizedLinear
from accel.nn.tracing import IN_PLACE_OPERATORS

OUTSIDE = "outside"  # the memory of inputs, parameters and buffers, which may share among each other
_ANYTHING = "anything"
_NOTHING: frozenset = frozenset()


class _Kind(NamedTuple):
    """What an operation does with memory: `writes` none, the first, or all of what it reads; or to anything."""

    writes: str = "none"
    fresh: bool = False  # it returns memory that nothing else has
    plain: bool = False  # it returns no tensor, such as a size


_READS, _FRESH, _SIZE = _Kind(), _Kind(fresh=True), _Kind(plain=True)
_FIRST, _ALL, _UNKNOWN = _Kind("first"), _Kind("all"), _Kind("anything")


def annotate(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Note at every node what it writes to and whose memory its value may share, for the questions below."""
    for node in graph.nodes:
        read = _memory_of(node.all_input_nodes)
        aliases, writes = read | {node}, _NOTHING
        if node.op in ("placeholder", "get_attr"):
            aliases = frozenset({OUTSIDE})
        elif node.op != "output":
            kind = _kind(node, modules)
            first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
            if kind.writes == "anything":
                aliases, writes = aliases | {OUTSIDE}, frozenset({_ANYTHING})
            elif kind.writes != "none":
                writes = memory(first) if kind.writes == "first" and first is not None else read
            elif kind.plain or kind.fresh:
                aliases = _NOTHING if kind.plain else frozenset({node})
        node.meta["memory"], node.meta["writes"] = aliases, writes


def memory(node: fx.Node) -> frozenset:
    """The memory that the node's value may lie in."""
    return node.meta.get("memory", _NOTHING)


def writes(node: fx.Node) -> frozenset:
    """The memory that the node may write to; empty where it only reads."""
    return node.meta.get("writes", _NOTHING)


def stand_in(new: fx.Node, old: fx.Node) -> None:
    """From now on `new` does what `old` did: what was said of that holds of `new` too."""
    new.meta["memory"] = memory(new) | memory(old)
    new.meta["writes"] = writes(new) | writes(old)


def may_move(node: fx.Node, past: Iterable[fx.Node]) -> bool:
    """Whether a node that writes nothing, and reads parameters besides its inputs, computes the same behind `past`."""
    return not writes(node) and not _any_writes(past, _memory_of(node.all_input_nodes) | {OUTSIDE})


def is_read_only_after(node: fx.Node) -> bool:
    """Whether nothing that runs after `node` writes to the memory of its value: a copy would do as well."""
    return not _any_writes(following(node), memory(node))


def is_settled(node: fx.Node) -> bool:
    """Whether nothing reads the value of `node` after something may have written to it: copies would do as well."""
    written = False
    for later in following(node):
        if written and node in later.all_input_nodes:
            return False
        written = written or _any_writes([later], memory(node))
    return True


def following(node: fx.Node, end: fx.Node | None = None) -> Iterator[fx.Node]:
    """The nodes behind `node`, up to `end` or the last."""
    node = node.next
    while node is not end and node.op != "root":
        yield node
        node = node.next


def _any_writes(nodes: Iterable[fx.Node], where: frozenset) -> bool:
    return any(_ANYTHING in writes(node) or writes(node) & where for node in nodes)


def _memory_of(nodes: Iterable[fx.Node]) -> frozenset:
    return frozenset().union(*map(memory, nodes))


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> _Kind:
    if node.op == "call_module":
        return _module_kind(module_of(node, modules))
    kind = _method_kind(node.target) if node.op == "call_method" else _function_kind(node)
    return _ALL if node.kwargs.get("out") is not None and kind is not _UNKNOWN else kind


_FRESH_MODULES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)


def _module_kind(module: nn.Module | None) -> _Kind:
    """In evaluation, where norms write no statistics."""
    if type(module) in (PerforatedConv2d, QuantizedLinear) or type(module) in _FRESH_MODULES:
        return _FRESH
    if not type(module).__module__.startswith("torch.nn.modules.") or getattr(module, "max_norm", None) is not None:
        return _UNKNOWN  # an embedding with max_norm writes to its weight
    return _FIRST if getattr(module, "inplace", False) else _READS


_WRITING_OPERATORS = (*IN_PLACE_OPERATORS.values(), operator.setitem, operator.delitem)
_READING_MODULES = ("_operator", "math", "torch.functional", "torch.nn.functional")
_SIZES = ("size", "dim", "numel", "shape", "ndim", "dtype", "device", "stride", "is_cuda", "__len__")
_PYTHON_METHODS = (
    *("float", "half", "double", "bfloat16", "int", "long", "bool", "cpu", "cuda", "type", "new_tensor"),
    *("tolist", "ndimension", "nelement", "element_size"),
)


def _method_kind(name: str) -> _Kind:
    if name in _SIZES:
        return _SIZE
    return _READS if name in _PYTHON_METHODS else _schema_kind(name)


def _function_kind(node: fx.Node) -> _Kind:
    target, name = node.target, getattr(node.target, "__name__", "")
    if target in _WRITING_OPERATORS:
        return _FIRST
    if target is torch._assert:
        return _SIZE  # it returns nothing
    if target is getattr:
        return _SIZE if node.args[1] in _SIZES else _READS
    if inspect.isbuiltin(target) and any(getattr(space, name, None) is target for space in (torch, torch._C._nn, F)):
        return _schema_kind(name)
    return _python_kind(node) if getattr(target, "__module__", None) in _READING_MODULES else _UNKNOWN


def _python_kind(node: fx.Node) -> _Kind:
    """Of a function of torch's that is written in Python: it writes where its arguments say so."""
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # no signature: operators
        given = node.kwargs
    statistics = given.get("running_mean") is not None and given.get("training", given.get("use_input_stats", False))
    if statistics or given.get("max_norm") is not None:
        return _UNKNOWN
    if node.target is F.batch_norm:
        return _FRESH
    return _FIRST if given.get("inplace", False) else _READS


@functools.cache
def _schema_kind(name: str) -> _Kind:
    """Of torch's own operation of this name, by the schemas of all its overloads."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or name in ("batch_norm", "instance_norm"):  # their schemas are silent on running statistics
        return _UNKNOWN
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    schemas = [overload._schema for overload in overloads]
    written = [
        [_is_written(argument) for argument in schema.arguments if not argument.kwarg_only] for schema in schemas
    ]
    if any(any(row[1:]) for row in written):
        return _ALL
    if any(any(row) for row in written):
        return _FIRST
    return _FRESH if all(map(_returns_own_memory, overloads)) else _READS


def _is_written(argument: torch._C.Argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _returns_own_memory(overload: torch._ops.OpOverload) -> bool:
    """Torch holds its kernels to their schemas, but not what is composed of other operations, such as dropout."""
    schema = overload._schema
    name = f"{schema.name}.{schema.overload_name}".rstrip(".")
    if any(_is_written(argument) for argument in schema.arguments):
        return True  # of kwarg `out` only, and then the node counts as a writer
    if not torch._C._dispatch_has_kernel(name) or any(value.alias_info is not None for value in schema.returns):
        return False
    return not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def replace(
    node: fx.Node, target: Callable, args: tuple, kwargs: dict | None = None, then: Callable | None = None
) -> None:
    """Put a call of `target` in the node's place, and of `then` behind it."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args, kwargs)
        stand_in(new, node)
        if then is not None:
            new = node.graph.call_function(then, (new,))
            stand_in(new, node)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
