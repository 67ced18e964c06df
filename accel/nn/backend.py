"""The backend "accel" of torch.compile: what its front end captures runs as a converted model does.

A captured graph speaks of functions, and parameters come in as arguments. `accel.nn.remodule` gives it modules again,
which hold the parameters of the call, and the network of these gets an inference path with all that one checks. Graphs
that need gradients run op by op.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from accel.nn.inference import install
from accel.nn.remodule import Network, remodule

_KEPT = 8  # networks of one graph: copies of a model share what was captured of the first


def compile_graph(graph_module: fx.GraphModule, _example_inputs: Sequence[object]) -> Callable:
    """What torch.compile(model, backend="accel") runs instead of a graph that it has captured."""
    switches = any(node.target is torch._C._set_grad_enabled for node in graph_module.graph.nodes)
    if torch.is_grad_enabled() or switches:
        return graph_module.forward
    return _Captured(graph_module, _sizes(graph_module.graph))


def _sizes(graph: fx.Graph) -> dict[int, tuple[int, int]]:
    """Of the inputs that are sizes, by place: which tensor among the inputs has this size, in which dimension."""
    examples = [node.meta.get("example_value") for node in graph.nodes if node.op == "placeholder"]
    where: dict[str, tuple[int, int]] = {}
    for place, tensor in enumerate(examples):
        for dimension, size in enumerate(tensor.shape if isinstance(tensor, Tensor) else ()):
            where.setdefault(str(size), (place, dimension))
    symbols = {place: str(value) for place, value in enumerate(examples) if isinstance(value, torch.SymInt)}
    return {place: where[symbol] for place, symbol in symbols.items() if symbol in where}


class _Captured:
    """A captured graph, and the networks made of it: one for every set of parameters."""

    def __init__(self, graph_module: fx.GraphModule, sizes: dict[int, tuple[int, int]]) -> None:
        self._graph_module, self._sizes = graph_module, sizes
        self._networks: list[Network] = []
        self._lock = threading.Lock()

    def __call__(self, *args: object) -> object:
        for network in self._networks:
            if network.holds(args):
                return network(*args)
        return self._made(args)(*args)

    def _made(self, args: tuple) -> Network:
        with self._lock:
            for network in self._networks:  # another thread was faster
                if network.holds(args):
                    return network
            network = remodule(self._graph_module, args, self._sizes)
            install(network.root)
            self._networks = [network, *self._networks[: _KEPT - 1]]
            return network
