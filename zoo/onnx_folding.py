"""Networks read from ONNX files, written shorter: constants that a map is multiplied with or moved by beside a
convolution go into its weights, and a hardswish that was spelled out becomes one. The values stay those of before but
for rounding, which `accel.zoo.onnx_models.prove` sees.
"""

from __future__ import annotations

import dataclasses
import operator

import torch
from torch import Tensor, fx, nn

_KINDS = {9.0: "add", 18.0: "mul", 3.0: "sub", 2.0: "div"}  # of an operation, by what it makes of 6 and 3


def fold(net: fx.GraphModule) -> fx.GraphModule:
    """The network itself, rewritten, for inference; its convolutions keep their names.

    Args:
        net: as onnx2torch reads it: a module for every node, which is called once.
    """
    shorter, read = _Folding(net), _read(net)
    for node in list(net.graph.nodes):
        shorter.spell_hardswish(node)
    for node in list(net.graph.nodes):
        if isinstance(shorter.module(node), nn.Conv2d | nn.ConvTranspose2d):
            shorter.fold_behind(node)
            shorter.fold_before(node)
    net.graph.eliminate_dead_code()
    net.graph.lint()
    for target in read - _read(net):
        owner, _, name = target.rpartition(".")
        delattr(net.get_submodule(owner), name)
    net.delete_all_unused_submodules()
    net.recompile()
    return net


def _read(net: fx.GraphModule) -> set[str]:
    """The constants."""
    return {node.target for node in net.graph.nodes if node.op == "get_attr"}


@dataclasses.dataclass(frozen=True)
class _Affine:
    """scale * y + shift, per channel; float64 [C] each."""

    scale: Tensor
    shift: Tensor


@dataclasses.dataclass(frozen=True)
class _Arithmetic:
    """Of a map and a constant; `constant_first`: the order in which they come."""

    kind: str
    map: fx.Node
    constant: Tensor
    constant_first: bool


class _Folding:
    """The nodes of a network, and what they stand for."""

    def __init__(self, net: fx.GraphModule) -> None:
        self._net, self._graph, self._added = net, net.graph, 0

    def module(self, node: object) -> nn.Module | None:
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return self._net.get_submodule(node.target) if called else None

    def spell_hardswish(self, clip: fx.Node) -> None:
        """x * relu6(x + 3) / 6, in either order, as one module."""
        moved = self._arithmetic(clip.args[0]) if type(self.module(clip)) is nn.ReLU6 else None
        if moved is None or not _is(moved, "add", 3.0) or _reader(clip.args[0]) is not clip:
            return
        x, end, left = moved.map, clip, {"mul", "div"}
        while left:
            end = _reader(end)
            if end is None:
                return
            shared = self._arithmetic(end)
            if self._multiplies(end, x) and "mul" in left:
                left.remove("mul")
            elif shared is not None and _is(shared, "div", 6.0) and "div" in left:
                left.remove("div")
            else:
                return
        with self._graph.inserting_after(end):
            name = self._add("hardswish", nn.Hardswish())
            end.replace_all_uses_with(self._graph.call_module(name, (x,)))
        self._graph.eliminate_dead_code()

    def fold_behind(self, conv: fx.Node) -> None:
        """Into a convolution what its outputs are multiplied with and moved by, where nothing reads them before."""
        module = self.module(conv)
        while (reader := _reader(conv)) is not None:
            affine = self._affine(reader, module.out_channels)
            if affine is None:
                return
            _scale_outputs(module, affine)
            reader.replace_all_uses_with(conv)
            self._graph.erase_node(reader)

    def fold_before(self, conv: fx.Node) -> None:
        """Into a convolution what its inputs are multiplied with and moved by, where nobody else reads them. Where it
        surrounds them with zeros, what is added has to stay."""
        module, end = self.module(conv), conv.args[0]
        if isinstance(module, nn.ConvTranspose2d) or module.padding_mode != "zeros":
            return
        affine, source, addition = self._before(conv, module.in_channels)
        if not any(module.padding) or not affine.shift.any():
            _scale_inputs(module, affine)
            conv.replace_input_with(end, source)
        elif addition is not None and affine.scale.all() and addition.args[0] is not source:
            _scale_inputs(module, _Affine(affine.scale, torch.zeros_like(affine.shift)))
            constant = (affine.shift / affine.scale).float().view(-1, 1, 1)
            with self._graph.inserting_before(addition):
                addition.args = (source, self._graph.get_attr(self._add("moved_by", constant)))
            conv.replace_input_with(end, addition)
        self._graph.eliminate_dead_code()

    def _before(self, conv: fx.Node, channels: int) -> tuple[_Affine, fx.Node, fx.Node | None]:
        """What becomes of the map that comes first, this map, and a sum on the way that can be written anew."""
        one = torch.ones(channels, dtype=torch.float64, device="cpu")
        affine, source, addition = _Affine(one, torch.zeros_like(one)), conv.args[0], None
        while len(source.users) == 1:
            found, each = self._arithmetic(source), self._affine(source, channels)
            if found is None or each is None:
                break
            affine = _Affine(each.scale * affine.scale, each.shift * affine.scale + affine.shift)
            addition = source if found.kind == "add" else addition
            source = found.map
        return affine, source, addition

    def _affine(self, node: fx.Node, channels: int) -> _Affine | None:
        """What the node makes of a map of so many channels, where it is that."""
        module = self.module(node)
        if isinstance(module, nn.BatchNorm2d):
            return _of_norm(module)
        found = self._arithmetic(node)
        value = None if found is None else _by_channel(found.constant, channels)
        if value is None:
            return None
        one, zero = torch.ones_like(value), torch.zeros_like(value)
        if found.kind == "add":
            return _Affine(one, value)
        if found.kind == "sub":
            return _Affine(-one, value) if found.constant_first else _Affine(one, -value)
        if found.kind == "mul":
            return _Affine(value, zero)
        return None if found.constant_first or not value.all() else _Affine(1 / value, zero)

    def _arithmetic(self, node: fx.Node) -> _Arithmetic | None:
        """A sum, product, difference or quotient of a map and a constant."""
        kind = self._kind(node)
        constants = [self._constant(each) for each in node.args]
        if kind is None or len(constants) != 2 or (constants[0] is None) == (constants[1] is None):
            return None
        first = constants[0] is not None
        return _Arithmetic(kind, node.args[int(first)], constants[0] if first else constants[1], first)

    def _multiplies(self, node: fx.Node, x: fx.Node) -> bool:
        return self._kind(node) == "mul" and x in node.args and len(node.all_input_nodes) == 2

    def _kind(self, node: fx.Node) -> str | None:
        module = self.module(node)
        function = getattr(module, "math_op_function", None)
        if function is None or module.broadcast is not None:
            return None
        return _KINDS.get(float(function(*torch.tensor([6.0, 3.0], dtype=torch.float64, device="cpu"))))

    def _constant(self, node: object) -> Tensor | None:
        read = isinstance(node, fx.Node) and node.op == "get_attr"
        return operator.attrgetter(node.target)(self._net) if read else None

    def _add(self, kind: str, made: nn.Module | Tensor) -> str:
        """The name of a further submodule or buffer."""
        name = f"{kind}_{self._added}"
        self._added += 1
        if isinstance(made, nn.Module):
            self._net.add_submodule(name, made)
        else:
            self._net.register_buffer(name, made)
        return name


def _reader(node: fx.Node) -> fx.Node | None:
    """The only node that reads `node`."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is(found: _Arithmetic, kind: str, value: float) -> bool:
    right = found.kind == kind and (kind == "add" or not found.constant_first)
    return right and found.constant.numel() == 1 and float(found.constant) == value


def _by_channel(constant: Tensor, channels: int) -> Tensor | None:
    """float64 [C], where the constant holds a number for every channel, or one for all."""
    if constant.dim() > 4 or not constant.is_floating_point():
        return None
    if constant.numel() == 1:
        return constant.double().flatten().expand(channels)
    whole = constant.dim() >= 3 and constant.shape[-3] == constant.numel() == channels
    return constant.double().flatten() if whole else None


def _of_norm(norm: nn.BatchNorm2d) -> _Affine | None:
    if norm.running_var is None:
        return None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    return _Affine(scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double())


@torch.no_grad()
def _scale_outputs(conv: nn.Conv2d | nn.ConvTranspose2d, affine: _Affine) -> None:
    weight, rows = conv.weight.double(), affine.scale.view(-1, 1, 1, 1)
    if isinstance(conv, nn.ConvTranspose2d):  # its weights: [in channels, out channels of a group, ...]
        rows = affine.scale.view(conv.groups, 1, -1).repeat_interleave(conv.in_channels // conv.groups, 1)
        rows = rows.view(conv.in_channels, -1, 1, 1)
    bias = 0 if conv.bias is None else conv.bias.double()
    conv.weight.copy_(weight * rows)
    conv.bias = nn.Parameter((bias * affine.scale + affine.shift).to(conv.weight.dtype))


@torch.no_grad()
def _scale_inputs(conv: nn.Conv2d, affine: _Affine) -> None:
    def by_row(values: Tensor) -> Tensor:
        """[C] as [out channels, in channels of a group, 1, 1]."""
        return values.view(conv.groups, -1).repeat_interleave(conv.out_channels // conv.groups, 0)[..., None, None]

    weight = conv.weight.double()
    moved = (weight * by_row(affine.shift)).sum((1, 2, 3))
    conv.weight.copy_(weight * by_row(affine.scale))
    if affine.shift.any():
        bias = 0 if conv.bias is None else conv.bias.double()
        conv.bias = nn.Parameter((bias + moved).to(conv.weight.dtype))
