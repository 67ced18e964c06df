"""PACT's policy on stages made by hand: weights, the price, the frozen state, what is refused."""

from __future__ import annotations

import pytest
import torch

from accel.halting import Sticks, run_stage, thresholded


def drawn(shape, units: int = 4, seed: int = 0):
    """Log odds, and units that differ, for inputs [N, 3, H, W]."""
    g = torch.Generator().manual_seed(seed)
    logits = [torch.randn(shape, generator=g, dtype=torch.float64) * 2 for _ in range(units - 1)]
    weights = [torch.randn(3, 3, 3, 3, generator=g, dtype=torch.float64) * 0.3 for _ in range(units)]
    layers = [lambda x, w=w: x + torch.nn.functional.conv2d(x, w, padding=1) for w in weights]
    return logits, layers, torch.randn(shape[0], 3, 5, 4, generator=g, dtype=torch.float64)


def relaxed(logits, remainder):
    return logits.sigmoid()


@pytest.mark.parametrize("shape", [(6,), (2, 5, 4)], ids=["images", "positions"])
def test_the_weights_and_the_price_are_those_of_the_broken_stick(shape):
    logits, units, x = drawn(shape)
    heads = [lambda _, h=h: h for h in logits]
    out = run_stage(units, heads, x, spatial=len(shape) > 1, policy=Sticks(relaxed, sums=len(shape) == 1, plans=True))
    left, expected = torch.ones(shape, dtype=torch.float64), []
    for h in logits:
        expected.append(h.sigmoid() * left)
        left = left * (1 - h.sigmoid())
    expected = torch.stack([*expected, left])
    torch.testing.assert_close(out.distribution, expected)
    torch.testing.assert_close(out.distribution.sum(0), torch.ones(shape, dtype=torch.float64))
    numbers = torch.arange(1, 5, dtype=torch.float64).view(-1, *[1] * len(shape))
    torch.testing.assert_close(out.ponder, (numbers * expected).sum(0))
    torch.testing.assert_close(out.logits, torch.stack(logits))
    halts = torch.stack([*logits, torch.ones(shape)]) > 0
    assert torch.equal(out.units.long(), halts.int().argmax(0) + 1) and out.units.unique().numel() > 1


def test_relaxed_decisions_about_images_weigh_the_units():
    logits, units, x = drawn((6,))
    out = run_stage(units, [lambda _, h=h: h for h in logits], x, spatial=False, policy=Sticks(relaxed, True, True))
    state, expected = x, 0
    for unit, weight in zip(units, out.distribution):
        state = unit(state)
        expected = expected + weight.view(-1, 1, 1, 1) * state
    torch.testing.assert_close(out.output, expected)


@pytest.mark.parametrize("draw", [thresholded, lambda h, r: (h > 0.3).to(r)], ids=["thresholded", "drawn"])
def test_decisions_freeze_the_state_which_is_the_output(draw):
    logits, units, x = drawn((2, 5, 4))
    out = run_stage(units, [lambda _, h=h: h for h in logits], x, spatial=True, policy=Sticks(draw))
    state, running = units[0](x), torch.ones(2, 5, 4, dtype=torch.bool)
    count = running.int()
    for h, unit in zip(logits, units[1:]):
        running = running & ~draw(h, torch.ones_like(h)).bool()
        state = torch.where(running[:, None], unit(state), state)
        count += running
    assert torch.equal(out.output, state) and torch.equal(out.units, count)
    assert torch.equal(out.ponder, count.double()) and count.unique().numel() == 4


@pytest.mark.parametrize("spatial", [False, True])
def test_cold_relaxed_decisions_come_to_those_drawn(spatial):
    """Noise and odds alike, the output of ever colder decisions goes to that of the decisions they round to."""
    logits, units, x = drawn((2, 5, 4) if spatial else (2,))
    heads = [lambda _, h=h: h for h in logits]

    def run(temperature: float | None):
        if temperature is None:
            return run_stage(units, heads, x, spatial=spatial, policy=Sticks(thresholded))
        cold = Sticks(lambda h, _: (h / temperature).sigmoid(), sums=not spatial, plans=True)
        return run_stage(units, heads, x, spatial=spatial, policy=cold)

    decided = run(None)
    distances = [float((run(t).output - decided.output).norm()) for t in (1.0, 0.1, 0.01, 1e-4)]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-9
    torch.testing.assert_close(run(1e-4).ponder, decided.ponder)


@pytest.mark.parametrize("odds", [-1e4, 1e4])
@pytest.mark.parametrize("spatial", [False, True])
def test_certain_heads_run_all_units_or_one(spatial, odds):
    logits, units, x = drawn((2, 5, 4) if spatial else (2,))
    heads = [lambda _, h=h: torch.full_like(h, odds) for h in logits]
    state = x
    for unit in units if odds < 0 else units[:1]:
        state = unit(state)
    for policy in (Sticks(thresholded), Sticks(relaxed, sums=not spatial, plans=True)):
        out = run_stage(units, heads, x, spatial=spatial, policy=policy)
        torch.testing.assert_close(out.output, state)
        assert (out.units == (4 if odds < 0 else 1)).all() and (out.ponder == (4 if odds < 0 else 1)).all()


def test_gradcheck_of_a_relaxed_stage():
    logits, units, x = drawn((2, 5, 4), units=3)
    leaves = [t.requires_grad_() for t in (*logits, x)]

    def run(first, second, x):
        heads = [lambda _: first, lambda _: second]
        out = run_stage(units, heads, x, spatial=True, policy=Sticks(relaxed, plans=True))
        return out.output, out.ponder, out.distribution

    assert torch.autograd.gradcheck(run, leaves)


def test_a_head_that_gives_nan_is_refused():
    logits, units, x = drawn((2, 5, 4))
    logits[1][1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match="a halting head gave NaN at 1 of 40 places"):
        run_stage(units, [lambda _, h=h: h for h in logits], x, spatial=True, policy=Sticks(thresholded))
