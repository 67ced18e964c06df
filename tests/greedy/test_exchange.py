"""The division of a price among layers, against brute force."""

import itertools

import numpy as np
import pytest

from accel.greedy.exchange import divide


def brute_force(losses, prices, allowed, most):
    """(least loss, its price) of all ways to change at most so many layers, or None."""
    found = None
    for labels in itertools.product(*[[None, *row] for row in losses.values()]):
        taken = [(name, label) for name, label in zip(losses, labels) if label is not None]
        price = sum(prices[name][label] for name, label in taken)
        loss = sum(losses[name][label] for name, label in taken)
        if len(taken) <= most and price <= allowed and (found is None or loss < found):
            found = loss
    return found


@pytest.mark.parametrize("seed", range(100))
def test_the_least_loss_at_a_price(seed):
    random = np.random.default_rng(seed)
    labels = {str(layer): "abc"[: random.integers(1, 4)] for layer in range(random.integers(1, 5))}
    losses = {name: {label: float(random.normal()) for label in row} for name, row in labels.items()}
    prices = {name: {label: float(random.integers(-20, 20)) for label in row} for name, row in labels.items()}
    allowed, most = float(random.integers(-30, 20)) + 0.5, int(random.integers(1, len(labels) + 1))
    taken = divide(losses, prices, allowed, most)
    price = sum(prices[name][label] for name, label in taken.items())
    expected = brute_force(losses, prices, allowed, most)
    if expected is None:  # out of reach: the cheapest there is
        assert price == sum(min(0, *row.values()) for row in prices.values())
        return
    assert price <= allowed and len(taken) <= most
    assert sum(losses[name][label] for name, label in taken.items()) == pytest.approx(expected)


def test_what_is_infinitely_bad_is_never_taken():
    assert divide({"a": {"x": float("inf"), "y": 1.0}}, {"a": {"x": -2.0, "y": -1.0}}, -1.0, 1) == {"a": "y"}
    assert divide({"a": {"x": float("inf")}}, {"a": {"x": -2.0}}, -1.0, 1) == {}
