"""Registration of elementwise float ops: their checks, dispatch, fake, vmap and autograd, which are all alike.

The backend is the one of `accel.kernels.dispatch`, except that here the C core also takes float64.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from accel.kernels.dispatch import forced_backend, implementation

DTYPES = (torch.float32, torch.float64)


def register(name: str, arguments: str) -> Callable[..., Tensor]:
    """Register `accel::<name>` on tensors of one shape, dtype and device; its derivatives are those of the reference.

    The backward differentiates `accel.kernels.reference.<name>`, plain torch: derivatives of every order exist.

    Args:
        name: of the op, and of the reference's module and function.
        arguments: the names of the tensors, separated by commas.

    Returns:
        A function that runs the op, to be called through `call`.
    """
    names = arguments.split(", ")
    reference = getattr(importlib.import_module(f"accel.kernels.reference.{name}"), name)
    schema = f"({', '.join(f'Tensor {argument}' for argument in names)}) -> Tensor"
    op = torch.library.custom_op(f"accel::{name}", functools.partial(_run, name), mutates_args=(), schema=schema)
    op.register_fake(lambda *inputs: torch.empty_like(inputs[0], memory_format=torch.contiguous_format))
    op.register_vmap(lambda info, dims, *inputs: (op(*_lift(info.batch_size, dims, inputs)), 0))

    def setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def backward(ctx, grad):
        return torch.func.vjp(reference, *ctx.saved_tensors)[1](grad)

    op.register_autograd(backward, setup_context=setup)

    class Transformable(torch.autograd.Function):
        """The op for torch.func transforms, which refuse the autograd of a custom op."""

        generate_vmap_rule = True
        setup_context = staticmethod(setup)

        @staticmethod
        def forward(*inputs):
            return op(*inputs)

    Transformable.backward = staticmethod(backward)

    def run(*inputs: Tensor) -> Tensor:
        compiling = torch.compiler.is_compiling()
        transformed = not compiling and torch._C._functorch.peek_interpreter_stack() is not None
        return Transformable.apply(*inputs) if transformed else op(*inputs)

    return run


def call(op: Callable[..., Tensor], name: str, **inputs: Tensor) -> Tensor:
    """Check and broadcast the inputs, then run the op.

    Raises:
        TypeError: not tensors of one dtype, float32 or float64.
        ValueError: on several devices, or of shapes that do not broadcast.
    """
    found = {argument: getattr(tensor, "dtype", type(tensor)) for argument, tensor in inputs.items()}
    if len(set(found.values())) != 1 or not set(found.values()) <= set(DTYPES):
        raise TypeError(f"{name}: expected tensors that are all float32 or all float64, got {found}: convert them")
    devices = {argument: str(tensor.device) for argument, tensor in inputs.items()}
    if len(set(devices.values())) != 1:
        raise ValueError(f"{name}: expected tensors on one device, got {devices}: move them with .to()")
    try:
        tensors = torch.broadcast_tensors(*inputs.values())
    except RuntimeError:
        shapes = {argument: tuple(tensor.shape) for argument, tensor in inputs.items()}
        raise ValueError(f"{name}: shapes must broadcast against each other, got {shapes}") from None
    return op(*(tensor.contiguous() for tensor in tensors))


def _run(name: str, *inputs: Tensor) -> Tensor:
    core = _core() if inputs[0].device.type == "cpu" and forced_backend() in (None, "cpu") else None
    function = getattr(core, name) if core else implementation(name, inputs[0])
    return function(*inputs)


@functools.cache
def _core() -> ModuleType | None:
    """The binding of the C core, or None where it was not built."""
    try:
        return importlib.import_module("accel.kernels.cpu.special")
    except ImportError:
        warnings.warn(
            "the C core of accel's implicit gradients was not built: the slower PyTorch reference runs instead "
            "(install a C compiler and reinstall to have it)",
            RuntimeWarning,
            stacklevel=4,
        )
        return None


def _lift(size: int, dims: tuple[int | None, ...], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The inputs with the mapped dimension in front, those without one repeated."""
    lifted = [
        tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(inputs, dims)
    ]
    return [tensor.contiguous() for tensor in lifted]
