"""Converted models as programs of torch's own operators: captured by torch.export, then written out op by op."""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Mapping

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map_only

from accel.errors import ConversionError
from accel.export.standard import StandardConv, StandardLinear, takes_norm
from accel.inputs import Batch
from accel.kernels.dispatch import find
from accel.nn import quantized_linear  # noqa: F401  (it registers the op)
from accel.nn.folding import Folded
from accel.nn.layer_op import as_module
from accel.nn.quantized import Quantization
from accel.running import cloned, copied, evaluated

_LAYER = torch.ops.accel.perforated_layer.default
_LINEAR = torch.ops.accel.quantized_linear.default
_NORM = torch.ops.aten.batch_norm.default
_LARGEST_BATCH = 1024  # that is proved: ops take maps of up to 2**31 positions


def standard_program(model: nn.Module, batch: Batch, dynamic_batch: bool = False) -> torch.export.ExportedProgram:
    """What a converted model computes in evaluation, on inputs of one size, in torch's own operators.

    Static perforation keeps its saving. Adaptive masks and stages compute every position, and keep what their masks
    say.

    Args:
        batch: what the model is called with.
        dynamic_batch: the first dimension of every input may be of any length.

    Raises:
        ConversionError: torch cannot export the model, or an op of it has no such form.
    """
    shapes = _shapes(batch, dynamic_batch)
    batch = batch.map(lambda value: tree_map_only(torch.Tensor, torch.Tensor.cpu, value))
    with torch.no_grad():
        module = _export(evaluated(copied(model)).cpu(), batch, shapes).module()
        _write_out(module)
        program = _export(module, batch, shapes)
        return program.run_decompositions(_references(program))


def _export(module: nn.Module, batch: Batch, shapes: object) -> torch.export.ExportedProgram:
    inputs = batch.map(cloned)
    try:
        return torch.export.export(module, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes)
    except Exception as error:  # of many kinds: the model's own, dynamo's, and those of symbolic shapes
        said = " ".join(str(error).split())[:300]
        raise ConversionError(f"torch.export cannot export this model ({type(error).__name__}: {said})") from error


def _shapes(batch: Batch, dynamic_batch: bool) -> object:
    """For torch.export: which dimensions of the inputs are free."""
    if not dynamic_batch:
        return None
    if not all(isinstance(value, torch.Tensor) and value.dim() for value in (*batch.args, *batch.kwargs.values())):
        raise ConversionError("a batch of any length is for models whose inputs are all tensors: leave it fixed")
    free = {0: torch.export.Dim("batch", max=_LARGEST_BATCH)}
    if batch.kwargs and batch.args:
        raise ConversionError("a batch of any length is for models called by position, or by keyword, not by both")
    return dict.fromkeys(batch.kwargs, free) if batch.kwargs else tuple(free for _ in batch.args)


def _write_out(module: fx.GraphModule) -> None:
    """Put modules of torch's operators in the place of this package's layers."""
    for k, node in enumerate(list(module.graph.nodes)):
        if node.target is _LAYER:
            layer = as_module(*_values(module, node.args[1:]))
            last, norm = (_norm_behind(module, node) if takes_norm(layer) else None) or (node, None)
            made = StandardConv(layer, _size(node.args[0]), norm)
        elif node.target is _LINEAR:
            weight, bias, quantization = _values(module, node.args[1:])
            made, last = StandardLinear(Quantization.from_flat(quantization), Folded(weight, bias, None, None)), node
        else:
            continue
        module.add_submodule(f"standard_{k}", made)
        with module.graph.inserting_before(node):
            new = module.graph.call_module(f"standard_{k}", (node.args[0],))
        new.meta["val"] = last.meta["val"]  # a layer that comes next asks for its size
        last.replace_all_uses_with(new)
    module.graph.eliminate_dead_code()
    module.recompile()


def _size(node: fx.Node) -> tuple[int, int]:
    height, width = node.meta["val"].shape[2:]
    return int(height), int(width)


def _norm_behind(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, object] | None:
    """(the node, its statistics) of the batch norm in evaluation that alone reads a node."""
    user = next(iter(node.users), None)
    if len(node.users) != 1 or user.target is not _NORM or user.args[0] is not node or user.args[5]:
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    values = dict(zip(names, _values(module, user.args[1:5])))
    if values["running_mean"] is None:
        return None
    return user, types.SimpleNamespace(**values, eps=user.args[7])


def _values(module: fx.GraphModule, args: tuple) -> tuple:
    """What arguments are that follow from the model alone, such as weights that are worked out from others."""

    def value(node: fx.Node) -> object:
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(module)
        if node.op != "call_function":
            raise ConversionError("a perforated layer has weights that depend on the inputs: it cannot be exported")
        return node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))

    return fx.map_arg(args, value)


def _references(program: torch.export.ExportedProgram) -> Mapping[object, Callable]:
    """op -> its readable reference, in torch's operators, of this package's ops in a program."""
    found = {}
    for node in program.graph.nodes:
        if getattr(node.target, "namespace", None) == "accel":
            name = node.target._opname
            reference = find("reference", name, name)
            if reference is None:
                raise ConversionError(f"the op accel::{name} has no form in torch's own operators")
            found[node.target] = reference
    return found
