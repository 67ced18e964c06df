"""ponder_cost on every backend."""

from __future__ import annotations

import math

import pytest
import torch

from accel.ops import ponder_cost

SHAPES = [(5,), (1, 1, 1), (3, 7, 5), (2, 61, 67), (0, 4, 4), (2, 0, 3)]


def maps(shape, dtype=torch.float32):
    """rho between 2 and 20 and units, as a stage makes them."""
    g = torch.Generator().manual_seed(0)
    units = torch.randint(1, 20, shape, generator=g, dtype=torch.int32)
    return (1 + units + torch.rand(shape, generator=g)).to(dtype), units


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact_to_the_last_bit(backend, needs, device, shape):
    needs("ponder_cost", "ponder_cost")
    ponder, units = maps(shape)
    rho, executed = ponder_cost(ponder.to(device), units.to(device))
    images = [(ponder[n].flatten().tolist(), units[n].flatten().tolist()) for n in range(shape[0])]
    exact = [math.fsum(image) for image, _ in images]
    assert torch.equal(rho.cpu(), torch.tensor(exact, dtype=torch.float32))
    assert executed.dtype is torch.int64
    assert executed.tolist() == [sum(image) for _, image in images]


def test_the_order_of_the_positions_cannot_show(backend, needs, device):
    needs("ponder_cost", "ponder_cost")
    ponder, units = (t.to(device) for t in maps((1, 97, 89)))
    order = torch.randperm(97 * 89, generator=torch.Generator().manual_seed(1)).to(device)
    shuffled = ponder.flatten()[order].view(ponder.shape)
    assert torch.equal(ponder_cost(ponder, units)[0], ponder_cost(shuffled, units)[0])


def test_every_position_gets_its_image_gradient(backend, needs, device):
    needs("ponder_cost", "ponder_cost")
    ponder, units = (t.to(device) for t in maps((3, 7, 5)))
    ponder.requires_grad_()
    rho, _ = ponder_cost(ponder, units)
    (rho * torch.tensor([1.0, -2.0, 0.5], device=device)).sum().backward()
    assert ponder.grad.cpu().equal(torch.tensor([1.0, -2.0, 0.5])[:, None, None].expand(3, 7, 5))


def test_opcheck_gradcheck_and_compile():
    ponder, units = maps((3, 7, 5))
    results = torch.library.opcheck(torch.ops.accel.ponder_cost.default, (ponder.requires_grad_(), units))
    assert set(results.values()) == {"SUCCESS"}
    exact = maps((2, 3, 2), torch.float64)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda p: ponder_cost(p, units[:2, :3, :2].contiguous())[0], exact)
    compiled = torch.compile(lambda p, u: ponder_cost(p, u)[0] / 35, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ponder, units), ponder_cost(ponder, units)[0] / 35)


@pytest.mark.parametrize(
    ("ponder", "units", "error", "message"),
    [
        (torch.zeros(2, 3, 3), torch.zeros(2, 3, 3), TypeError, "units int32"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32), ValueError, r"ponder must be \[N\]"),
        (torch.zeros(2, 3, 3), torch.zeros(2, 3, 4, dtype=torch.int32), ValueError, "units must have shape"),
    ],
)
def test_bad_arguments_are_named(ponder, units, error, message):
    with pytest.raises(error, match=message):
        ponder_cost(ponder, units)
