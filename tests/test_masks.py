"""Masks against closed forms and brute force."""

import math

import pytest
import torch
import torch.nn.functional as F

from accel import masks
from accel.errors import ConfigError
from accel.masks import Pooling, build_mask, grid, layer_generator, nearest_map, pooling_coverage

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 13), (14, 14), (31, 9)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(kind, keep, height, width, seed=0, shift=0):
    impact = torch.rand(height, width, generator=generator(1)) if kind in masks.IMPACT_MASKS else None
    pooling = Pooling((3, 3), (2, 2), (1, 1)) if kind == "pooling" else None
    return build_mask(kind, keep, height, width, generator=generator(seed), pooling=pooling, impact=impact, shift=shift)


def squared_distances(positions, height, width):
    points = torch.stack([torch.arange(height * width) // width, torch.arange(height * width) % width], 1)
    return (points[:, None] - points[positions.long()][None]).square().sum(-1)


@pytest.mark.parametrize("kind", masks.MASKS)
@pytest.mark.parametrize("size", SIZES)
def test_every_mask_is_a_set_with_an_exact_nearest_map(kind, size):
    for keep in (0.25, 0.5, 0.75, 1.0):
        found = build(kind, keep, *size)
        assert found.positions.unique().numel() == len(found) >= 1
        assert found.positions.min() >= 0 and found.positions.max() < size[0] * size[1]
        distance = squared_distances(found.positions, *size)
        chosen = distance.gather(1, found.nearest.long()[:, None])[:, 0]
        assert torch.equal(chosen, distance.min(1).values)
        assert torch.equal(found.nearest[found.positions.long()], torch.arange(len(found), dtype=torch.int32))
        assert keep < 1 or kind == "adaptive" or found.is_full  # of an adaptive mask this is the static part


@pytest.mark.parametrize("kind", masks.MASKS)
def test_a_seed_fixes_the_set(kind):
    first, again, other = (build(kind, 0.5, 12, 15, seed) for seed in (3, 3, 4))
    assert torch.equal(first.positions, again.positions) and torch.equal(first.nearest, again.nearest)
    assert not (torch.equal(first.positions, other.positions) and torch.equal(first.nearest, other.nearest))


def test_layer_generator_depends_on_every_argument():
    draws = {
        torch.rand(1, generator=layer_generator(*args)).item()
        for args in [(0, "a", 3, 4), (1, "a", 3, 4), (0, "b", 3, 4), (0, "a", 4, 4), (0, "a", 3, 5)]
    }
    assert len(draws) == 5
    assert torch.rand(1, generator=layer_generator(0, "a", 3, 4)).item() in draws


@pytest.mark.parametrize("kind", ["uniform", "pooling", "impact", "iterative_impact"])
@pytest.mark.parametrize("keep", [0.29, 1 / 3, 0.5, 0.001])
def test_counts_are_the_floor_of_keep(kind, keep):
    assert len(build(kind, keep, 10, 10)) == max(1, {0.29: 29, 1 / 3: 33, 0.5: 50, 0.001: 0}[keep])


@pytest.mark.parametrize("kind", ["uniform", "pooling", "impact", "iterative_impact"])
def test_weighted_masks_are_nested(kind):
    small, large = (set(build(kind, keep, 9, 11).positions.tolist()) for keep in (0.2, 0.6))
    assert small < large


def test_uniform_is_uniform():
    counts = torch.zeros(6)
    for seed in range(2000):
        counts[build("uniform", 0.5, 2, 3, seed).positions.long()] += 1
    expected, deviation = 1000, math.sqrt(2000 * 0.25)
    assert (counts - expected).abs().max() < 5 * deviation


@pytest.mark.parametrize("size", [(14, 14), (7, 31), (1, 9), (64, 5)])
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.9])
def test_grid_is_a_product_of_even_sequences(size, keep):
    found = build("grid", keep, *size)
    axes = [(found.positions // size[1]).unique(), (found.positions % size[1]).unique()]
    for axis, length in zip(axes, size):
        count = max(1, round(length * math.sqrt(keep)))
        assert len(axis) == count
        gaps = axis.diff()
        assert ((gaps == math.floor(length / count)) | (gaps == math.ceil(length / count))).all()
    assert len(found) == len(axes[0]) * len(axes[1])


def test_grid_at_a_quarter_is_the_stride_two_pattern():
    rows = grid._axis_grid(10, 0.25, 0.7)
    assert rows.diff().eq(2).all() and len(rows) == 5
    assert torch.equal(grid._axis_grid(10, 1.0, 1e-6), torch.arange(10))


@pytest.mark.parametrize("keep", masks.LATTICE_KEEPS)
def test_lattices_have_their_density_and_short_distances(keep):
    found = build("lattice", keep, 12, 24)
    assert found.keep == pytest.approx(keep, abs=1e-12)
    distance = squared_distances(found.positions, 12, 24).min(1).values.reshape(12, 24)
    assert distance[1:-1, 1:-1].max() <= (1 if keep > 0.3 else 2)


@pytest.mark.parametrize("keep", masks.LATTICE_KEEPS)
def test_a_shifted_lattice_is_the_same_one_some_rows_lower(keep):
    kept = [build("lattice", keep, 12, 7, shift=shift).positions.tolist() for shift in range(12)]
    higher = build("lattice", keep, 24, 7).positions
    for shift in range(12):  # of period 12 in all
        rows = higher[(higher >= 7 * (12 - shift)) & (higher < 7 * (24 - shift))] - 7 * (12 - shift)
        assert kept[shift] == rows.tolist()
    assert kept[0] != kept[1]
    assert build("lattice", keep, 1, 1, shift=1).positions.tolist() == [0]  # never empty


def test_lattice_names_thirds_loosely_and_refuses_the_rest():
    assert build("lattice", 0.33, 9, 9).keep == pytest.approx(1 / 3)
    with pytest.raises(ConfigError, match=r"1/4, 1/3, 1/2, 2/3 or 3/4.*keep=0.4"):
        build("lattice", 0.4, 9, 9)


@pytest.mark.parametrize("size", [(7, 7), (8, 13), (14, 9)])
@pytest.mark.parametrize(
    "kernel, stride, padding", [((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 3), (0, 1))]
)
def test_pooling_coverage_is_the_fold_of_ones(size, kernel, stride, padding):
    coverage = pooling_coverage(*size, Pooling(kernel, stride, padding))
    windows = F.unfold(torch.ones(1, 1, *size), kernel, stride=stride, padding=padding)
    folded = F.fold(torch.ones_like(windows), size, kernel, stride=stride, padding=padding)[0, 0]
    assert torch.equal(coverage, folded.double())
    assert coverage.sum() == windows.sum()


@pytest.mark.parametrize("size", range(3, 12))
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", [0, 1])
def test_pooling_coverage_in_ceil_mode_counts_what_the_pool_reads(size, stride, padding):
    coverage = pooling_coverage(size, 1, Pooling((3, 1), (stride, 1), (padding, 0), ceil_mode=True))
    x = torch.zeros(1, 1, size, 1, requires_grad=True)
    windows = F.avg_pool2d(x, (3, 1), (stride, 1), (padding, 0), ceil_mode=True, divisor_override=1)
    windows.sum().backward()
    assert torch.equal(coverage[:, 0], x.grad[0, 0, :, 0].double())


def test_pooling_keeps_what_most_windows_read():
    pooling = Pooling((3, 3), (2, 2))
    found = build_mask("pooling", 0.25, 9, 9, generator=generator(), pooling=pooling)
    coverage = pooling_coverage(9, 9, pooling).flatten()
    kept = coverage[found.positions.long()]
    assert kept.min() >= coverage.sort(descending=True).values[len(found) - 1]


def test_impact_keeps_the_highest():
    impact = torch.arange(20.0).reshape(4, 5)
    found = build_mask("impact", 0.25, 4, 5, generator=generator(), impact=impact)
    assert found.positions.tolist() == [15, 16, 17, 18, 19]


def test_ties_are_all_found_and_drawn_evenly():
    positions = torch.tensor([1, 3, 5, 7], dtype=torch.int32)  # the four neighbours of the centre of a 3x3 map
    draws = [nearest_map(positions, 3, 3, generator(seed))[4].item() for seed in range(2000)]
    counts = torch.bincount(torch.tensor(draws), minlength=4)
    assert (counts - 500).abs().max() < 5 * math.sqrt(2000 * 3 / 16)


def test_ties_at_unlike_vectors_of_one_length_are_found():
    positions = torch.tensor([0 * 11 + 5, 3 * 11 + 0], dtype=torch.int32)
    height, width = 9, 11
    distance = squared_distances(positions, height, width)
    tied = (distance[:, 0] == distance[:, 1]).nonzero().flatten()
    assert len(tied) > 0
    for pixel in tied.tolist():
        chosen = {nearest_map(positions, height, width, generator(seed))[pixel].item() for seed in range(40)}
        assert chosen == {0, 1}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"kind": "circle"}, "unknown mask 'circle'"),
        ({"keep": 0.0}, r"must lie in \(0, 1\], got 0.0"),
        ({"keep": 1.5}, r"must lie in \(0, 1\], got 1.5"),
        ({"kind": "impact"}, "needs an impact map of that size, got none"),
        ({"kind": "impact", "impact": torch.ones(2, 3)}, "got one of 2x3"),
    ],
)
def test_bad_arguments_name_the_remedy(kwargs, message):
    arguments = {"kind": "uniform", "keep": 0.5, **kwargs}
    with pytest.raises(ConfigError, match=message):
        build_mask(arguments.pop("kind"), arguments.pop("keep"), 4, 4, generator=generator(), **arguments)
