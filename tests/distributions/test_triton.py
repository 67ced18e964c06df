"""The Triton kernels of the Gamma and von Mises derivatives: in the checked interpreter, and compiled for four GPUs."""

from __future__ import annotations

import math

import pytest
import torch

from accel.kernels.dispatch import use_backend
from accel.kernels.gamma_gradient import gamma_gradient
from accel.kernels.von_mises_gradient import von_mises_gradient

pytest.importorskip("triton", reason="triton is not installed")

# Imported here: a kernel that is decorated inside `interpret()` would stay an interpreted one.
import accel.kernels.triton.gamma_gradient
import accel.kernels.triton.von_mises_gradient  # noqa: F401
from accel.profiling.machine_code import read
from accel.profiling.pretend_gpu import TARGETS, pretend_gpu
from accel.tests.triton_tools.interp_switch import interpret


def gamma_inputs(dtype):
    """Every region, its edges, and arguments out of range: 300 elements, so that the last block is partly empty."""
    alpha = torch.logspace(-3, 5, 290, dtype=torch.float64)
    z = torch._standard_gamma(alpha, generator=torch.Generator().manual_seed(0)) + 1e-30
    z[::7] *= 3
    alpha = torch.cat([alpha, torch.tensor([1.0, 20.0, 20.0, 0.0, -1.0, 1.0, math.nan, 5.0, 30.0, 2.0])])
    z = torch.cat([z, torch.tensor([0.0, 0.0, 20.0, 1.0, 1.0, -1.0, 1.0, math.nan, 1e-200, 90.0])])
    return alpha.to(dtype), z.to(dtype)


def von_mises_inputs(dtype):
    kappa = torch.logspace(-4, 5, 298, dtype=torch.float64)
    z = torch.linspace(-math.pi, math.pi, 298, dtype=torch.float64) / (1 + kappa).sqrt()
    return torch.cat([kappa, torch.tensor([0.0, 1.0])]).to(dtype), torch.cat([z, torch.tensor([1.0, math.nan])]).to(
        dtype
    )


CASES = {"gamma_gradient": (gamma_gradient, gamma_inputs), "von_mises_gradient": (von_mises_gradient, von_mises_inputs)}
by_op = pytest.mark.parametrize("name", CASES)


@by_op
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-7)])
def test_agrees_with_the_reference(name, dtype, tolerance):
    derivative, inputs = CASES[name]
    inputs = inputs(dtype)
    with use_backend("reference"):
        expected = derivative(*inputs)
    with interpret(), use_backend("triton"):
        found = derivative(*inputs)
        assert derivative(*(tensor[:0] for tensor in inputs)).shape == (0,)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0, equal_nan=True)


@by_op
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_spills(name, target):
    derivative, inputs = CASES[name]
    with pretend_gpu(target) as record, use_backend("triton"):
        derivative(*inputs(torch.float32))
    assert record.kernels, "nothing was compiled"
    for kernel in record.kernels:
        code = read(kernel)
        assert code.spills == 0 and code.blocks >= 1, f"{kernel.name} spills"
