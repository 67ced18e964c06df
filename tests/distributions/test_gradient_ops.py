"""The implicit derivatives as ops: accuracy on every CPU backend, limits, errors, and what torch asks of an op."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from accel.bench import distribution_oracles as oracle
from accel.kernels import elementwise
from accel.kernels.beta_gradient import beta_gradient
from accel.kernels.dispatch import use_backend
from accel.kernels.gamma_gradient import gamma_gradient
from accel.kernels.student_t_gradient import student_t_gradient
from accel.kernels.von_mises_gradient import von_mises_gradient

QUANTILES = (1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6)
ALL = {
    "gamma_gradient": (gamma_gradient, (2.0, 1.5)),
    "beta_gradient": (beta_gradient, (2.0, 0.5, 0.3)),
    "student_t_gradient": (student_t_gradient, (3.0, 1.5)),
    "von_mises_gradient": (von_mises_gradient, (2.0, 0.7)),
}
by_op = pytest.mark.parametrize("name", ALL)


@pytest.fixture(params=["core", "reference"])
def backend(request):
    if request.param == "reference":
        with use_backend("reference"):
            yield
    elif elementwise._core() is None:
        pytest.skip("the C core was not built")
    else:
        yield


def gamma_cases(dtype):
    """(alpha, z, dz/dalpha) where the sample is a normal number of the dtype."""
    for alpha in (1e-3, 0.05, 0.7, 1.0, 3.0, 9.99, 10.01, 40.0, 1e3, 1e5):
        alpha = float(dtype(alpha))
        for q in QUANTILES:
            z = float(dtype(special.gammaincinv(alpha, q) if q < 0.5 else special.gammainccinv(alpha, 1 - q)))
            if z >= np.finfo(dtype).tiny:
                yield alpha, z, float(oracle.gamma_derivative(alpha, z))


def check(derivative, cases, dtype, bar):
    *inputs, expected = (torch.tensor(column, dtype=torch.float64) for column in zip(*cases))
    found = derivative(*(column.to(dtype) for column in inputs))
    assert found.dtype == dtype
    error = (found.double() / expected - 1).abs()
    assert error.max() <= bar, f"{error.max():.1e} at {[column[error.argmax()].item() for column in inputs]}"


@pytest.mark.parametrize(("dtype", "bar"), [("float32", 1e-5), ("float64", 1e-10)])
def test_gamma_against_multiprecision(backend, dtype, bar):
    check(gamma_gradient, gamma_cases(getattr(np, dtype)), getattr(torch, dtype), bar)


def test_beta_against_multiprecision(backend):
    cases = []
    for a, b in (
        (1e-3, 1e-3),
        (1e-2, 30.0),
        (0.5, 0.5),
        (0.999, 0.01),
        (1.0, 1.0),
        (1.5, 1e4),
        (80.0, 3.0),
        (1e4, 1e5),
    ):
        for q in QUANTILES:
            x = special.betaincinv(a, b, q)
            if 1e-300 < x < 1 - 1e-12:
                by_a, by_b = oracle.beta_derivatives(a, b, x)
                scale, y = x * (1 - x), math.log(x) - math.log1p(-x)
                cases += [(a, b, y, float(by_a) / scale), (b, a, -y, -float(by_b) / scale)]
    check(beta_gradient, cases, torch.float64, 1e-8)


@pytest.mark.parametrize(("dtype", "bar"), [("float32", 1e-4), ("float64", 1e-8)])
def test_student_t_against_multiprecision(backend, dtype, bar):
    number = getattr(np, dtype)
    cases = []
    for df in (0.2, 1.0, 4.0, 99.9, 100.1, 1e3, 1e5):
        for q in (0.5001, 0.7, 0.9, 0.9999, 1 - 1e-6):
            nu, t = float(number(df)), float(number(stats.t.ppf(q, df)))
            cases += [(nu, t, float(oracle.student_derivative(nu, t)))]
    cases += [(nu, -t, -value) for nu, t, value in cases]
    check(student_t_gradient, cases, getattr(torch, dtype), bar)


@pytest.mark.parametrize(("dtype", "bar"), [("float32", 1e-4), ("float64", 1e-8)])
def test_von_mises_against_quadrature(backend, dtype, bar):
    number = getattr(np, dtype)
    cases = []
    for kappa in (1e-4, 1.0, 10.5, 49.0, 51.0, 1e5):
        for q in (1e-6, 0.3, 0.99):
            k, z = float(number(kappa)), float(number(stats.vonmises.ppf(q, kappa)))
            cases.append((k, z, float(oracle.von_mises_derivative(k, z))))
    check(von_mises_gradient, cases, getattr(torch, dtype), bar)


def test_closed_forms(backend):
    a = torch.tensor([0.01, 0.3, 1.0, 7.0, 1e3], dtype=torch.float64)
    y = torch.linspace(-3, 3, 5, dtype=torch.float64)
    x, one = y.sigmoid(), torch.ones_like(a)
    torch.testing.assert_close(beta_gradient(a, one, y) * x * (1 - x), -x * x.log() / a, rtol=1e-9, atol=0)
    in_b = -beta_gradient(one, a, -y) * x * (1 - x)  # of Beta(a, 1) in b is that of 1 - Beta(1, a)
    by_b = [float(oracle.beta_derivatives(float(p), 1.0, float(v))[1]) for p, v in zip(a, x)]
    torch.testing.assert_close(in_b, torch.tensor(by_b, dtype=torch.float64), rtol=1e-9, atol=0)
    z = torch.linspace(-3.1, 3.1, 5, dtype=torch.float64)
    torch.testing.assert_close(von_mises_gradient(torch.full_like(z, 1e-9), z), -z.sin(), rtol=1e-7, atol=1e-12)
    narrow = torch.full_like(z, 1e8)
    torch.testing.assert_close(von_mises_gradient(narrow, z * 1e-4), -z * 1e-4 / 2e8, rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 9.0, 12.0, 300.0])
def test_gamma_is_smooth_across_its_regions(backend, alpha):
    """Where the method changes: alpha = 10, z = alpha + 3.5 sqrt(alpha) + 3, z / alpha at the ends of the expansion."""
    edges = [(alpha, alpha + 3.5 * alpha**0.5 + 3)]
    edges += [(10.0, z) for z in (3.0, 10.0, 25.0)]
    edges += [(alpha, alpha * ratio) for ratio in (0.0954, 1.0, 3.7728) if alpha > 10]
    for a, z in edges:
        sides = torch.tensor([1 - 1e-11, 1 + 1e-11], dtype=torch.float64)
        for values in (gamma_gradient(a * sides, torch.tensor(z).double()), gamma_gradient(sides * 0 + a, z * sides)):
            assert abs(values[0] / values[1] - 1) < 3e-10


def test_limits_and_arguments_out_of_range(backend):
    nan, inf = math.nan, math.inf
    z = torch.tensor([0.0, 0.0, 1.0, 1.0, -1.0, nan], dtype=torch.float64)
    alpha = torch.tensor([0.5, 50.0, 0.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        gamma_gradient(alpha, z), torch.tensor([0, 0, nan, nan, nan, nan]).double(), equal_nan=True
    )
    tiny = torch.tensor([1e-38, 1e-30, 1e-3, 1e5, 1e30])
    assert gamma_gradient(tiny, torch.full_like(tiny, 1e-38)).isfinite().all()
    one = torch.ones(3, dtype=torch.float64)
    ends = beta_gradient(one, 2 * one, torch.tensor([inf, 0.0, nan]).double())
    assert ends[0] == pytest.approx(0.75) and ends[1].isfinite() and ends[2].isnan()  # (psi(3) - psi(1)) / 2
    assert beta_gradient(-one, one, one).isnan().all() and beta_gradient(one, 0 * one, one).isnan().all()
    assert student_t_gradient(torch.tensor([-1.0, nan, 3.0]), torch.tensor([1.0, 1.0, 0.0])).isnan().tolist() == [
        1,
        1,
        0,
    ]
    assert von_mises_gradient(torch.tensor([0.0, -1.0, 1.0]), torch.tensor([1.0, 1.0, nan])).isnan().all()


@by_op
def test_agrees_with_the_reference_on_awkward_sizes(name):
    derivative, point = ALL[name]
    generator = torch.Generator().manual_seed(1)
    for size in (0, 1, 31, 32, 33, 1025):
        inputs = [value * (0.5 + torch.rand(size, generator=generator)) for value in point]
        with use_backend("reference"):
            expected = derivative(*inputs)
        torch.testing.assert_close(derivative(*inputs), expected, rtol=1e-6, atol=0)


@by_op
def test_broadcasts_and_takes_strides(name):
    derivative, point = ALL[name]
    row, column = torch.full((1, 5), point[0]), torch.full((3, 1), point[-1])
    middle = [torch.tensor(value) for value in point[1:-1]]
    found = derivative(row, *middle, column.expand(3, 2)[:, :1])
    assert found.shape == (3, 5)
    torch.testing.assert_close(found, derivative(*(torch.tensor(value) for value in point)).expand(3, 5))


@by_op
def test_second_and_third_derivatives(name):
    derivative, point = ALL[name]
    inputs = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in point]
    assert torch.autograd.gradcheck(derivative, inputs)
    assert torch.autograd.gradgradcheck(derivative, inputs)
    if name == "gamma_gradient":  # on the line z = alpha the expansion's variable is 0; then the fraction
        for alpha, z in ((30.0, 30.0), (1.0, 20.0)):
            inputs = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (alpha, z)]
            assert torch.autograd.gradcheck(derivative, inputs)
    if name == "student_t_gradient":
        inputs = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (150.0, 2.5)]
        assert torch.autograd.gradcheck(derivative, inputs)


@by_op
def test_opcheck_vmap_and_compile(name):
    """Traced without gradients: the backward is the unrolled reference, thousands of nodes, minutes of tracing."""
    derivative, point = ALL[name]
    inputs = [torch.full((4, 3), value, dtype=torch.float64) for value in point]
    op = getattr(torch.ops.accel, name).default
    torch.library.opcheck(op, inputs)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    torch.library.opcheck(op, leaves, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    expected = derivative(*inputs)
    mapped = torch.func.vmap(derivative, in_dims=(None, *[1] * (len(point) - 1)))(inputs[0][:, 0], *inputs[1:])
    torch.testing.assert_close(mapped, expected.T)
    compiled = torch.compile(derivative, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), expected)


@by_op
def test_errors_name_the_argument(name):
    derivative, point = ALL[name]
    single, double = (
        [torch.full((2,), value, dtype=kind) for value in point] for kind in (torch.float32, torch.float64)
    )
    with pytest.raises(TypeError, match=f"{name}.*float64.*convert"):
        derivative(single[0], *double[1:])
    with pytest.raises(TypeError, match="int64"):
        derivative(*(tensor.long() for tensor in single))
    with pytest.raises(TypeError, match="float"):
        derivative(*point)
    with pytest.raises(ValueError, match="broadcast"):
        derivative(torch.ones(3), *single[1:])
    with pytest.raises(ValueError, match="one device"):
        derivative(single[0].to("meta"), *single[1:])
