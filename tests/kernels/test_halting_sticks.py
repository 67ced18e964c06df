"""The stick-breaking rule of halting_step on every backend: shares, cost, gradients; maps that nobody sums."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.reference import halting_step as reference
from accel.ops import halting_step, halting_step_
from accel.tests.kernels.test_halting_step import SHAPES, UNITS, moved, state_of

EPS = 0.01


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shapes(request):
    return request.param


def by_rule(h, x, remainder, ponder, units, output, last):
    """(remainder, ponder, units, output, weight) of the rule, by torch."""
    weight = remainder if last else h * remainder
    left = remainder - weight
    spread = weight[:, None] if weight.dim() == 3 else weight.view(-1, *[1] * (x.dim() - 1))
    return left, ponder + left, units + (remainder > 0), output + spread * x, weight


@pytest.mark.parametrize("last", [False, True])
def test_one_step_is_the_rule(backend, needs, device, assert_close, shapes, last):
    needs("halting_step", "halting_step")
    state = state_of(*shapes)
    expected = by_rule(*(t.double() if t.is_floating_point() else t for t in state), last)
    for value, right in zip(halting_step(*moved(state, device), EPS, last, sticks=True), expected):
        assert_close(value, right, 1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_in_place_is_the_same_step(backend, needs, device, shapes, last):
    needs("halting_step_", "halting_step")
    h, x, *old = moved(state_of(*shapes), device)
    expected = halting_step(h, x, *old, EPS, last, sticks=True)
    running = halting_step_(h, x, *old, EPS, last, sticks=True)
    for new, right in zip(old, expected):
        assert torch.equal(new, right)
    assert running.dtype is torch.bool and torch.equal(running, expected[0] > 0)


def test_scores_of_0_and_1_are_decisions(backend, needs, device):
    """The cost is the number of units that ran, to the bit, and the weights are one-hot."""
    needs("halting_step", "halting_step")
    scores = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], device=device)
    remainder, units = torch.ones(3, device=device), torch.zeros(3, dtype=torch.int32, device=device)
    ponder, output, weights = torch.ones(3, device=device), torch.zeros(3, 1, device=device), []
    for k in range(4):
        x = torch.full((3, 1), float(k + 1), device=device)
        h = None if k == 3 else scores[:, k].contiguous()
        remainder, ponder, units, output, weight = halting_step(
            h, x, remainder, ponder, units, output, EPS, k == 3, sticks=True
        )
        weights.append(weight)
    assert units.tolist() == [4, 1, 2] and ponder.tolist() == [4, 1, 2] and output[:, 0].tolist() == [4, 1, 2]
    assert torch.stack(weights, 1).tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("sticks", [False, True])
@pytest.mark.parametrize("name", ["SACT", "ACT, vectors"])
def test_a_map_without_channels_steps_the_state_alone(backend, needs, device, sticks, name):
    needs("halting_step", "halting_step")
    h, x, *state, output = moved(state_of(*SHAPES[name]), device)
    right = halting_step(h, x, *state, output, EPS, False, sticks)
    got = halting_step(h, x[:, :0], *state, output[:, :0], EPS, False, sticks)
    for number in (0, 1, 2, 4):
        assert torch.equal(got[number], right[number])
    assert got[3].shape == output[:, :0].shape
    running = halting_step_(h, x[:, :0], *state, output[:, :0], EPS, False, sticks)
    assert torch.equal(running, right[0] > 0) and torch.equal(state[1], right[1])


def test_the_engine_steps_by_itself(monkeypatch):
    """No fall-back to the reference hides behind the tests above."""
    pytest.importorskip("accel.kernels.cpu.binding", reason="the C engine was not built", exc_type=ImportError)
    for name in ("halting_step", "halting_step_", "halting_step_backward"):
        monkeypatch.setattr(reference, name, None)
    h, x, *old = state_of(*SHAPES["SACT"])
    halting_step(h, x, *old, EPS, False, sticks=True)[3].sum()
    halting_step_(h, x, *old, EPS, False, sticks=True)
    loss = halting_step(h.requires_grad_(), x, *old, EPS, False, sticks=True)[3].sum()
    assert torch.autograd.grad(loss, h)[0].abs().sum() > 0


@UNITS
def test_gradients_are_the_rules(backend, needs, device, assert_close, shapes, last, with_score):
    needs("halting_step_backward", "halting_step")
    exact = state_of(*shapes, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in exact if t.dtype is not torch.int32]
    left, ponder, _, output, weight = by_rule(*exact, last)
    expected = (left, ponder, output, weight)
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in expected]
    right = torch.autograd.grad(expected, leaves, upstream, materialize_grads=True)

    state = [t.detach().to(device, torch.float32) if t.dtype is not torch.int32 else t.to(device) for t in exact]
    wanted = [t.requires_grad_() for t in state if t.dtype is not torch.int32]
    new = halting_step(state[0] if with_score else None, *state[1:], EPS, last, sticks=True)
    got = torch.autograd.grad(
        (new[0], new[1], new[3], new[4]), wanted, [u.float().to(device) for u in upstream], materialize_grads=True
    )
    for gradient, value in zip(got, right):
        assert_close(gradient, value)


@pytest.mark.parametrize("last", [False, True])
def test_gradcheck(last):
    """First and second derivatives: control variates differentiate gradients."""
    h, x, remainder, ponder, units, output = state_of((2, 3, 2), (2, 2, 3, 2), dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (h, x, remainder, ponder, output)]

    def run(h, x, remainder, ponder, output):
        new = halting_step(h, x, remainder, ponder, units, output, EPS, last, sticks=True)
        return new[0], new[1], new[3], new[4]

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("name", ["ACT", "SACT"])
def test_opcheck(name):
    state = [t.requires_grad_() if t.is_floating_point() else t for t in state_of(*SHAPES[name])]
    plain = [t.detach() for t in state]
    h, x, remainder, ponder, _, output = plain
    for op, arguments in (
        (torch.ops.accel.halting_step.default, state),
        (torch.ops.accel.halting_step_.default, plain),
        (torch.ops.accel.halting_step_backward.default, (h, x, remainder, h, ponder, output, h)),
    ):
        results = torch.library.opcheck(op, (*arguments, EPS, False, True))
        assert set(results.values()) == {"SUCCESS"}
