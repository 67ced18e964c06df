"""Likelihoods of table cells: each is a distribution, its samples and means belong to it, all columns at once."""

import math

import pytest
import torch

from accel.errors import ConfigError
from accel.tests.vae.models import seeded
from accel.vae.columns import Column
from accel.vae.table_likelihood import TableLikelihood, _log_mass, _log_ndtr


def outputs_of(likelihood, rows=6, spread=1.0):
    return spread * torch.randn(rows, likelihood.num_outputs, generator=seeded(1), dtype=torch.float64)


def made(*columns, **options):
    torch.manual_seed(0)
    likelihood = TableLikelihood(columns, **options).double()
    for parameter in likelihood.parameters():
        torch.nn.init.normal_(parameter)
    return likelihood


@pytest.mark.parametrize("kind", ["categorical", "boolean", "ordinal"])
@pytest.mark.parametrize("classes", [2, 5])
def test_classes_add_up_to_one(kind, classes):
    likelihood = made(Column("other", "categorical", tuple(range(7))), Column("a", kind, tuple(range(classes))))
    outputs = outputs_of(likelihood, spread=3.0)
    codes = torch.arange(classes, dtype=torch.float64)
    total = sum(
        likelihood.log_prob(outputs, torch.tensor([[0.0, code]]).double().expand(6, 2))[:, 1].exp() for code in codes
    )
    torch.testing.assert_close(total, torch.ones(6, dtype=torch.float64))


def test_counts_add_up_to_one_and_whole_numbers_too():
    count = Column("a", "count", mean=2.0, scale=1.5, low=0.0)
    whole = Column("b", "integer", mean=1.0, scale=2.0)
    bounded = Column("c", "count", mean=2.0, scale=1.5, low=0.0, high=4.0)
    likelihood = made(count, whole, bounded)
    outputs = outputs_of(likelihood)
    ranges = (range(80), range(-80, 80), range(5))
    for place, (column, values) in enumerate(zip(likelihood.columns, ranges)):
        cells = torch.zeros(len(values), 1, 3, dtype=torch.float64)
        cells[:, 0, place] = (torch.tensor(list(values)).double() - column.mean) / column.scale
        total = likelihood.log_prob(outputs[None], cells.expand(-1, 6, -1))[..., place].exp().sum(0)
        torch.testing.assert_close(
            total, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-6
        )  # single-precision steps


@pytest.mark.parametrize("low, high", [(-0.5, 1.0), (-0.5, None), (None, 1.0)])
def test_a_number_is_cut_off_where_no_value_lies_on_the_bound(low, high):
    likelihood = made(Column("a", "real", low=low, high=high))
    outputs = outputs_of(likelihood, spread=4.0)  # means beyond the bounds among them
    ends = (-40.0 if low is None else low, 40.0 if high is None else high)
    grid = torch.linspace(*ends, 200_001, dtype=torch.float64)[:, None, None]
    density = likelihood.log_prob(outputs[None], grid.expand(-1, 6, 1))[..., 0].exp()
    total = torch.trapezoid(density, grid[:, 0, 0], dim=0)
    torch.testing.assert_close(total, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-4)
    moment = torch.trapezoid(density * grid[..., 0], grid[:, 0, 0], dim=0)
    torch.testing.assert_close(likelihood.mean(outputs)[0][:, 0], moment, rtol=0, atol=1e-3)
    uniforms = torch.linspace(0, 1, 10_001, dtype=torch.float64)[1:-1, None].expand(-1, 6)[..., None]
    drawn = likelihood.sample(outputs.expand(len(uniforms), -1, -1), uniforms)
    assert drawn.min() >= ends[0] and drawn.max() <= ends[1] and (drawn.diff(dim=0) > 0).all()
    torch.testing.assert_close(drawn.mean(0)[:, 0], moment, rtol=0, atol=1e-2)


def test_a_sticky_number_is_a_density_inside_and_mass_at_the_bounds():
    likelihood = made(Column("a", "real", low=-0.5, high=1.0, sticky=True))
    outputs = outputs_of(likelihood)
    grid = torch.linspace(-0.5, 1.0, 100_001, dtype=torch.float64)[:, None, None]
    density = likelihood.log_prob(outputs[None], grid.expand(-1, 6, 1))[..., 0].exp()
    inside = torch.trapezoid(density[1:-1], grid[1:-1, 0, 0], dim=0)
    assert ((density[0] + density[-1] + inside - 1).abs() < 1e-4).all()
    mean = likelihood.mean(outputs)[0][:, 0]
    moment = torch.trapezoid((density * grid[..., 0])[1:-1], grid[1:-1, 0, 0], dim=0)
    torch.testing.assert_close(mean, moment - 0.5 * density[0] + density[-1], rtol=0, atol=1e-4)


def test_samples_have_the_likelihoods_shares_and_stay_inside():
    columns = (
        Column("a", "nonnegative", mean=1.0, scale=2.0, low=0.0, sticky=True),
        Column("b", "categorical", ("x", "y", "z")),
        Column("c", "ordinal", (1, 2, 3, 4)),
    )
    likelihood = made(*columns)
    outputs = outputs_of(likelihood, rows=1)
    uniforms = torch.rand(20_000, 3, generator=seeded(2), dtype=torch.float64)
    drawn = likelihood.sample(outputs.expand(20_000, -1), uniforms)
    assert (columns[0].unscaled(drawn[:, 0].numpy()) >= 0).all()
    means, chances = likelihood.mean(outputs)
    assert abs(drawn[:, 0].mean() - means[0, 0]) < 5 * drawn[:, 0].std() / math.sqrt(20_000)
    for place, most in ((1, 3), (2, 4)):
        shares = torch.bincount(drawn[:, place].long(), minlength=4)[:most] / 20_000
        assert ((shares - chances[0, place - 1, :most]).abs() < 0.02).all() and shares.sum() == 1


def test_fixed_deviations_are_the_squared_error():
    likelihood = made(Column("a", "count", low=0.0, mean=3.0, scale=2.0), learned=False)
    outputs, cells = outputs_of(likelihood), torch.full((6, 1), 0.7, dtype=torch.float64)
    found = likelihood.log_prob(outputs, cells)[:, 0]
    torch.testing.assert_close(found, -0.5 * (0.7 - outputs[:, 0]) ** 2 - 0.5 * math.log(2 * math.pi))
    drawn = likelihood.sample(outputs, torch.full((6, 1), 0.99, dtype=torch.float64))
    torch.testing.assert_close(drawn, outputs[:, :1])


def test_features_are_values_and_bits_and_nothing_where_hidden():
    likelihood = TableLikelihood(
        [Column("a", "real"), Column("b", "categorical", tuple("xyz")), Column("c", "ordinal", (0, 1, 2))]
    )
    cells = torch.tensor([[0.5, 2.0, 1.0], [math.nan, math.nan, math.nan]])
    features = likelihood.features(cells, cells.isnan())
    assert features.tolist() == [[0.5, 0, 0, 1, 1, 1, 0], [0.0] * 7]


def test_gradients_are_right_and_stay_finite_far_out():
    likelihood = made(
        Column("a", "count", mean=2.0, scale=1.5, low=0.0),
        Column("b", "real", low=-1.0, sticky=True),
        Column("e", "real", low=-1.0),
        Column("c", "ordinal", (0, 1, 2)),
        Column("d", "categorical", (0, 1)),
    )
    outputs = outputs_of(likelihood, rows=3).requires_grad_()
    rows = [[-2 / 1.5, -1.0, -0.9, 0.0, 1.0], [0.0, 0.5, 0.5, 1.0, 0.0], [1 / 1.5, 2.0, 9.0, 2.0, 1.0]]
    cells = torch.tensor(rows, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: likelihood.log_prob(given, cells), outputs)
    for far in (-1e3, 1e3):
        outputs = torch.full((3, likelihood.num_outputs), far, requires_grad=True)
        found = likelihood.float().log_prob(outputs, cells.float()).sum()
        found.backward()
        assert found.isfinite() and outputs.grad.isfinite().all()


def test_the_mass_of_an_interval_in_both_tails():
    lower = torch.tensor([-30.0, -1.0, 8.0, 29.0], dtype=torch.float64)
    found = _log_mass(lower, lower + 1)
    expected = torch.tensor([-425.33, -1.0748, -35.0134, -424.7863], dtype=torch.float64)
    exact = torch.special.log_ndtr(torch.tensor([-29.0, 0.0, -8.0, -29.0], dtype=torch.float64))
    assert ((found - exact).abs() < torch.tensor([1e-9, 0.4, 1e-3, 1e-9])).all() and found[1] < exact[1]
    assert (found - expected).abs()[1] < 1e-3


def test_the_logarithm_of_phi_joins_its_tail():
    x = torch.tensor([-1e5, -300.0, -20.0 - 1e-9, -20.0 + 1e-9, -1.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(_log_ndtr(x), torch.special.log_ndtr(x), rtol=1e-8, atol=1e-6)


def test_no_column_is_refused():
    with pytest.raises(ConfigError, match="needs a column"):
        TableLikelihood([])
