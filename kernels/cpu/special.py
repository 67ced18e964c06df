"""Binding of the C core of the implicit gradients: float32 or float64 CPU tensors of one shape in, a fresh one out.

Importing this module raises ImportError where the extension was not built.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from accel.kernels.cpu import _special, record
from accel.kernels.reference import beta_gradient as beta_reference
from accel.kernels.reference import gamma_gradient as gamma_reference
from accel.kernels.reference import von_mises_gradient as von_mises_reference
from accel.kernels.reference.special import bessel_gap, node_table

record.check(_special)


def gamma_gradient(alpha: Tensor, z: Tensor) -> Tensor:
    """As `accel.kernels.reference.gamma_gradient`."""
    return _run(_special.gamma_gradient, _gamma_table(), alpha, z)


def beta_gradient(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """As `accel.kernels.reference.beta_gradient`."""
    return _run(_special.beta_gradient, node_table(beta_reference.NODES), a, b, y)


def von_mises_gradient(kappa: Tensor, z: Tensor) -> Tensor:
    """As `accel.kernels.reference.von_mises_gradient`."""
    gap = bessel_gap(kappa.double()).to(z.dtype)
    return _run(_special.von_mises_gradient, node_table(von_mises_reference.NODES), kappa, gap, z)


def student_t_gradient(df: Tensor, t: Tensor) -> Tensor:
    """As `accel.kernels.reference.student_t_gradient`."""
    return _run(_special.student_t_gradient, node_table(beta_reference.NODES), df, t)


@functools.cache
def _gamma_table() -> Tensor:
    """[UNIFORM_FROM, *UNIFORM_BETWEEN, the rows of the expansion, each filled up to DEGREE + 1], float64."""
    width = gamma_reference.DEGREE + 1
    rows = [value for row in gamma_reference.uniform_table() for value in (*row, *[0.0] * (width - len(row)))]
    values = [gamma_reference.UNIFORM_FROM, *gamma_reference.UNIFORM_BETWEEN, *rows]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _run(function: Callable, table: Tensor, *inputs: Tensor) -> Tensor:
    inputs = tuple(tensor.contiguous() for tensor in inputs)
    out = torch.empty_like(inputs[0])
    first, second, third = [tensor.data_ptr() for tensor in inputs] + [0] * (3 - len(inputs))
    function(
        first=first, second=second, third=third, out=out.data_ptr(), table=table.data_ptr(), size=out.numel(),
        is_double=out.dtype is torch.float64, threads=torch.get_num_threads(),
    )  # fmt: skip
    return out
