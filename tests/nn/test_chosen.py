"""Adaptive masks: the positions chosen, the values there, and agreement of all the ways to run."""

import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.errors import ConfigError
from accel.nn.chosen import choose_positions
from accel.ops import local_deviation
from accel.profiling.flops import layer_macs


def image(batch=2, channels=3, height=12, width=14, seed=0):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def adaptive(layer, x, keep=0.5, **fields):
    torch.manual_seed(0)
    config = Perforate(keep=keep, mask="adaptive", **fields)
    return accel.convert_model(nn.Sequential(layer).eval(), config, example_inputs=x, calibration=[x])


def test_the_lattice_and_the_most_deviating_positions_hold_exact_values():
    layer, x = nn.Conv2d(3, 5, 3, padding=1), image()
    fast = adaptive(layer, x)
    lattice = fast[0].position_set(12, 14)
    chosen = choose_positions(fast[0], x, lattice)
    assert chosen.counts.tolist() == [12 * 14 // 2 - len(lattice)] * 2
    score = local_deviation(x).flatten(1)
    score[:, lattice.positions.long()] = -1
    with torch.no_grad():
        dense, ours = layer(x), fast(x)
    for n in range(2):
        mine = [at - n * 168 for at in chosen.positions.tolist() if at // 168 == n]
        assert sorted(mine) == sorted(score[n].topk(len(mine)).indices.tolist())
        exact = [*mine, *lattice.positions.tolist()]
        torch.testing.assert_close(ours[n].flatten(1)[:, exact], dense[n].flatten(1)[:, exact], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, dense, atol=1e-3)


@pytest.mark.parametrize("geometry", [{"stride": 2, "padding": 1}, {"stride": (1, 2)}, {"padding": 4, "dilation": 2}])
def test_every_geometry_computes_what_it_chose(geometry):
    layer, x = nn.Conv2d(3, 4, 3, **geometry), image()
    fast = adaptive(layer, x, keep=0.6)
    with torch.no_grad():
        dense, ours = layer(x), fast(x)
    same = ((dense - ours).abs().amax(1) < 1e-4).float().mean((1, 2))
    assert (same >= 0.59).all() and (same < 0.9).all()


@pytest.mark.parametrize("interpolate", ["nearest", "fitted"])
def test_training_and_inference_agree(interpolate):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Hardswish(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU()
    ).eval()
    model[1].running_mean.normal_()
    x = image(4)
    fast = accel.convert_model(
        model, Perforate(keep=0.5, mask="adaptive", interpolate=interpolate), example_inputs=x, calibration=[x]
    )
    watched = fast(x)
    with torch.no_grad():
        close = (fast(x) - watched).abs() < 1e-4
    assert close.float().mean() > 0.98  # a rounded tie may choose another position in the second layer
    watched.sum().backward()
    assert all(parameter.grad is not None for parameter in fast[0].parameters())


def test_executed_macs_are_those_of_keep():
    x = image(height=16, width=16)
    fast = adaptive(nn.Conv2d(3, 5, 3, padding=1), x, keep=0.75)
    assert accel.count_macs(fast, x) == 2 * 192 * 27 * 5
    assert accel.count_macs(fast, x, per_image=True).tolist() == [192 * 27 * 5] * 2
    assert sum(layer.dense for layer in layer_macs(fast, x)) == 2 * 256 * 27 * 5


def test_a_saved_model_comes_back_the_same(tmp_path):
    x = image()
    fast = adaptive(nn.Conv2d(3, 5, 3, padding=1), x, interpolate="fitted")
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)).eval())
    with torch.no_grad():
        assert torch.equal(loaded(x), fast(x))


def test_what_it_cannot_do_is_said():
    with pytest.raises(ConfigError, match="keep must exceed 1/4"):
        Perforate(keep=0.25, mask="adaptive")
    with pytest.raises(ConfigError, match="take interpolate 'nearest' or 'fitted'"):
        Perforate(keep=0.5, mask="adaptive", interpolate="zero")
    with pytest.raises(ConfigError, match="needs zero padding"):
        adaptive(nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), image())
