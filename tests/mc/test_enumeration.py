import itertools

import pytest
import torch
from torch import distributions as td

from accel import mc


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_joint_states_against_a_loop():
    probs = leaf(0.2, 0.7, 0.4)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    cost = lambda b: torch.cos(b @ weights)  # noqa: E731
    value = mc.expectation(cost, td.Bernoulli(probs=probs), 1, mc.Enumerate())
    expected = torch.zeros((), dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=3):
        b = torch.tensor(bits, dtype=torch.float64)
        expected = expected + (b * probs + (1 - b) * (1 - probs)).prod() * cost(b)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, probs), torch.autograd.grad(expected, probs))


def test_factorised_costs_enumerate_each_group_by_itself():
    rows = []

    def cost(k):
        rows.append(len(k))
        return (k.double() + 1).prod(-1)

    logits = torch.zeros(5, 2, 3, dtype=torch.float64, requires_grad=True)
    value = mc.expectation(cost, td.Categorical(logits=logits), 1, mc.Enumerate())
    assert max(rows) == 9
    torch.testing.assert_close(value, torch.full((5,), 4.0, dtype=torch.float64))


def test_rows_of_the_jacobian_are_all_the_exact_gradient():
    q = td.Bernoulli(logits=leaf(0.0, 0.0))
    found = mc.jacobians(lambda b: b.sum(-1), q, 7, mc.Enumerate())["logits"]
    torch.testing.assert_close(found, torch.full((7, 2), 0.25, dtype=torch.float64))


def test_too_many_states():
    q = td.Bernoulli(logits=torch.zeros(40, requires_grad=True))
    with pytest.raises(ValueError, match=r"2\^40 joint states exceed max_states=65536.*DisARM"):
        mc.expectation(lambda b: b.sum(-1), q, 1, mc.Enumerate())
    assert mc.expectation(lambda b: b, q, 1, mc.Enumerate()).shape == (40,)


def test_infinite_support():
    with pytest.raises(ValueError, match=r"finite support, Poisson has none.*ScoreFunction"):
        mc.expectation(lambda x: x.sum(-1), td.Poisson(leaf(2.0)), 1, mc.Enumerate())
