"""The data flow of a model in evaluation, by torch.fx, for the parts of it that trace.

A graph is trusted only where it says all that the forward does: one that sets attributes, keeps constants or reads
non-tensor arguments is refused. What follows runs the graph against the living modules; it never replaces them.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn

from accel.masks import Pooling
from accel.nn.geometry import geometry_of
from accel.nn.running import evaluation

PLAIN = (type(None), bool, int, float, str)


_IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "matmul", "and", "or", "xor", "lshift", "rshift")
IN_PLACE_OPERATORS = {f"__i{name}__": getattr(operator, f"__i{name}__") for name in _IN_PLACE}


class _Proxy(fx.Proxy):
    """Records `a += b` as what it is: fx's own proxy turns it into `a + b`, which loses the write to a's aliases."""


def _recorder(target: Callable) -> Callable:
    def record(self: _Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return record


for _name, _operator in IN_PLACE_OPERATORS.items():
    setattr(_Proxy, _name, _recorder(_operator))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # read buffers when the graph runs, not when it is traced

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: object) -> object:
        if type(a) is not OrderedDict:
            return super().create_arg(a)
        items = [(name, self.create_arg(value)) for name, value in a.items()]  # fx would write a plain dict
        return self.create_node("call_function", OrderedDict, (items,), {})

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, nn.Conv2d) or is_whole(m) or has_own_forward(m)
        return whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        if m not in self.submodule_paths:  # made on the fly, such as a slice of a Sequential: what it holds counts
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def is_whole(module: nn.Module) -> bool:
    """Whether a module sees to its own inside, so that a graph says no more of it than that it is called."""
    return getattr(module, "is_whole", False)


def has_own_forward(module: nn.Module) -> bool:
    """Whether a forward was set on the module itself that does something else than its class's."""
    own = module.__dict__.get("forward")
    return own is not None and not (getattr(own, "observes_only", False) or getattr(own, "follows_class", False))


def modules_of(root: nn.Module) -> Iterator[nn.Module]:
    """The modules whose calls and settings a graph of `root` relies on."""
    yield root
    if not is_whole(root):
        for child in root.children():
            yield from modules_of(child)


def trace(root: nn.Module) -> fx.Graph | None:
    """The graph of `root`'s forward in evaluation, its optional arguments at their defaults; None where there is none.

    `root` is left as it was found.
    """
    defaults = optional_arguments(root)
    if defaults is None:
        return None
    before = _attributes(root)
    try:
        with evaluation(root):
            graph = _Tracer().trace(root, concrete_args=defaults)
    except Exception:  # tracing runs a stranger's forward on proxies: whatever it raises, it does not trace
        graph = None
    changed = _restore(before)
    return None if graph is None or changed else _without_defaults(graph)


def traced_parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """(name, module, graph) of the largest parts of the model that trace and hold a convolution."""
    if isinstance(model, nn.Conv2d) or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return
    graph = None if has_own_forward(model) else trace(model)
    if graph is not None:
        yield prefix, model, graph
        return
    for name, child in model.named_children():
        yield from traced_parts(child, f"{prefix}.{name}" if prefix else name)


def optional_arguments(root: nn.Module) -> dict[str, object] | None:
    """Defaults of the forward's optional arguments; None where the forward takes what cannot be listed."""
    defaults = {}
    for name, parameter in list(inspect.signature(type(root).forward).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            return None
        if parameter.default is not parameter.empty:
            if not isinstance(parameter.default, PLAIN):
                return None
            defaults[name] = parameter.default
    return defaults


def _without_defaults(graph: fx.Graph) -> fx.Graph:
    """Drop the placeholders of optional arguments, and fx's checks that they hold their defaults."""
    for node in reversed(graph.nodes):
        default = node.op == "placeholder" and bool(node.args)
        check = node.op == "call_function" and "_assert" in getattr(node.target, "__name__", "")
        comparison = node.target is operator.eq and not isinstance(node.args[1], fx.Node)
        if (default or check or comparison) and not node.users:
            graph.erase_node(node)
    return graph


def _attributes(root: nn.Module) -> dict[nn.Module, dict[str, tuple[object, object]]]:
    """Every attribute of every module, with a copy of the lists and dicts among them."""
    return {
        module: {name: (value, _copy(value)) for name, value in module.__dict__.items()} for module in root.modules()
    }


def _copy(value: object) -> object:
    return value.copy() if isinstance(value, (list, dict)) else None


def _restore(before: dict[nn.Module, dict[str, tuple[object, object]]]) -> bool:
    """Put back what tracing changed; whether it changed anything."""
    changed = False
    for module, attributes in before.items():
        now = module.__dict__
        if now.keys() != attributes.keys() or any(now[name] is not value for name, (value, _) in attributes.items()):
            changed = True
            now.clear()
            now.update({name: value for name, (value, _) in attributes.items()})
        for value, copy in attributes.values():
            if isinstance(value, (list, dict)) and not _same_items(value, copy):
                changed = True
                value.clear()
                value.extend(copy) if isinstance(value, list) else value.update(copy)
    return changed


def _same_items(value: list | dict, copy: list | dict) -> bool:
    pairs = zip(value, copy) if isinstance(value, list) else zip(value.items(), copy.items())
    if isinstance(value, dict):
        return list(value) == list(copy) and all(a[1] is b[1] for a, b in pairs)
    return len(value) == len(copy) and all(a is b for a, b in pairs)


def pooling_after(node: fx.Node, modules: dict[str, nn.Module]) -> Pooling | None:
    """The first pooling layer that reads the value of `node` directly or through position-wise layers."""
    for user in node.users:
        pool = pool_of(user, modules)
        if pool is not None:
            return pool.window
        if is_pointwise(user, modules) or is_pointwise_conv(module_of(user, modules)):
            found = pooling_after(user, modules)
            if found is not None:
                return found
    return None


@dataclasses.dataclass(frozen=True)
class Pool:
    """A max or average pooling call."""

    kind: str
    window: Pooling
    dilation: tuple[int, int] = (1, 1)
    count_include_pad: bool = True
    divisor: int | None = None


_MAX_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_ARGUMENTS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def pool_of(node: fx.Node, modules: dict[str, nn.Module]) -> Pool | None:
    """The pooling that the node does, as a module or a function; None for any other node."""
    module = module_of(node, modules)
    if type(module) is nn.MaxPool2d:
        return _pool("max", {name: getattr(module, name) for name in _MAX_ARGUMENTS})
    if type(module) is nn.AvgPool2d:
        return _pool("avg", {name: getattr(module, name) for name in _AVG_ARGUMENTS})
    if node.op != "call_function" or not node.args:
        return None
    if node.target in (F.max_pool2d, torch.max_pool2d):
        return _pool("max", dict(zip(_MAX_ARGUMENTS, node.args[1:])) | node.kwargs)
    if node.target is F.avg_pool2d:
        return _pool("avg", dict(zip(_AVG_ARGUMENTS, node.args[1:])) | node.kwargs)
    return None


def _pool(kind: str, given: dict) -> Pool | None:
    if given.get("return_indices") or any(isinstance(value, fx.Node) for value in given.values()):
        return None
    kernel = _pair(given["kernel_size"])
    stride = _pair(given.get("stride") or kernel)
    window = Pooling(kernel, stride, _pair(given.get("padding", 0)), bool(given.get("ceil_mode", False)))
    include = given.get("count_include_pad", True)
    return Pool(kind, window, _pair(given.get("dilation", 1)), include, given.get("divisor_override"))


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]


_POINTWISE_MODULES = (
    *(nn.BatchNorm2d, nn.Identity, nn.Dropout, nn.Dropout2d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus),
)
_POINTWISE_FUNCTIONS = (
    *(F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.hardswish, F.elu, F.selu, F.gelu, F.silu),
    *(F.mish, torch.sigmoid, torch.tanh, F.softplus, F.hardsigmoid),
)
_POINTWISE_METHODS = ("relu", "relu_", "sigmoid", "tanh")


def is_pointwise(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the node maps every position's channels by themselves, the same at every position, in evaluation."""
    module = module_of(node, modules)
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
        return False  # it computes statistics, which rows do not have
    if module is not None:
        return type(module) in _POINTWISE_MODULES
    if node.op == "call_method":
        return node.target in _POINTWISE_METHODS
    return node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS


def is_pointwise_conv(module: nn.Module | None) -> bool:
    """Whether the module is a dense 1x1 convolution that maps every position by itself."""
    if type(module) is not nn.Conv2d:
        return False
    now = geometry_of(module)
    return (now.kernel, now.stride, now.padding, now.groups) == ((1, 1), (1, 1), (0, 0, 0, 0), 1)


def is_addition(node: fx.Node) -> bool:
    """Whether the node adds two tensors, in place or not."""
    if node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add):
        return len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args) and not node.kwargs
    return False


def module_of(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The module whose class's forward the node runs, or None."""
    module = modules[node.target] if node.op == "call_module" else None
    return None if module is None or has_own_forward(module) else module
