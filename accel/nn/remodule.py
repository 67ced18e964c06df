"""A graph of functions that take their parameters as arguments, as a network of modules that hold them."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from accel.nn.layer_op import as_module
from accel.nn.replay import compile_graph


@dataclasses.dataclass(frozen=True)
class Network:
    """Attributes: root, the network; held, the arguments of the graph that it holds, by place; passed, the places of
    those that it still takes."""

    root: nn.Module
    held: list[tuple[int, object]]
    passed: list[int]

    def holds(self, args: Sequence[object]) -> bool:
        """Whether it was made from these parameters."""
        return all(args[place] is tensor for place, tensor in self.held)

    def __call__(self, *args: object) -> object:
        return self.root(*[args[place] for place in self.passed])


def remodule(graph_module: fx.GraphModule, args: Sequence[object], sizes: Mapping[int, tuple[int, int]]) -> Network:
    """The network of a captured graph for the parameters among its arguments.

    Args:
        sizes: places of arguments that are the size of another one: (its place, its dimension).
    """
    root, graph = nn.Module(), fx.Graph()
    nodes = list(graph_module.graph.nodes)
    given = [node for node in nodes if node.op == "placeholder"]
    values, own = dict(zip(given, args)), {}
    taken: dict[fx.Node, None] = {}
    for node in given:
        own[node] = graph.placeholder(node.name)
    for place, (tensor, dimension) in sizes.items():
        own[given[place]] = graph.call_method("size", (own[given[tensor]], dimension))
    for node in given:
        if isinstance(values[node], nn.Parameter):
            root.register_parameter(f"held_{node.name}", values[node])
            taken[node], own[node] = None, graph.get_attr(f"held_{node.name}")
    for node in nodes[len(given) :]:
        module = _module_of(node, values)
        if module is not None:
            taken |= dict.fromkeys(source for source in node.all_input_nodes[1:] if source in values)
            root.add_module(f"held_{node.name}", module)
            own[node] = graph.call_module(f"held_{node.name}", (own[node.args[0]],))
        elif node.op in ("get_attr", "call_module"):
            setattr(root, f"held_{node.name}", operator.attrgetter(node.target)(graph_module))
            own[node] = graph.node_copy(node, own.__getitem__)
            own[node].target = f"held_{node.name}"
        else:
            own[node] = graph.node_copy(node, own.__getitem__)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    passed = [place for place, node in enumerate(inputs) if node.users]
    for node in inputs:
        if not node.users:
            graph.erase_node(node)
    root.__class__ = type("CapturedGraph", (nn.Module,), {"forward": compile_graph(graph)})
    held = [(place, values[node]) for place, node in enumerate(given) if node in taken]
    return Network(root.eval(), held, passed)


def _module_of(node: fx.Node, values: Mapping[fx.Node, object]) -> nn.Module | None:
    """The module that does what the node does, its parameters among `values`; None where there is none."""
    make = _MAKERS.get(node.target) if node.op == "call_function" and node.args else None
    if make is None or not isinstance(node.args[0], fx.Node):
        return None
    args = fx.node.map_arg(node.args[1:], lambda source: values.get(source, source))
    kwargs = fx.node.map_arg(node.kwargs, lambda source: values.get(source, source))
    if any(isinstance(value, fx.Node) for value in torch.utils._pytree.tree_leaves((args, kwargs))):
        return None  # worked out by the graph
    return make(node, *args, **kwargs)


def _conv(_node, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> nn.Module:
    outputs, inner, *kernel = weight.shape
    steps = (stride, padding, dilation, groups)
    conv = nn.Conv2d(inner * groups, outputs, tuple(kernel), *steps, bias=bias is not None, device="meta")
    conv._parameters.update(weight=weight, bias=bias)
    return conv


def _norm(node, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> nn.Module | None:
    seen = node.args[0].meta.get("example_value")
    if training or mean is None or not isinstance(seen, Tensor) or seen.dim() != 4:
        return None
    norm = nn.BatchNorm2d(len(mean), eps, momentum, device="meta")
    norm._parameters.update(weight=weight, bias=bias)
    norm._buffers.update(running_mean=mean, running_var=var, num_batches_tracked=None)
    return norm


def _dropout(_node, p=0.5, training=True, inplace=False) -> nn.Module | None:
    return None if training else nn.Dropout(p, inplace)


_MAKERS: dict[Callable, Callable[..., nn.Module | None]] = {
    torch.ops.accel.perforated_layer.default: lambda _node, *layer: as_module(*layer),
    torch.conv2d: _conv,
    F.batch_norm: _norm,
    F.dropout: _dropout,
    F.adaptive_avg_pool2d: lambda _node, output_size: nn.AdaptiveAvgPool2d(output_size),
    F.hardtanh: lambda _node, *bounds, **named: nn.Hardtanh(*bounds, **named),
    F.leaky_relu: lambda _node, *slope, **named: nn.LeakyReLU(*slope, **named),
}
