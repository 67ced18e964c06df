"""What the nodes of a model's graph are: poolings, position-wise layers, sums; and which modules it relies on."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn

from accel.masks import Pooling
from accel.nn.geometry import geometry_of
from accel.nn.twin import has_own_forward, is_whole


def modules_of(root: nn.Module) -> Iterator[nn.Module]:
    """The modules whose calls and settings a graph of `root` relies on."""
    yield root
    if not is_whole(root):
        for child in root.children():
            yield from modules_of(child)


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


_RESIZING = inspect.signature(F.interpolate)


def resizing_of(node: fx.Node, modules: dict[str, nn.Module]) -> dict[str, object] | None:
    """The arguments of F.interpolate but the first, where the node resizes to the nearest position or bilinearly; else
    None."""
    module, own = module_of(node, modules), list(_RESIZING.parameters)[1:]
    if isinstance(module, nn.Upsample) and type(module).forward is nn.Upsample.forward:
        given = {name: getattr(module, name) for name in own if hasattr(module, name)}
    elif node.op == "call_function" and node.target is F.interpolate and node.args:
        given = dict(zip(own, node.args[1:])) | node.kwargs
    else:
        return None
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    known = given.get("mode", "nearest") in ("nearest", "nearest-exact", "bilinear") and not given.get("antialias")
    return given if known else None


def concatenation_of(node: fx.Node) -> tuple[list[fx.Node], int] | None:
    """(maps, dimension) where the node joins maps along their channels; else None."""
    if node.op != "call_function" or node.target not in (torch.cat, torch.concat, torch.concatenate):
        return None
    given = dict(zip(("tensors", "dim"), node.args)) | node.kwargs
    maps, dim = given.get("tensors"), given.get("dim", 0)
    if not isinstance(maps, (list, tuple)) or not all(isinstance(each, fx.Node) for each in maps):
        return None
    return (list(maps), dim) if dim in (1, -3) and given.keys() <= {"tensors", "dim"} else None


def reads_shape(node: fx.Node) -> bool:
    """Whether the node asks for the size of a value, and for nothing else of it."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1:] == ("shape",)
    return node.op == "call_method" and node.target == "size" and len(node.all_input_nodes) == 1


_ON_NUMBERS = (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, int, tuple)


def says_size(node: fx.Node) -> bool:
    """Whether the node's value follows from the sizes of maps alone."""
    if reads_shape(node):
        return True
    sources = node.all_input_nodes
    return node.op == "call_function" and node.target in _ON_NUMBERS and bool(sources) and all(map(says_size, sources))


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


_NORM = inspect.signature(F.batch_norm)
_STATE = ("running_mean", "running_var", "weight", "bias")


def norm_of(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The name of the module by whose statistics, gain and offset, and eps, the node norms in evaluation; else None.

    The node calls an `nn.BatchNorm2d`, or `F.batch_norm` on attributes that have their names there.
    """
    module = module_of(node, modules)
    if type(module) is nn.BatchNorm2d:
        return node.target if module.running_mean is not None else None
    if node.op != "call_function" or node.target is not F.batch_norm:
        return None
    call = _NORM.bind(*node.args, **node.kwargs)
    call.apply_defaults()
    given, mean = call.arguments, call.arguments["running_mean"]
    name = mean.target.rpartition(".")[0] if isinstance(mean, fx.Node) and mean.op == "get_attr" else None
    if not name or given["training"] is not False or given["eps"] != getattr(modules.get(name), "eps", None):
        return None
    return name if all(_reads(given[key], modules[name], name, key) for key in _STATE) else None


def _reads(value: object, module: nn.Module, name: str, key: str) -> bool:
    """Whether an argument is the attribute `key` of the module of that name."""
    if value is None:
        return getattr(module, key, module) is None
    return isinstance(value, fx.Node) and value.op == "get_attr" and value.target == f"{name}.{key}"


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


def only_reader(node: fx.Node) -> fx.Node | None:
    """The only node that reads `node`, if it takes it as its first argument and is not the graph's output."""
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    return reader if reader.op != "output" and reader.args and reader.args[0] is node else None


_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")


def activation_of(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The name under which the convolution ops know the activation that the node applies; None for any other."""
    module = module_of(node, modules)
    if type(module) is nn.LeakyReLU:
        return "leaky_relu" if module.negative_slope == 0.01 else None
    if type(module) in (nn.ReLU6, nn.Hardtanh):
        return "relu6" if (module.min_val, module.max_val) == (0, 6) else None
    if module is not None:
        return {nn.ReLU: "relu", nn.Hardswish: "hardswish"}.get(type(module))
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _RELUS:
        return "relu"
    if node.target is F.leaky_relu and len(node.args) == 1 and node.kwargs.get("negative_slope", 0.01) == 0.01:
        return "leaky_relu"
    return {F.hardswish: "hardswish", F.relu6: "relu6"}.get(node.target)


def module_of(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The module whose class's forward the node runs, or None."""
    module = modules[node.target] if node.op == "call_module" else None
    return None if module is None or has_own_forward(module) else module
