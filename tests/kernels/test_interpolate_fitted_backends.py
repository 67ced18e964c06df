"""Fitted interpolation on every backend: weighted sums of computed rows, and their gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from accel import ops
from accel.kernels.reference import interpolate as reference
from accel.tests.kernels.named import ACTIVATIONS

SHAPES = {
    "one pixel": {"size": (1, 1), "keep": 1.0, "channels": 3},
    "nothing skipped": {"size": (4, 5), "keep": 1.0, "channels": 16},
    "one channel": {"size": (7, 5), "keep": 0.5, "channels": 1},
    "3 channels, one tap": {"size": (9, 4), "keep": 0.3, "channels": 3, "taps": 1},
    "16 channels": {"size": (13, 17), "keep": 0.5, "channels": 16},
    "17 channels, empty classes": {"size": (13, 11), "keep": 0.4, "channels": 17, "ends": (0, 0, 3, 3, 86, 86)},
    "64 channels": {"size": (10, 12), "keep": 0.25, "channels": 64, "classes": 7},
    "many panels": {"size": (6, 7), "keep": 0.6, "channels": 163},
    "one row for all": {"size": (9, 8), "keep": 0.01, "channels": 5, "classes": 1},
    "two bands of an image": {"size": (64, 64), "keep": 0.5, "channels": 40, "taps": 3},
}


class Problem:
    """Random lists in random order, and their arguments as the op takes them."""

    def __init__(self, size, keep, channels, taps=12, classes=3, ends=None, batch=2):
        g = torch.Generator().manual_seed(0)
        pixels = size[0] * size[1]
        count = max(1, round(keep * pixels))
        order = torch.randperm(pixels, generator=g).to(torch.int32)
        skipped = order[count:].clone()
        if ends is None:
            ends = [len(skipped) * k // classes for k in range(1, classes + 1)]
        assert ends[-1] == len(skipped)
        self.batch, self.size = batch, size
        self.rows = torch.randn(batch * count, channels, generator=g)
        self.lists = (
            order[:count].clone(),
            skipped,
            torch.randint(count, (len(skipped), taps), generator=g, dtype=torch.int32),
            torch.tensor([0, *ends], dtype=torch.int32),
        )
        self.weights = torch.randn(len(ends), taps, channels, generator=g)
        self.constant = torch.randn(len(ends), channels, generator=g)
        self.grad = torch.randn(batch, channels, *size, generator=g)
        self.residual = torch.randn(batch, channels, *size, generator=g)

    def arguments(self, activation="none", device="cpu"):
        tensors = (self.rows, *self.lists, self.weights, self.constant)
        return (*(tensor.to(device) for tensor in tensors), self.batch, self.size, activation)

    def expected(self, activation="none", residual=0.0):
        """By definition, a position at a time, in float64; [N, C, H, W]."""
        positions, skipped, neighbors, starts = self.lists
        rows = self.rows.double().view(self.batch, len(positions), -1)
        out = torch.full((self.batch, self.size[0] * self.size[1], rows.shape[2]), float("nan"), dtype=torch.float64)
        for row, position in enumerate(positions):
            out[:, position] = rows[:, row]
        for k, (start, end) in enumerate(itertools.pairwise(starts.tolist())):
            for f in range(start, end):
                taken = rows[:, neighbors[f].long()]
                out[:, skipped[f]] = (taken * self.weights[k].double()).sum(1) + self.constant[k].double()
        return ACTIVATIONS[activation](out.transpose(1, 2).reshape(self.grad.shape) + residual)

    def gradient_arguments(self, device="cpu"):
        return tuple(tensor.to(device) for tensor in (self.grad, self.rows, *self.lists, self.weights))


def fitted(problem, activation="none", device="cpu"):
    return torch.ops.accel.interpolate_fitted(*problem.arguments(activation, device))


@pytest.fixture(autouse=True)
def has_op(request):
    if "backend" in request.fixturenames:
        request.getfixturevalue("needs")("interpolate_fitted", "interpolate")


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_weighted_sum_of_the_neighbours(backend, device, assert_close, name):
    problem = Problem(**SHAPES[name])
    got = fitted(problem, device=device)
    assert_close(got, problem.expected(), 1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_comes_last_at_computed_and_skipped_positions(backend, device, assert_close, activation):
    problem = Problem((9, 8), 0.5, 21)
    assert_close(fitted(problem, activation, device), problem.expected(activation), 1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_a_residual_is_added_before_the_activation(backend, device, assert_close, activation, form):
    problem = Problem((9, 8), 0.5, 21)
    residual = problem.residual.contiguous(memory_format=form).to(device)
    got = torch.ops.accel.interpolate_fitted(*problem.arguments(activation, device), residual)
    assert_close(got, problem.expected(activation, problem.residual.double()), 1e-6)


def test_computed_positions_hold_their_rows_exactly(backend, device):
    problem = Problem((13, 17), 0.5, 33)
    positions = problem.lists[0].long()
    got = fitted(problem, device=device).cpu().flatten(2)[:, :, positions]
    assert torch.equal(got.transpose(1, 2).flatten(0, 1), problem.rows)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_the_definition(backend, device, assert_close, name):
    problem = Problem(**SHAPES[name])
    got = torch.ops.accel.interpolate_fitted_backward(*problem.gradient_arguments(device))
    leaves = [tensor.requires_grad_() for tensor in (problem.rows, problem.weights, problem.constant)]
    expected = problem.expected()
    wanted = torch.autograd.grad(expected, leaves, problem.grad.double(), allow_unused=True, materialize_grads=True)
    for mine, theirs in zip(got, wanted):
        assert_close(mine, theirs)


def test_a_row_that_all_skipped_positions_read(backend, device, assert_close):
    """Its list of readers is far longer than one call of a kernel takes."""
    problem = Problem((25, 24), 0.001, 20, taps=2)
    assert len(problem.lists[0]) == 1
    wanted = reference.interpolate_fitted_backward(*(t.double() if t.is_floating_point() else t
                                                     for t in problem.gradient_arguments()))  # fmt: skip
    got = torch.ops.accel.interpolate_fitted_backward(*problem.gradient_arguments(device))
    for mine, theirs in zip(got, wanted):
        assert_close(mine, theirs)


def test_gradients_reach_rows_weights_and_constant_through_a_relu(backend, device, assert_close):
    problem = Problem((7, 6), 0.5, 9)
    tensors = (problem.rows, problem.weights, problem.constant, problem.residual)
    *leaves, residual = [t.to(device).requires_grad_() for t in tensors]
    lists, sizes = [t.to(device) for t in problem.lists], (problem.batch, problem.size)
    out = torch.ops.accel.interpolate_fitted(leaves[0], *lists, *leaves[1:], *sizes, "relu", residual)
    *got, d_residual = torch.autograd.grad(out, (*leaves, residual), problem.grad.to(device))
    masked = problem.grad * (problem.expected(residual=problem.residual.double()) > 0)
    assert torch.equal(d_residual.cpu(), masked)
    wanted = reference.interpolate_fitted_backward(
        masked.double(), problem.rows.double(), *problem.lists, problem.weights.double()
    )
    for mine, theirs in zip(got, wanted):
        assert_close(mine, theirs)


def test_a_gradient_in_any_memory_format(backend, device):
    problem = Problem((7, 6), 0.5, 9)
    grad, *rest = problem.gradient_arguments(device)
    got = torch.ops.accel.interpolate_fitted_backward(grad, *rest)
    for other in (
        grad.contiguous(memory_format=torch.channels_last),
        grad.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        for mine, theirs in zip(torch.ops.accel.interpolate_fitted_backward(other, *rest), got):
            assert torch.equal(mine, theirs)


def test_the_result_does_not_depend_on_the_threads(backend, device):
    if backend == "triton":
        pytest.skip("its kernels do not run in the host's threads, and this size takes the interpreter minutes")
    problem = Problem((64, 64), 0.5, 40)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            gradients = torch.ops.accel.interpolate_fitted_backward(*problem.gradient_arguments(device))
            found.append((fitted(problem, "relu", device), *gradients))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(other, found[0]))


def test_an_empty_batch(backend, device):
    problem = Problem((5, 4), 0.5, 6, batch=0)
    assert fitted(problem, device=device).shape == (0, 6, 5, 4)
    gradients = torch.ops.accel.interpolate_fitted_backward(*problem.gradient_arguments(device))
    assert [g.shape for g in gradients] == [problem.rows.shape, problem.weights.shape, problem.constant.shape]
    assert not gradients[1].any() and not gradients[2].any()


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_every_instruction_set(isa, assert_close):
    engine = pytest.importorskip("accel.kernels.cpu._engine", reason="the C engine was not built", exc_type=ImportError)
    if isa not in engine.isas():
        pytest.skip(f"this machine cannot run {isa}")
    before = engine.isa()
    engine.set_isa(isa)
    try:
        for shape in SHAPES.values():
            problem = Problem(**shape)
            with ops.use_backend("cpu"):
                assert_close(fitted(problem, "relu"), problem.expected("relu"), 1e-6)
                got = torch.ops.accel.interpolate_fitted_backward(*problem.gradient_arguments())
            wide = [t.double() if t.is_floating_point() else t for t in problem.gradient_arguments()]
            for mine, theirs in zip(got, reference.interpolate_fitted_backward(*wide)):
                assert_close(mine, theirs)
    finally:
        engine.set_isa(before)


def test_the_engine_refuses_lists_that_lead_outside():
    pytest.importorskip("accel.kernels.cpu.binding", reason="the C engine was not built", exc_type=ImportError)
    for place, value in ((0, 42), (1, -1), (2, 21), (3, 22)):
        problem = Problem((7, 6), 0.5, 4)
        problem.lists[place].flatten()[-1] = value
        with ops.use_backend("cpu"), pytest.raises(ValueError, match=r"must hold 0 to \d+, got"):
            fitted(problem)
