"""Which implementation of an op runs: the readable reference, the C engine, or the Triton kernels.

| tensor                     | default backend                                              |
|----------------------------|--------------------------------------------------------------|
| CPU, float32 or a mask     | `cpu` (C engine); `reference` where it was not built, said once |
| CPU, any other dtype       | `reference`                                                  |
| CUDA                       | `triton`                                                     |
| any other device           | `reference`                                                  |

An op that a backend does not have runs on the reference, unless that backend was forced by `use_backend`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.library import CustomOpDef
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

BACKENDS = ("reference", "cpu", "triton")

_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("accel_backend", default=None)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force the backend of every op called inside the `with` block (in this thread or task).

    Args:
        name: "reference", "cpu" (the C engine, float32 CPU tensors) or "triton" (CUDA tensors; CPU tensors in Triton's
            interpreter).

    Raises:
        ValueError: the name is not a backend.
        RuntimeError: the backend is not installed here; inside the block, also when an op is called on a tensor that
            the backend cannot take, or that the backend does not have.
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend: {name!r} is not a backend; choose one of {', '.join(BACKENDS)}")
    problem = _missing(name)
    if problem:
        raise RuntimeError(f"use_backend({name!r}): {problem}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def available_backends() -> list[str]:
    """The backends that can run in this process, in the order of `BACKENDS`."""
    return [name for name in BACKENDS if not _missing(name)]


def forced_backend() -> str | None:
    """The backend that `use_backend` forces here, or None."""
    return _forced.get()


def active_backend(tensor: Tensor) -> str:
    """The backend that an op called on `tensor` would use now: "reference", "cpu" or "triton"."""
    return _forced.get() or _default_backend(tensor.device.type, tensor.dtype)


def implementation(op: str, tensor: Tensor, module: str | None = None) -> Callable:
    """The function that computes `op` on `tensor`; `module` is the file it lives in, where the names differ."""
    module = module or op
    forced = _forced.get()
    if forced is not None:
        return _forced_implementation(op, tensor, module, forced)
    backend = _default_backend(tensor.device.type, tensor.dtype)
    return find(backend, op, module) or find("reference", op, module)


@functools.cache
def find(backend: str, op: str, module: str) -> Callable | None:
    """A backend's function for `op`, or None where it has none; `module` is the file it lives in."""
    if backend == "cpu":
        return getattr(_engine(), op, None)
    path = f"accel.kernels.{backend}.{module}"
    return getattr(importlib.import_module(path), op, None) if importlib.util.find_spec(path) else None


def define(
    op: str, schema: str, fake: Callable, *, module: str | None = None, of: int = 0, mutates: Sequence[str] = ()
) -> CustomOpDef:
    """Register `accel::<op>`, which every backend may implement in a function of that name.

    Args:
        schema: of its arguments, as torch writes it; fake gives outputs of the right shapes for them.
        module: the file that the function lives in, where the names differ.
        of: the place of the argument whose device and dtype choose the backend; of a list, those of its first.
        mutates: the arguments that it writes to.
    """

    @torch.library.custom_op(f"accel::{op}", mutates_args=mutates, schema=schema)
    def run(*arguments):
        known_by = arguments[of]
        return implementation(op, known_by if isinstance(known_by, Tensor) else known_by[0], module)(*arguments)

    run.register_fake(fake)
    return run


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether an op may skip torch's dispatcher: plain eager inference, where nothing watches or transforms the calls.

    The dispatcher costs about 10 microseconds a call. Compilers, tracers, dispatch and function modes (the FLOP
    counter among them), functorch transforms, tensor subclasses and autograd all need to see the op.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or (torch._C._len_torch_function_stack() and not _only_a_default_device())
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return False
    grad = torch.is_grad_enabled()
    for tensor in tensors:  # a loop: any() and all() would double the time of this function
        if tensor is not None and (type(tensor) not in _PLAIN or (grad and tensor.requires_grad)):
            return False
    return True


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd would record an op on these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _only_a_default_device() -> bool:
    """Whether the function modes are that of torch.set_default_device alone, which watches no op."""
    return all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())


_PLAIN = (Tensor, torch.nn.Parameter)
_ENGINE_DTYPES = (torch.float32, torch.bool)  # bool: masks


def _forced_implementation(op: str, tensor: Tensor, module: str, backend: str) -> Callable:
    where = f"{op} on a {tensor.dtype} tensor of device {tensor.device}"
    if backend == "cpu" and (tensor.device.type != "cpu" or tensor.dtype not in _ENGINE_DTYPES):
        raise RuntimeError(
            f"the C engine takes float32 CPU tensors, asked for {where}: convert it or leave use_backend"
        )
    if backend == "triton" and not tensor.is_cuda and not _triton_takes_cpu():
        raise RuntimeError(
            f"the Triton kernels take CUDA tensors, asked for {where}: set TRITON_INTERPRET=1 to interpret"
        )
    found = find(backend, op, module)
    if found is None:
        raise RuntimeError(f"the {backend} backend does not have {op}: leave use_backend to run the reference")
    return found


@functools.cache
def _engine() -> ModuleType | None:
    """The binding of the C engine, or None where it was not built."""
    try:
        return importlib.import_module("accel.kernels.cpu.binding")
    except ImportError:
        return None


@functools.cache
def _default_backend(device: str, dtype: torch.dtype) -> str:
    """The table at the top; cached, so that a missing engine is said once."""
    if device == "cuda":
        return "triton"
    if device != "cpu" or dtype not in _ENGINE_DTYPES:
        return "reference"
    if _engine() is not None:
        return "cpu"
    warnings.warn(
        "the C engine of accel was not built: the slower PyTorch reference runs instead "
        "(install a C compiler and reinstall to have it)",
        RuntimeWarning,
        stacklevel=4,
    )
    return "reference"


def _missing(name: str) -> str | None:
    """Why a backend cannot run here, or None."""
    if name == "cpu" and _engine() is None:
        return "the C engine was not built; install a C compiler and reinstall"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton (Linux)"
    return None


def _triton_takes_cpu() -> bool:
    """Whether Triton kernels can be launched on CPU tensors: in the interpreter, or under a driver a test installed."""
    import triton

    if triton.knobs.runtime.interpret:
        return True
    try:  # Triton 3.4 looks for a driver when something is asked of it
        found = getattr(triton.runtime.driver.active, "get_current_target", None)
        return found is not None and not torch.cuda.is_available()
    except RuntimeError:  # no driver at all
        return False
