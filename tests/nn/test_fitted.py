"""Neighbours, classes and weights: small cases by hand, and what must hold of any position set."""

import dataclasses
import gc

import numpy as np
import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.fills.sums import Fit, classify, find_neighbors, nearest_fit
from accel.fills.weighted import weighted_by_distance
from accel.kernels import caches
from accel.kernels.positions import PositionSet, shared
from accel.masks import build_mask


def position_set(mask="lattice", keep=0.5, height=9, width=11, seed=0):
    return build_mask(mask, keep, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("mask", "keep"), [("lattice", 0.5), ("lattice", 0.25), ("grid", 0.4), ("uniform", 0.3)])
def test_neighbors_are_the_nearest_computed_positions(mask, keep):
    positions = position_set(mask, keep)
    skipped, rows, offsets, _ = find_neighbors(positions, 5)
    where = positions.positions.numpy()
    assert set(skipped) == set(range(99)) - set(where)
    for at, row, offset in zip(skipped, rows, offsets):
        every = np.stack([where // 11 - at // 11, where % 11 - at % 11], 1)
        assert (every[row] == offset).all()
        distances = (every**2).sum(1)
        assert sorted(distances[row]) == sorted(distances)[:5]


def test_the_inside_of_a_checkerboard_is_one_class():
    found = find_neighbors(position_set(height=20, width=20), 4)
    first = found.classes[0]
    assert sorted(map(tuple, first)) == [(-1, 0), (0, -1), (0, 1), (1, 0)]
    assert (classify(found.offsets, first[None]) == 0).sum() == 18 * 18 // 2


def test_equal_sets_share_their_positions_and_their_neighbors():
    first, equal, wider = (shared(position_set(width=width)) for width in (11, 11, 12))
    assert equal.positions is first.positions
    assert find_neighbors(first, 4) is find_neighbors(equal, 4)
    turned = shared(PositionSet(first.positions.clone(), equal.nearest.clone(), first.width, first.height))
    assert turned.positions is not first.positions
    assert find_neighbors(first, 4) is not find_neighbors(first, 5)
    assert len(find_neighbors(wider, 4).skipped) != len(find_neighbors(first, 4).skipped)


def test_classes_do_not_depend_on_the_size():
    fit = weighted_by_distance(position_set("lattice", 0.25, 24, 24), 8, channels=2)
    larger = position_set("lattice", 0.25, 40, 56)
    neighbors = fit.neighbors(larger)
    own = neighbors.starts[len(fit.offsets)]  # positions outside the last class
    assert own > 0.7 * len(neighbors.skipped)
    assert sorted(neighbors.skipped.tolist() + larger.positions.tolist()) == list(range(40 * 56))


def test_fewer_computed_positions_than_neighbors():
    everywhere = torch.zeros(12, dtype=torch.int32)
    positions = PositionSet(torch.tensor([5], dtype=torch.int32), everywhere, 3, 4)
    rows = find_neighbors(positions, 4).rows
    assert rows.shape == (11, 4)
    assert not rows.any()


def test_weights_by_distance_add_up_to_one():
    fit = weighted_by_distance(position_set(), 12, channels=3)
    torch.testing.assert_close(fit.weights.sum(1), torch.ones(len(fit.weights), 3))
    assert (fit.weights > 0).all()


def test_a_fit_of_the_wrong_shapes_is_refused():
    fit = weighted_by_distance(position_set(), 12, channels=3)
    with pytest.raises(ValueError, match="constant must have shape"):
        Fit(**{**fit.tensors(), "constant": torch.zeros(1, 1)})


def smooth(batch=3, channels=2, size=16, seed=0):
    """Pictures that are linear in y and x, with drawn slopes."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, batch, channels, 1, 1, generator=generator)
    ramp = torch.arange(size, dtype=torch.float32) / size
    return a + b * ramp[:, None] + c * ramp[None, :]


def test_weighted_interpolation_is_exact_inside_a_linear_map():
    model = nn.Sequential(nn.Conv2d(2, 4, 1)).eval()
    x = smooth()
    fast = accel.convert_model(model, Perforate(keep=0.5, mask="lattice", interpolate="weighted"), example_inputs=x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x)[:, :, 4:-4, 4:-4], model(x)[:, :, 4:-4, 4:-4])


def test_training_and_inference_agree():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3)).eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    x = torch.randn(4, 2, 12, 13)
    fast = accel.convert_model(
        model, Perforate(keep=0.5, mask="lattice", interpolate="fitted"), example_inputs=x, calibration=[x]
    )
    watched = fast(x)  # with gradients: module by module, nothing folded
    with torch.no_grad():
        torch.testing.assert_close(fast(x), watched, rtol=1e-4, atol=1e-5)
    watched.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in fast[0].parameters())


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3)).eval()


def drawn(size, batch=4):
    return torch.randn(batch, 2, size, size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("interpolate", ["weighted", "fitted"])
@pytest.mark.parametrize("sizes", [(5, 14), (14, 5), (31, 14, 31, 5)])
def test_no_size_changes_what_another_gives(interpolate, sizes, gradients):
    config = Perforate(keep=0.5, mask="uniform", interpolate=interpolate, neighbors=4)
    make = lambda: accel.convert_model(plain_net(), config, example_inputs=drawn(14), calibration=[drawn(14)])  # noqa: E731
    used = make()
    with torch.set_grad_enabled(gradients):
        for size in sizes:
            torch.testing.assert_close(used(drawn(size)), make()(drawn(size)), rtol=0, atol=0)


@pytest.mark.parametrize("first", [16, 64])
def test_a_layer_of_one_position_when_fitted_serves_larger_maps(first, tmp_path):
    """At 16x16 the last map has one position, and at 64x64 sixteen."""
    layers = [nn.Conv2d(2, 8, 3, padding=1)]
    for _ in range(4):
        layers += [nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1)]
    model = nn.Sequential(*layers).eval()
    config = Perforate(keep=0.5, mask="lattice", interpolate="fitted")
    fast = accel.convert_model(model, config, example_inputs=drawn(16), calibration=[drawn(16)])
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, model)
    with torch.no_grad():
        for size in (first, 80 - first):
            assert torch.equal(loaded(drawn(size)), fast(drawn(size)))
        hidden = fast[:-1](drawn(64))
        kept = fast[-1].position_set(4, 4).positions.long()
        dense = nn.Conv2d.forward(fast[-1], hidden).flatten(2)
        torch.testing.assert_close(fast[-1](hidden).flatten(2)[:, :, kept], dense[:, :, kept])
    assert fast[-1].fit.nearest.all()


def test_nearest_filling_as_a_fit_is_nearest_filling():
    positions = position_set("lattice", 0.25, 13, 11)
    fit = nearest_fit(2, 3)
    neighbors, x = fit.neighbors(positions), torch.randn(1, 2, 13, 11).double()
    rows = x.flatten(2)[0].T[positions.positions.long()]
    got = torch.einsum("ftc,tc->fc", rows[neighbors.rows.long()], fit.weights[0].double())
    where = positions.positions.long()
    for at, value in zip(neighbors.skipped.tolist(), got):
        distances = (where // 11 - at // 11) ** 2 + (where % 11 - at % 11) ** 2
        near = rows[distances == distances.min()]
        assert (near == value).all(1).any()
    assert fit.nearest.all() and not weighted_by_distance(positions, 3, 2).nearest.any()


def test_channels_left_to_nearest_filling():
    fit = weighted_by_distance(position_set(), 4, 3)
    fit = dataclasses.replace(fit, change=torch.ones(3, 2, 1, 1), scale=torch.tensor([2.0, 2.0, float("nan")]))
    mixed = fit.with_nearest(torch.tensor([True, False, False]))
    assert mixed.nearest.tolist() == [True, False, True]
    assert torch.equal(mixed.weights[:, :, 1], fit.weights[:, :, 1]) and mixed.scale.tolist() == [1, 2, 1]
    assert mixed.change[:, 0, 0, 0].tolist() == [0, 1, 0]
    alone = fit.with_nearest(torch.tensor([True, True, False]))
    assert alone.nearest.all() and alone.weights.shape == (1, 1, 3) and alone.change is None


def test_layers_with_equal_sets_share_lists_and_what_was_worked_out_lives_as_long_as_a_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2))
    rule = Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=5)
    x = torch.randn(6, 3, 14, 15)
    gc.collect()
    before = caches.entries()
    ours = accel.convert_model(net.eval(), rule, example_inputs=x[:1], calibration=[x])
    found = [layer.neighbors(layer.position_set(14, 15)) for layer in ours]
    assert found[0] is found[1] is found[2]
    assert caches.entries() > before
    del ours, found
    gc.collect()
    assert caches.entries() == before
