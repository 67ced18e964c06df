"""interpolate and its adjoint on every backend."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.positions import PositionSet
from accel.ops import interpolate, perforated_conv2d

SIZES = [(1, 1), (7, 5), (63, 1), (13, 17)]


def rows_for(positions: PositionSet, n: int = 2, c: int = 5, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n * len(positions), c, generator=torch.Generator().manual_seed(0), dtype=dtype)


def matrix(positions: PositionSet) -> torch.Tensor:
    """float64 [H * W, P]: interpolation as a matrix of ones and zeros."""
    return torch.eye(len(positions), dtype=torch.float64)[positions.nearest.long()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_every_position_holds_its_stand_in(backend, device, random_set, size, keep):
    positions = random_set(*size, keep)
    rows = rows_for(positions)
    got = interpolate(rows.to(device), positions.to(device))
    expected = (matrix(positions).float() @ rows.view(2, -1, 5)).transpose(1, 2).reshape(2, 5, *size)
    assert torch.equal(got.cpu(), expected)  # a copy: exact
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_the_gradient_is_the_adjoint(backend, device, random_set, assert_close, size, keep):
    positions = random_set(*size, keep)
    rows = rows_for(positions).to(device).requires_grad_()
    upstream = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(1)).to(device)
    (got,) = torch.autograd.grad(interpolate(rows, positions.to(device)), rows, upstream)
    pixels = upstream.cpu().double().flatten(2).transpose(1, 2)
    assert_close(got, (matrix(positions).T @ pixels).flatten(0, 1), 1e-6)


def test_the_adjoint_is_deterministic(backend, device, random_set):
    positions = random_set(31, 29, 0.1).to(device)
    grad = torch.randn(2, 8, 31, 29, generator=torch.Generator().manual_seed(1)).to(device)
    sums = [torch.ops.accel.interpolate_backward(grad, positions.nearest, len(positions)) for _ in range(3)]
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])


def test_empty_batch_and_no_stand_in_used_twice(backend, device):
    positions = PositionSet.full(3, 4).to(device)
    assert interpolate(torch.zeros(0, 5, device=device), positions).shape == (0, 5, 3, 4)
    rows = rows_for(PositionSet.full(3, 4)).to(device)
    assert torch.equal(interpolate(rows, positions).permute(0, 2, 3, 1).reshape(24, 5), rows)


def test_a_stand_in_that_nobody_uses_gets_no_gradient(backend, device):
    """A set may hold a position that stands in for nothing: `segments` of length zero."""
    nearest = torch.zeros(6, dtype=torch.int32)
    positions = PositionSet(torch.tensor([0, 5], dtype=torch.int32), nearest, 2, 3).to(device)
    rows = torch.ones(2, 4, device=device, requires_grad=True)
    interpolate(rows, positions).sum().backward()
    assert rows.grad.tolist() == [[6.0] * 4, [0.0] * 4]


def test_pointwise_layers_commute_with_interpolation(backend, device, random_set, assert_close):
    """1x1 convolution and ReLU before filling in equal the same after it: what compact chains stand on."""
    positions = random_set(7, 5, 0.4).to(device)
    rows = rows_for(positions).to(device)
    weight = torch.randn(3, 5, 1, 1, generator=torch.Generator().manual_seed(2)).to(device)
    full = PositionSet.full(7, 5).to(device)
    after = perforated_conv2d(interpolate(rows, positions), weight, None, full, activation="relu")
    before = interpolate((rows @ weight[:, :, 0, 0].T).relu(), positions)
    assert_close(after, before)


def test_gradcheck_to_the_second_order(random_set):
    positions = random_set(4, 3, 0.5)
    rows = rows_for(positions, c=2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: interpolate(rows, positions), rows)
    assert torch.autograd.gradgradcheck(lambda rows: interpolate(rows, positions).square(), rows)


def test_opcheck(random_set):
    positions = random_set(7, 5, 0.5)
    rows = rows_for(positions).requires_grad_()
    arguments = (rows, positions.nearest, 2, (7, 5))
    results = torch.library.opcheck(torch.ops.accel.interpolate.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    grad = torch.randn(2, 5, 7, 5, requires_grad=True)
    arguments = (grad, positions.nearest, len(positions))
    results = torch.library.opcheck(torch.ops.accel.interpolate_backward.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_as_one_graph(random_set):
    positions = random_set(7, 5, 0.5)
    compiled = torch.compile(lambda rows: interpolate(rows, positions) * 2, fullgraph=True, backend="aot_eager")
    for n in (2, 3):
        rows = rows_for(positions, n).requires_grad_()
        assert torch.equal(compiled(rows), interpolate(rows, positions) * 2)
        compiled(rows).sum().backward()
        assert rows.grad.sum().item() == 2 * n * 5 * 35


def test_bad_arguments_are_named(random_set):
    positions = random_set(7, 5, 0.5)
    with pytest.raises(ValueError, match=r"rows must be \[N \* 18, C\]"):
        interpolate(torch.zeros(20, 4), positions)
    with pytest.raises(ValueError, match=r"rows must be \[N \* 18, C\]"):
        interpolate(torch.zeros(36), positions)
    with pytest.raises(ValueError, match="move positions with"):
        interpolate(torch.zeros(36, 4, device="meta"), positions)
