"""Work on compact rows equals work on the interpolated map."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from accel.kernels.interpolate import interpolate
from accel.kernels.positions import PositionSet
from accel.masks import build_mask
from accel.nn import compact
from accel.nn.compact import Compact


def value(height=9, width=12, batch=2, channels=5, keep=0.4):
    generator = torch.Generator().manual_seed(height * width)
    positions = build_mask("uniform", keep, height, width, generator=generator)
    rows = torch.randn(batch * len(positions), channels, generator=generator, dtype=torch.float64)
    return Compact(rows, positions, batch)


def dense(given):
    return interpolate(given.rows, given.positions)


def norm(channels):
    layer = nn.BatchNorm2d(channels).double().eval()
    nn.init.normal_(layer.running_mean), nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


@pytest.mark.parametrize(
    "module",
    [nn.ReLU(), nn.Hardswish(), norm(5), nn.Dropout2d().eval(), nn.Conv2d(5, 7, 1).double(), nn.GELU()],
    ids=str,
)
def test_position_wise_modules_commute_with_interpolation(module):
    given = value()
    torch.testing.assert_close(dense(compact.apply_module(module, given)), module(dense(given)))


def test_functions_and_methods_on_rows():
    given = value()
    leaky = compact.lifted(F.leaky_relu)(given, 0.2)
    torch.testing.assert_close(dense(leaky), F.leaky_relu(dense(given), 0.2))
    torch.testing.assert_close(dense(compact.apply_method("sigmoid", given)), dense(given).sigmoid())


def test_in_place_work_reaches_every_holder_of_the_rows():
    given = value()
    expected = dense(given).relu()
    compact.apply_module(nn.ReLU(inplace=True), given)
    torch.testing.assert_close(dense(given), expected)
    other = Compact(torch.ones_like(given.rows), given.positions, given.batch)
    assert compact.add_(given, other) is given
    torch.testing.assert_close(dense(given), expected + 1)


def test_sums_commute_with_interpolation():
    first = value()
    second = Compact(first.rows.flip(0), first.positions, first.batch)
    torch.testing.assert_close(dense(compact.add(first, second)), dense(first) + dense(second))
    assert torch.equal(first.rows, value().rows)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (9, 12), (13, 5)])
def test_global_mean(size):
    given = value(*size)
    torch.testing.assert_close(compact.global_mean(given), F.adaptive_avg_pool2d(dense(given), 1))


def test_the_mean_of_a_large_map_keeps_its_digits():
    positions = PositionSet.full(512, 512)
    rows = torch.full((len(positions), 3), 0.3)
    found = compact.global_mean(Compact(rows, positions, 1))
    torch.testing.assert_close(found, torch.full((1, 3, 1, 1), 0.3), rtol=2e-5, atol=0)


POOLS = [
    ((2, 2), (2, 2), (0, 0), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 2), (1, 3), (1, 0), (1, 1)),
    ((2, 3), (2, 2), (0, 1), (2, 2)),
    ((3, 3), (4, 4), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("kernel, stride, padding, dilation", POOLS)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [(7, 7), (8, 13), (9, 10)])
def test_max_pooling_through_the_map(kernel, stride, padding, dilation, ceil_mode, size):
    given = value(*size)
    expected = F.max_pool2d(dense(given), kernel, stride, padding, dilation, ceil_mode)
    torch.testing.assert_close(compact.max_pool(given, kernel, stride, padding, dilation, ceil_mode), expected)


@pytest.mark.parametrize("kernel, stride, padding", [pool[:3] for pool in POOLS])
@pytest.mark.parametrize("include, divisor", [(True, None), (False, None), (True, 7), (False, 7)])
def test_average_pooling_through_the_map(kernel, stride, padding, include, divisor):
    given = value(8, 13)
    expected = F.avg_pool2d(dense(given), kernel, stride, padding, False, include, divisor)
    torch.testing.assert_close(compact.avg_pool(given, kernel, stride, padding, include, divisor), expected)
