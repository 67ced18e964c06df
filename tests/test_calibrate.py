"""Fitted interpolation against closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate
from accel.calibrate import fit_interpolation, fit_layer
from accel.errors import ConfigError, DataError


def image(batch=3, size=6, seed=1):
    return torch.randn(batch, 2, size, size, generator=torch.Generator().manual_seed(seed))


def conv(seed=0, out=4):
    torch.manual_seed(seed)
    return nn.Conv2d(2, out, 3, padding=1)


def fitted(model, x, calibration=None, **fields):
    config = Perforate(**{"keep": 0.5, "mask": "lattice", "interpolate": "fitted", "neighbors": 4, **fields})
    return accel.convert_model(model, config, example_inputs=x, calibration=calibration or [x])


def test_the_fit_is_the_least_squares_solution():
    x = image(batch=6, size=12)
    model = nn.Sequential(conv()).eval()
    layer = fitted(model, x)[0]
    with torch.no_grad():
        target = model(x)
    positions = layer.position_set(12, 12)
    neighbors = layer.fit.neighbors(positions)
    start, end = neighbors.starts[:2].tolist()
    assert end - start > 20  # the inside of the checkerboard
    rows = target.flatten(2)[:, :, positions.positions.long()]
    for channel in range(4):
        seen = rows[:, channel][:, neighbors.rows[start:end].long()].flatten(0, 1)
        seen = torch.cat([seen, torch.ones(len(seen), 1)], 1).double()
        wanted = target.flatten(2)[:, channel, neighbors.skipped[start:end].long()].flatten().double()
        best = torch.linalg.lstsq(seen, wanted).solution
        got = torch.cat([layer.fit.weights[0, :, channel], layer.fit.constant[0, channel, None]]).double()
        residual, least = ((seen @ weights - wanted).square().mean() for weights in (got, best))
        assert least <= residual < 1.01 * least  # the ridge costs a little


def test_layers_are_fitted_to_the_inputs_they_will_get():
    """The second layer's target is the dense network's output, its input comes from the perforated first layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    x = image(batch=8, size=16)
    fast = fitted(model, x)
    with torch.no_grad():
        target = model(x)
        hidden = torch.relu(fast[0](x))
        alone = fit_layer(fast[2], hidden, target)
    for name, tensor in fast[2].fit.tensors().items():
        torch.testing.assert_close(tensor, alone.tensors()[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fast[2].fit.scale, torch.ones(4), atol=1e-3)
    torch.testing.assert_close(fast[0].fit.scale, torch.ones(6), atol=1e-4, rtol=1e-4)  # its input is the dense one


@pytest.mark.parametrize("geometry", [{}, {"groups": 2}, {"padding_mode": "reflect"}, {"stride": 2, "dilation": 2}])
def test_corrected_weights_are_the_ridge_solution(geometry):
    """The change solves the normal equations of what the plain weights miss, with the ridge on its own size."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **{"padding": 1, **geometry}).double()
    x = torch.randn(32, 4, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    fast = fitted(nn.Sequential(layer).eval(), x, correct="weights")[0]
    with torch.no_grad():
        target = layer(x) + 0.2 * layer(x.roll(1, 3))
        change = fit_layer(fast, x, target).change
    kept = fast.position_set(*target.shape[2:]).positions.long()
    mode = "reflect" if layer.padding_mode == "reflect" else "constant"
    patches = F.unfold(F.pad(x, (1, 1, 1, 1), mode), 3, layer.dilation, 0, layer.stride)[:, :, kept]
    lacking = (target - layer(x)).detach().flatten(2)[:, :, kept]
    groups = layer.groups
    for seen, wanted, weight in zip(patches.chunk(groups, 1), lacking.chunk(groups, 1), change.chunk(groups)):
        seen, wanted = (value.permute(0, 2, 1).flatten(0, 1) for value in (seen, wanted))
        seen, wanted, weight = seen - seen.mean(0), wanted - wanted.mean(0), weight.flatten(1).T
        ridge = 0.1 * seen.square().sum(0).mean()
        torch.testing.assert_close(seen.T @ (wanted - seen @ weight), ridge * weight, rtol=1e-6, atol=1e-6)
        assert weight.abs().max() > 0.01


def test_a_network_with_corrected_weights_keeps_its_parameters(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    x = image(batch=8, size=16)
    scaled, fast = fitted(model, x), fitted(model, x, correct="weights")
    assert all(torch.equal(ours, own) for ours, own in zip(fast.parameters(), model.parameters()))
    with torch.no_grad():
        error, plain = ((net(x) - model(x)).square().mean() for net in (fast, scaled))
    assert error < plain
    accel.save_converted(fast, tmp_path)
    with torch.no_grad():
        assert torch.equal(accel.load_converted(tmp_path, model)(x), fast(x))
        watched = fast(x)
    torch.testing.assert_close(fast(x), watched, rtol=1e-4, atol=1e-5)  # with gradients: nothing folded


def test_a_fitted_network_is_closer_to_the_dense_one_on_other_pictures():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2)).eval()
    x, other = image(batch=8, size=20, seed=2), image(batch=8, size=20, seed=3)

    def error(interpolate):
        fast = fitted(model, x, interpolate=interpolate, neighbors=8)
        with torch.no_grad():
            return (fast(other) - model(other)).square().mean()

    assert error("fitted") < 0.9 * error("weighted")
    assert error("fitted") < 0.8 * error("nearest")


def test_a_fit_uses_the_first_pictures_of_so_many_pixels():
    x = image(batch=6, size=12)
    first, all_of_it, split = (fitted(nn.Sequential(conv()).eval(), x) for _ in range(3))
    fit_interpolation(first, [x[:2]])
    fit_interpolation(all_of_it, [x], limit=2 * 144 + 143)
    fit_interpolation(split, [x[:1], x[1:3], x[3:]], limit=2 * 144)
    for model in (all_of_it, split):
        assert torch.equal(model[0].fit.weights, first[0].fit.weights)


def test_fitting_needs_pictures_of_one_size_that_reach_every_layer():
    model = nn.Sequential(conv()).eval()
    with pytest.raises(ConfigError, match="'fitted' of layer '0' needs data"):
        accel.convert_model(model, Perforate(keep=0.5, mask="lattice", interpolate="fitted"), example_inputs=image())
    with pytest.raises(DataError, match="one size"):
        fitted(model, image(), [image(), image(size=8)])
    model.forward = lambda x: x.mean((2, 3))  # calls no layer
    with pytest.raises(DataError, match="never reaches layer '0'"):
        fitted(model, image())
