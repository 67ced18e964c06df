"""Multiply-accumulates of convolutions and linear layers: what was executed, and what dense execution would take.

Counted while the model runs, op by op as torch dispatches them, so that functional calls, shared modules and converted
layers all show. Everything else (normalisation, activations, pooling, attention) counts nothing. FLOPs = 2 x MACs.

A module that decides per image what to run may account for itself: after its forward, `module.result.executed_macs` is
int64 [N], and the ops inside it are not counted again.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.errors import AccelError
from accel.kernels import masked_conv2d, perforated_conv2d  # noqa: F401  (they register the ops counted here)

_FVCORE_KEPT = ("conv", "linear", "perforated_conv2d", "masked_conv2d", "masked_conv2d_")


@dataclasses.dataclass
class LayerMacs:
    """Attributes: name, full module name ("" for ops outside any submodule); kind, class of the module; dense and
    executed, MACs of all its calls over the batch; dense is None for a module that accounts for itself."""

    name: str
    kind: str
    dense: int | None = 0
    executed: int = 0


@dataclasses.dataclass(frozen=True)
class _Work:
    """MACs of one op. Attributes: images it covers; executed, int64 [images] or one number for each of them; dense,
    None where only the module knows."""

    images: int
    executed: Tensor | int
    dense: int | None

    @property
    def total(self) -> int:
        return int(self.executed.sum()) if isinstance(self.executed, Tensor) else self.images * self.executed


def count_macs(model: nn.Module, x: Tensor | tuple, per_image: bool = False) -> int | Tensor:
    """Executed MACs of convolutions and linear layers when `model` runs on `x`.

    Args:
        x: the input, or a tuple of arguments that starts with it; [N, ...].
        per_image: return int64 [N] instead of the total.

    Raises:
        AccelError: per_image, and a layer runs on a batch whose size is no multiple of N.
    """
    counter = _run(model, x)
    return counter.per_image() if per_image else counter.total()


def layer_macs(model: nn.Module, x: Tensor | tuple) -> list[LayerMacs]:
    """Dense and executed MACs per module, in the order of their first call; the sums are those of the network."""
    return list(_run(model, x).layers.values())


def static_macs(model: nn.Module, x: Tensor | tuple) -> int:
    """MACs by fvcore's static analysis of the traced graph: an independent count, for models that trace.

    Layers with a data-dependent number of positions count at their capacity.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore and the tracer warn about their own use of torch.jit
        from fvcore.nn import FlopCountAnalysis

        from accel.kernels.counting import FVCORE_HANDLES

        analysis = FlopCountAnalysis(model, x).set_op_handle(**FVCORE_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        with torch.no_grad():
            counts = analysis.by_operator()
    return int(sum(counts[op] for op in _FVCORE_KEPT))


def _run(model: nn.Module, x: Tensor | tuple) -> _Counter:
    arguments = x if isinstance(x, tuple) else (x,)
    counter = _Counter(len(arguments[0]))
    modes = {module: module.training for module in model.modules()}
    handles = counter.watch(model)
    model.eval()
    try:
        # In inference mode convolutions and linear layers reach the counter whole, not as addmm, which others use too.
        with torch.inference_mode(), counter:
            model(*arguments)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return counter


class _Counter(TorchDispatchMode):
    """Adds up the work of every op that has a formula, under the innermost module that called it."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images
        self.layers: dict[str, LayerMacs] = {}
        self._works: list[_Work] = []
        self._stack: list[tuple[str, str]] = [("", "")]
        self._silent = 0  # depth of modules that account for themselves

    def watch(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        handles = []
        for name, module in model.named_modules():
            own = hasattr(module, "result")

            def enter(module: nn.Module, _args: tuple, name: str = name, own: bool = own) -> None:
                self._stack.append((name, type(module).__name__))
                self._silent += own

            def leave(module: nn.Module, _args: tuple, _out: object, own: bool = own) -> None:
                self._silent -= own
                if own and not self._silent:
                    macs = module.result.executed_macs
                    self._add(_Work(len(macs), macs, dense=None))
                self._stack.pop()

            enter.observes_only = leave.observes_only = True  # fused inference may go on: see accel.nn.inference
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        return handles

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None and not self._silent:
            self._add(formula(args, out))
        return out

    def _add(self, work: _Work) -> None:
        name, kind = self._stack[-1]
        layer = self.layers.setdefault(name, LayerMacs(name, kind))
        layer.dense = None if None in (layer.dense, work.dense) else layer.dense + work.dense
        layer.executed += work.total
        self._works.append(work)

    def total(self) -> int:
        return sum(work.total for work in self._works)

    def per_image(self) -> Tensor:
        found = torch.zeros(self.images, dtype=torch.int64)
        for work in self._works:
            share, rest = divmod(work.images, self.images)
            if rest:
                raise AccelError(
                    f"a layer ran on a batch of {work.images}, no multiple of the {self.images} images: its MACs "
                    "cannot be told apart by image; count them with per_image=False"
                )
            each = torch.as_tensor(work.executed).to("cpu", torch.int64).expand(work.images)
            found += each.reshape(self.images, share).sum(1)
        return found


def _conv(args: tuple, out: Tensor) -> _Work:
    return _static(len(out), out.numel() // args[1].shape[0] * args[1].numel())


def _transposed(args: tuple, out: Tensor) -> _Work:
    return _static(len(out), args[0].numel() // args[1].shape[0] * args[1].numel())


def _convolution(args: tuple, out: Tensor) -> _Work:
    transposed = args[6]
    return _transposed(args, out) if transposed else _conv(args, out)


def _linear(args: tuple, out: Tensor) -> _Work:
    return _static(len(out) if out.dim() > 1 else 1, args[0].numel() * args[1].shape[0])


def _perforated(args: tuple, out: Tensor) -> _Work:
    weight, positions, in_size, out_size = args[1], args[3], args[7], args[8]
    dense = in_size[0] * math.prod(out_size) * weight.numel()
    return _Work(in_size[0], len(positions) * weight.numel(), dense)


def _masked(args: tuple, out: Tensor) -> _Work:
    weight, counts, out_size = args[1], args[4], args[8]
    dense = len(counts) * math.prod(out_size) * weight.numel()
    return _Work(len(counts), counts.long() * weight.numel(), dense)


def _masked_in_place(args: tuple, out: Tensor) -> _Work:
    """What refines a map counts as executed only: the dense work was counted where the map was made."""
    weight, counts = args[2], args[5]
    return _Work(len(counts), counts.long() * weight.numel(), 0)


def _static(images: int, macs: int) -> _Work:
    return _Work(images, macs // images, macs)


_FORMULAS: dict[object, Callable[[tuple, Tensor], _Work]] = {
    torch.ops.aten.conv1d: _conv,
    torch.ops.aten.conv2d: _conv,
    torch.ops.aten.conv3d: _conv,
    torch.ops.aten.conv_transpose1d: _transposed,
    torch.ops.aten.conv_transpose2d: _transposed,
    torch.ops.aten.conv_transpose3d: _transposed,
    torch.ops.aten.convolution: _convolution,
    torch.ops.aten.linear: _linear,
    torch.ops.accel.perforated_conv2d: _perforated,
    torch.ops.accel.masked_conv2d: _masked,
    torch.ops.accel.masked_conv2d_: _masked_in_place,
}
