"""Convolutions that follow each other in an inference path, run as one call of the C engine.

Such a segment of the graph is recorded at the first call with inputs of some shape, by `accel.kernels.replay`, and run
again from the recording until it is told that what it came from has changed. Who runs a segment has made sure that
nothing watches or replaces a layer of it; where torch needs to see the calls, its layers run one by one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from accel.kernels.dispatch import active_backend
from accel.kernels.replay import Program, engine_state, prepare_replay
from accel.nn import byte_maps, compact, dense
from accel.nn.compact import Compact
from accel.nn.effects import may_move, writes
from accel.nn.folding import is_computed
from accel.nn.graph import module_of, says_size
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import is_floating

_KEPT = 8  # programs of a segment: one for every shape of its inputs
_ON_BYTES = (byte_maps.blend, byte_maps.mean, byte_maps.bounded, byte_maps.join, byte_maps.numbers)
_FLOATS = torch.empty(0, dtype=torch.float32, device="cpu")
_CALLS = ("call_function", "call_method", "call_module")


def cut_segments(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[Segment]:
    """Put one call of a `Segment` in the place of every run of two or more convolutions that the engine can repeat, and
    of what moves bytes between them."""
    for node in list(graph.nodes):
        _hoist(node, modules)
    for node in reversed(list(graph.nodes)):
        _sink(node, modules)
    return [_replace(graph, run, modules) for run in _runs(graph, modules)]


def _hoist(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Move what is no convolution before those that it does not need, such as a shortcut before a branch."""
    if node.op not in _CALLS or _is_between(node, modules):
        return
    before = node.prev
    while _is_between(before, modules) and before not in node.all_input_nodes:
        before = before.prev
    if before is not node.prev and not writes(node):
        before.append(node)


def _sink(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Move what is no convolution behind all those that follow, such as the resizing of a side output, if none needs
    it."""
    if node.op not in _CALLS or _is_between(node, modules):
        return
    after, passed = node.next, []
    while _is_between(after, modules) and node not in after.all_input_nodes:
        passed.append(after)
        after = after.next
    if passed and not _is_repeatable(after, modules) and may_move(node, passed):
        after.prepend(node)


def _runs(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[list[fx.Node]]:
    """Convolutions with nothing between them but the reading of modules and sizes."""
    runs: list[list[fx.Node]] = [[]]
    for node in graph.nodes:
        if _is_repeatable(node, modules):
            runs[-1].append(node)
        elif runs[-1] and not _is_between(node, modules):
            runs.append([])
    return [run for run in runs if len(run) > 1]


def _is_between(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node does not end a run of convolutions."""
    return node.op == "get_attr" or says_size(node) or _is_repeatable(node, modules)


def _is_repeatable(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.target is dense.convolve or (node.target is compact.max_pool and node.kwargs.get("compact")):
        return True
    if node.target in (compact.join, compact.resize, compact.mean_pool, *_ON_BYTES):
        return True
    if node.target is byte_maps.add:
        return node.kwargs.get("sources") is not None
    layer = module_of(node, modules)
    if not isinstance(layer, PerforatedConv2d) or is_computed(layer):
        return False
    config = layer.config
    return config.masking.is_static and config.filling.from_rows and not layer.contiguous


def _replace(graph: fx.Graph, run: list[fx.Node], modules: dict[str, nn.Module]) -> Segment:
    first = run[0]
    run = _with_sizes(graph, run)
    read = dict.fromkeys(source for node in run for source in node.all_input_nodes)
    attributes = [source for source in read if source.op == "get_attr"]
    inputs = [source for source in read if source not in run and source.op != "get_attr"]
    outputs = [node for node in run if not says_size(node) and any(user not in run for user in node.users)]
    inner, own = fx.Graph(), {}
    for source in inputs:
        own[source] = inner.placeholder(source.name)
    for node in (*attributes, *run):
        own[node] = inner.node_copy(node, own.__getitem__)
    inner.output(tuple(own[node] for node in outputs))
    names = [node.target for node in (*attributes, *run) if isinstance(node.target, str)]
    layers = [modules[name] for name in names if name in modules]  # the others are tensors
    segment = Segment(inner, modules[""], layers)
    with graph.inserting_before(first):
        call = graph.call_function(segment.run, tuple(inputs))
        for index, node in enumerate(outputs):
            node.replace_all_uses_with(graph.call_function(operator.getitem, (call, index)))
    for node in (*reversed(run), *attributes):
        if not node.users:
            graph.erase_node(node)
    return segment


def _with_sizes(graph: fx.Graph, run: list[fx.Node]) -> list[fx.Node]:
    """A run, and what tells it sizes: they follow from the shapes of its inputs, which a recording is kept for."""
    found, waiting = set(run), list(run)
    while waiting:
        sizes = {source for source in waiting.pop().all_input_nodes if says_size(source)} - found
        found |= sizes
        waiting += sizes
    return [node for node in graph.nodes if node in found]


class Segment:
    """Convolutions in a row: images in, images out.

    Attributes:
        layers: the modules that it is made from.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, layers: Sequence[nn.Module]) -> None:
        """`graph` reads the modules of `root`; `layers`: all of those."""
        self._code = compile_graph(graph)
        self._root = root
        self.layers = list(layers)
        self._rounds = any(isinstance(each, PerforatedConv2d) and each.config.rounds for each in layers)
        self.forget()

    def forget(self) -> None:
        """Record anew: a weight has changed."""
        self._programs: dict[tuple, Program | None] = {}
        tensors = [t for layer in self.layers for t in (*layer.parameters(), *layer.buffers())]
        self._counted = not any(t.is_inference() for t in tensors)  # nobody counts the writes to inference tensors

    def run(self, *inputs: object) -> Sequence[object]:
        """The outputs that others read."""
        program = self._program(inputs) if self._may_replay(inputs) else None
        return self._code(self._root, *inputs) if program is None else _run(program, inputs)

    def _may_replay(self, inputs: tuple) -> bool:
        if self._rounds and is_floating():
            return False
        if not all(map(_is_map, inputs)):
            return False
        return self._counted and len({x.shape[0] for x in inputs}) == 1

    def _program(self, inputs: tuple[Tensor | Compact, ...]) -> Program | None:
        key, programs = (engine_state(), *[(type(x), x.shape) for x in inputs]), self._programs
        if key not in programs:
            made = prepare_replay(lambda *some: self._on_images(map(_as_value, some)), list(map(_as_image, inputs)))
            made = None if made is None or not self._is_proved(made, inputs) else made
            kept = {**dict(list(programs.items())[1 - _KEPT :]), key: made}
            if programs is self._programs:  # else a weight has changed meanwhile
                self._programs = kept
            programs = kept
        return programs[key]

    def _is_proved(self, program: Program, inputs: tuple[Tensor, ...]) -> bool:
        """Whether a program of bytes or bf16 gives the numbers of the calls, all of them. That of floats is compared
        with the model's own forward, as is the whole path; these differ from that by rounding, which hides faults."""
        if not self._rounds:
            return True
        return all(map(torch.equal, map(_as_image, _run(program, inputs)), self._on_images(inputs)))

    def _on_images(self, inputs: Iterable[Tensor | Compact]) -> list[object]:
        """The outputs call by call, maps in bytes as images."""
        return list(map(_as_image, self._code(self._root, *inputs)))


def _is_map(x: object) -> bool:
    """Whether a recording can take an input: a map of floats, or what another segment gave in bytes."""
    if isinstance(x, Compact):
        return _as_image(x) is not x and active_backend(_FLOATS) == "cpu"
    if type(x) is not Tensor or x.dim() != 4 or x.dtype is not torch.float32 or not x.numel():
        return False
    return active_backend(x) == "cpu"


def _as_image(value: object) -> object:
    """A map in bytes that one segment hands to another, as a tensor; anything else as it is."""
    if not isinstance(value, Compact) or not value.batched or value.rows.dtype is not torch.uint8:
        return value
    return value.as_image() if compact.stand_ins(value) is None and value.rows.numel() else value


def _as_value(image: Tensor) -> Tensor | Compact:
    return compact.handed_over(image) if image.dtype is torch.uint8 else image


def _run(program: Program, inputs: Sequence[Tensor | Compact]) -> tuple[Tensor | Compact, ...]:
    images = [x.contiguous(memory_format=torch.channels_last) for x in map(_as_image, inputs)]
    return tuple(map(_as_value, program.run(images)))


def compile_graph(graph: fx.Graph) -> Callable:
    """The graph as a function of the root module and its inputs."""
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<inference path>", "exec"), namespace)  # what fx wrote for the rewritten graph
    return namespace["forward"]
