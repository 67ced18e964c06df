"""Whole stages of ACT and SACT: the constants of the authors' tests, the properties of rho, the jump."""

from __future__ import annotations

import pytest
import torch

from accel.halting import halt, mean_ponder, run_stage

# h of four units with scores and a fifth without -> rho, N, p, d rho / dh
GOLDEN = [
    ([0.01, 0.5, 0.6, 0.7], 3.49, 3, [0.01, 0.5, 0.49, 0, 0], [-1, -1, 0, 0]),
    ([0.999] * 4, 2.0, 1, [1, 0, 0, 0, 0], [0, 0, 0, 0]),
    ([0.01] * 4, 5.96, 5, [0.01, 0.01, 0.01, 0.01, 0.96], [-1, -1, -1, -1]),
]


@pytest.mark.parametrize(("h", "rho", "count", "p", "slope"), GOLDEN)
def test_constants_of_act(h, rho, count, p, slope):
    scores = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in h]
    outputs = [torch.full((1, 1), float(value), dtype=torch.float64) for value in range(5)]
    out = halt(scores, outputs)
    assert out.ponder.item() == pytest.approx(rho, abs=1e-12)
    assert out.units.tolist() == [count]
    assert out.distribution[:, 0].tolist() == pytest.approx(p, abs=1e-12)
    assert out.output.item() == pytest.approx(sum(weight * value for weight, value in zip(p, range(5))))
    gradients = torch.autograd.grad(mean_ponder(out.ponder, out.units), scores, materialize_grads=True)
    assert [g.item() for g in gradients] == slope


def test_outputs_of_act_are_the_constants():
    outputs = [torch.full((1, 1), float(value)) for value in range(5)]
    middle = halt([torch.tensor([h]) for h in GOLDEN[0][0]], outputs)
    latest = halt([torch.tensor([h]) for h in GOLDEN[2][0]], outputs)
    assert middle.output.item() == pytest.approx(1.48, abs=1e-6)
    assert latest.output.item() == pytest.approx(3.9, abs=1e-6)


def test_constants_of_sact():
    """A map of 1 x 2 positions that halt after 2 and 3 units."""
    scores = [torch.tensor([[[0.9, 0.1]]]), torch.tensor([[[0.5, 0.1]]])]
    outputs = [torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[5.0, 6.0]]]])]
    out = halt(scores, outputs)
    assert out.ponder.flatten().tolist() == pytest.approx([2.1, 3.8])
    assert out.units.flatten().tolist() == [2, 3]
    torch.testing.assert_close(out.distribution[:, 0, 0].T, torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8]]))
    assert out.output.flatten().tolist() == pytest.approx([1.2, 5.4])


def test_constants_of_the_residual_mask():
    """Units that add 1: the position that has halted keeps 2, the other goes on to 3."""
    scores = iter([torch.tensor([[[0.9, 0.1]]]), torch.tensor([[[0.5, 0.1]]])])
    states = []

    def unit(x):
        return x + 1

    def head(x):
        states.append(x.flatten().tolist())
        return next(scores)

    out = run_stage([unit] * 3, [head] * 2, torch.zeros(1, 1, 1, 2), spatial=True)
    assert states == [[1, 1], [2, 2]]
    assert out.output.flatten().tolist() == pytest.approx([1.1, 2.7])
    assert out.units.flatten().tolist() == [2, 3]


def drawn(units: int, shape, seed: int = 0):
    """Scores of up to 0.6, one in ten of them 0.995, and outputs."""
    g = torch.Generator().manual_seed(seed)
    scores = [torch.rand(shape, generator=g, dtype=torch.float64) * 0.6 for _ in range(units - 1)]
    scores = [torch.where(torch.rand(shape, generator=g) < 0.1, 0.995, h) for h in scores]
    channels = (shape[0], 3, *shape[1:])
    return scores, [torch.randn(channels, generator=g, dtype=torch.float64) for _ in range(units)]


@pytest.mark.parametrize("shape", [(50,), (2, 9, 7)], ids=["ACT", "SACT"])
@pytest.mark.parametrize("units", [2, 3, 6])
def test_properties_and_the_closed_form(units, shape):
    scores, outputs = drawn(units, shape)
    out = halt(scores, outputs)
    h = torch.stack([*scores, torch.ones(shape, dtype=torch.float64)])
    reached = h.cumsum(0) >= 1 - 0.01
    reached[-1] = True
    count = reached.int().argmax(0) + 1
    before = torch.arange(1, units + 1).view(-1, *[1] * len(shape)) < count
    remainder = 1 - (h * before).sum(0)
    assert torch.equal(out.units.long(), count) and count.unique().numel() > 1
    torch.testing.assert_close(out.ponder, count + remainder)
    p = torch.where(before, h, 0) + torch.nn.functional.one_hot(count - 1, units).movedim(-1, 0) * remainder
    torch.testing.assert_close(out.distribution, p)
    assert (out.distribution >= 0).all() and out.ponder.min() >= 2 - 1e-12 and out.ponder.max() <= units + 1
    torch.testing.assert_close(out.distribution.sum(0), torch.ones(shape, dtype=torch.float64))
    torch.testing.assert_close(out.output, sum(weight.unsqueeze(1) * x for weight, x in zip(p, outputs)))
    torch.testing.assert_close(mean_ponder(out.ponder, out.units), out.ponder.mean())


def test_gradient_of_the_output():
    """d out / d h^l = <g, x^l - x^N> for l < N, nothing for the others."""
    scores, outputs = drawn(5, (40,))
    for h in scores:
        h.requires_grad_()
    out = halt(scores, outputs)
    g = torch.randn(out.output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(out.output, scores, g)
    for image, count in enumerate(out.units.tolist()):
        for unit in range(4):
            expected = (g[image] @ (outputs[unit][image] - outputs[count - 1][image])) if unit < count - 1 else 0.0
            assert gradients[unit][image].item() == pytest.approx(float(expected), abs=1e-12)


def test_gradcheck_of_a_stage_away_from_the_thresholds():
    scores, outputs = drawn(4, (1, 3, 2), seed=3)
    sums = torch.stack(scores).cumsum(0)
    assert (sums - 0.99).abs().min() > 1e-4
    leaves = [t.requires_grad_() for t in (*scores, *outputs)]

    def run(*tensors):
        out = halt(tensors[:3], tensors[3:])
        return out.output, mean_ponder(out.ponder, out.units)

    assert torch.autograd.gradcheck(run, leaves)


def test_rho_jumps_where_the_number_of_units_changes():
    """On the way up through 1 - eps, rho falls by the unit saved, less the remainder's jump: from 3.01 to 2.0."""

    def rho(first: float) -> float:
        h = [torch.tensor([first], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)]
        return halt(h, [torch.zeros(1, 1, dtype=torch.float64)] * 3).ponder.item()

    below, above = rho(0.99 - 1e-9), rho(0.99 + 1e-9)
    assert below == pytest.approx(2.01, abs=1e-6) and above == pytest.approx(2.0, abs=1e-12)
    # a score that leaves exactly eps does halt (>= in the rule); a fresh unit costs a whole 1
    late = [torch.tensor([h], dtype=torch.float64) for h in (0.5, 0.48, 0.5)]
    early = [torch.tensor([h], dtype=torch.float64) for h in (0.5, 0.50, 0.5)]
    outputs = [torch.zeros(1, 1, dtype=torch.float64)] * 4
    assert halt(late, outputs).ponder.item() == pytest.approx(3.02)
    assert halt(early, outputs).ponder.item() == pytest.approx(2.5)


@pytest.mark.parametrize("spatial", [False, True])
def test_no_halting_is_the_plain_network_and_instant_halting_its_first_unit(spatial):
    g = torch.Generator().manual_seed(0)
    layers = [torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)]
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=0.2, generator=g)
    x = torch.randn(2, 3, 5, 6, generator=g)
    shape = (2, 5, 6) if spatial else (2,)
    units = [lambda state, layer=layer: state + layer(state) for layer in layers]
    with torch.no_grad():
        never = run_stage(units, [lambda _: torch.zeros(shape)] * 3, x, spatial=spatial)
        first = run_stage(units, [lambda _: torch.ones(shape)] * 3, x, spatial=spatial)
        plain = x
        for unit in units:
            plain = unit(plain)
        torch.testing.assert_close(never.output, plain)
        torch.testing.assert_close(first.output, units[0](x))
    assert (never.units == 4).all() and (never.ponder == 5).all()
    assert (first.units == 1).all() and (first.ponder == 2).all()


def test_a_uniform_map_of_scores_is_act():
    g = torch.Generator().manual_seed(0)
    scores = [torch.rand(3, generator=g) * 0.5 for _ in range(3)]
    x = torch.randn(3, 2, 4, 5, generator=g)
    units = [lambda state, k=k: state.tanh() * (k + 1) + 0.1 for k in range(4)]
    per_image = run_stage(units, [lambda _, h=h: h for h in scores], x, spatial=False)
    heads = [lambda _, h=h: h[:, None, None].expand(3, 4, 5) for h in scores]
    per_position = run_stage(units, heads, x, spatial=True)
    torch.testing.assert_close(per_position.output, per_image.output)
    torch.testing.assert_close(per_position.ponder, per_image.ponder[:, None, None].expand(3, 4, 5))
    a, b = (mean_ponder(out.ponder, out.units) for out in (per_position, per_image))
    torch.testing.assert_close(a, b)


def test_identical_units_return_their_output():
    scores, outputs = drawn(5, (2, 4, 3))
    out = halt(scores, [outputs[0]] * 5)
    torch.testing.assert_close(out.output, outputs[0])


def test_counts_that_do_not_fit_are_named():
    x, h = torch.zeros(1, 1), torch.zeros(1)
    with pytest.raises(ValueError, match="got 3 outputs and 1 scores"):
        halt([h], [x] * 3)
    with pytest.raises(ValueError, match="got 2 units and 2 heads"):
        run_stage([abs] * 2, [abs] * 2, torch.zeros(1, 1, 1, 1), spatial=False)
