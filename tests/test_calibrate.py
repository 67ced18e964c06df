"""Fitted interpolation against closed forms."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate, calibrate
from accel.calibrate import fit_interpolation, fit_layer, fits, ranges
from accel.errors import ConfigError, DataError
from accel.fills.fitted import ridge_regression
from accel.fills.sums import nearest_fit
from accel.inputs import as_batch
from accel.running import one_by_one


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


@pytest.mark.parametrize(("samples", "features"), [(50, 20), (20, 50)])
def test_ridge_regression_solves_its_normal_equations_whatever_there_is_more_of(samples, features):
    generator = torch.Generator().manual_seed(0)
    seen, lacking = (torch.randn(samples, count, generator=generator).double() for count in (features, 7))
    weight = ridge_regression(seen, lacking, torch.tensor(0.3).double())
    torch.testing.assert_close(seen.T @ (lacking - seen @ weight), torch.tensor(0.3).double() * weight)
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


FITTED = Perforate(keep=0.5, mask="lattice", interpolate="fitted")


def relative(ours, dense):
    return float((ours - dense).norm() / dense.norm())


def rarely_firing():
    """Depthwise convolutions behind channels that hardly ever, or never, fire."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d) and layer.groups == 1:
                layer.bias[:4] -= torch.tensor([0.8, 1.2, 1.6, 4.0])
    return model


def bright_spot(batch, seed):
    """Pictures that are nearly constant but for one spot each: what fires does so at a few positions."""
    x = 0.01 * torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    for picture, at in enumerate(torch.randint(3, 12, (batch, 2), generator=torch.Generator().manual_seed(seed))):
        x[picture, :, at[0] : at[0] + 2, at[1] : at[1] + 2] += 3
    return x


@pytest.mark.parametrize("correct", ["scale", "weights"])
@pytest.mark.parametrize("pictures", [1, 2, 4, 12])
@pytest.mark.parametrize("make", [bright_spot, lambda batch, seed: torch.randn(batch, 3, 16, 16) + seed])
def test_a_fit_is_bounded_and_loses_no_more_than_nearest_filling(correct, pictures, make):
    model = rarely_firing()
    x, other = make(pictures, 1), make(32, 1)
    config = dataclasses.replace(FITTED, correct=correct)
    fast = accel.convert_model(model, config, example_inputs=x, calibration=[x])
    nearest = accel.convert_model(model, Perforate(keep=0.5, mask="lattice"), example_inputs=x)
    fits = [layer.fit for layer in fast if isinstance(layer, nn.Conv2d)]
    assert max(float(fit.scale.abs().max()) for fit in fits) < 4.3
    assert all(tensor.isfinite().all() for fit in fits for tensor in fit.tensors().values())
    with torch.no_grad():
        assert relative(fast(other), model(other)) <= 1.05 * relative(nearest(other), model(other))


def test_four_pictures_of_noise():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1)]
    for _ in range(8):
        layers += [nn.BatchNorm2d(32), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1)]
    model, x, other = nn.Sequential(*layers).eval(), torch.randn(4, 3, 16, 16), torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        for correct in ("scale", "weights"):
            config = dataclasses.replace(FITTED, correct=correct)
            fast = accel.convert_model(model, config, example_inputs=x, calibration=[x])
            nearest = accel.convert_model(model, Perforate(keep=0.5, mask="lattice"), example_inputs=x)
            assert relative(fast(other), model(other)) <= 1.02 * relative(nearest(other), model(other))


def test_a_channel_that_loses_on_pictures_left_out_is_left_to_nearest_filling():
    """The layer's own output is the target, but for one channel whose pictures left out say the opposite."""
    layer = fitted(nn.Sequential(conv()).eval(), image(batch=8, size=12))[0]
    x = image(batch=8, size=12)
    target = nn.Conv2d.forward(layer, x).detach()
    target[:6, 2] *= 3
    assert fit_layer(layer, x, target).nearest.tolist() == [False, False, True, False]
    target[:, 1] = float("nan")
    assert fit_layer(layer, x, target).nearest.tolist() == [False, True, True, False]
    assert fit_layer(layer, x, target[:4]).nearest.all() and fit_layer(layer, x[:0], target[:0]).nearest.all()


class Flips(nn.Module):
    """Its forward doubles the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(2, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2))

    def batch(self, x):
        return torch.cat([x, x.flip(-1)])

    def forward(self, x):
        out = self.net(self.batch(x))
        return out.view(-1, len(x), *out.shape[1:]).mean(0)


class Windows(Flips):
    """Its forward cuts every picture into four."""

    def batch(self, x):
        return x.unflatten(-1, (2, -1)).unflatten(-3, (2, -1)).permute(2, 4, 0, 1, 3, 5).flatten(0, 2)


@pytest.mark.parametrize("kind", [Flips, Windows])
def test_what_a_forward_does_with_the_batch_does_not_matter(kind):
    """The layers are fitted as on the batch that they see."""
    model, x = kind().eval(), image(batch=8, size=24)
    config = Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4)
    fast = accel.convert_model(model, config, example_inputs=x, calibration=[x])
    alone = accel.convert_model(model.net, config, example_inputs=x, calibration=[model.batch(x)])
    for ours, own in zip(fast.net[::2], alone[::2]):
        for name, tensor in own.fit.tensors().items():
            assert torch.equal(ours.fit.tensors()[name], tensor), name
    low, own = (
        accel.decompose_model(net, calibration=[data], ranks={"*0": 4, "*2": 3})
        for net, data in ((model, x), (model.net, model.batch(x)))
    )
    for ours, theirs in zip(low.net.parameters(), own.parameters()):
        assert torch.equal(ours, theirs)


def test_a_walk_in_many_rounds_settles_the_same(monkeypatch):
    model, x = rarely_firing(), image(batch=4, size=16).repeat(1, 2, 1, 1)[:, :3]
    whole = accel.convert_model(model, FITTED, example_inputs=x, calibration=[x])
    monkeypatch.setattr("accel.calibrate.settling.settle.__defaults__", (1,))  # bytes: one layer a round
    rounds = accel.convert_model(model, FITTED, example_inputs=x, calibration=[x])
    for one, other in zip(whole, rounds):
        if isinstance(one, nn.Conv2d):
            assert all(torch.equal(t, other.fit.tensors()[n]) for n, t in one.fit.tensors().items())


@pytest.mark.parametrize("recorded", [(), ("0",), ("2", "4"), ("0", "2", "4")])
def test_what_the_dense_network_gives_may_be_known(recorded):
    """Some of it or all, and of layers that others wait for; the fits are the same."""
    model = nn.Sequential(
        conv(), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)
    ).eval()
    x = image(batch=4, size=16)
    with one_by_one():
        known = calibrate.record(model, as_batch((x,)), {name: model.get_submodule(name) for name in recorded}, {})
    assert set(known) == {*recorded}
    alone, beside = (fitted(model, x) for _ in range(2))
    for layer in (beside[0], beside[2], beside[4]):
        layer.set_fit(None)
    fit_interpolation(beside, [x], known=known)
    for one, other in zip(alone, beside):
        if isinstance(one, nn.Conv2d):
            assert not one.fit.nearest.all()
            for name, tensor in one.fit.tensors().items():
                torch.testing.assert_close(other.fit.tensors()[name], tensor)


def test_ranges_without_fits_are_those_beside_them(monkeypatch):
    """Where nothing is fitted the dense network need not run; what the layers read is the same."""
    model, x = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).eval(), image(batch=4, size=16)
    config = Perforate(keep=0.5, mask="lattice", precision="int8")
    alone = accel.convert_model(model, config, example_inputs=x, calibration=[x])

    def settle(net, batch, waiting, fit, own):
        dense = {layer: layer.forward_densely for layer in waiting.values()}
        return fits.settle(net, batch, waiting, lambda name, x, _: fit(name, x), dense, own)

    monkeypatch.setattr(fits, "settle_by_inputs", settle)
    beside = accel.convert_model(model, config, example_inputs=x, calibration=[x])
    for one, other in zip(alone, beside):
        if isinstance(one, nn.Conv2d):
            assert all(torch.equal(t, other.quantization.tensors()[n]) for n, t in one.quantization.tensors().items())


@pytest.mark.parametrize("step", [1, 3, 64, 1000])
def test_values_are_sampled_where_they_lie(step):
    x = torch.randn(3, 8, 7, 5, generator=torch.Generator().manual_seed(0))
    for each in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x[:, ::2],
        x[0],
        x[..., 0].expand(3, 8, 7),
        x[0, 0, 0],
    ):
        assert torch.equal(ranges._every(each, step), each.flatten()[::step])
        assert ranges._extremes(each) == (each.min(), each.max())


def test_layers_that_are_called_by_keyword():
    class Keyword(nn.Sequential):
        def forward(self, x):
            return self[1](input=self[0](input=x).relu())

    model, x = Keyword(conv(), nn.Conv2d(4, 3, 3, padding=1)).eval(), image(batch=4, size=12)
    for config in (FITTED, Perforate(keep=0.5, mask="lattice", interpolate="fitted", precision="int8")):
        fast = accel.convert_model(model, config, example_inputs=x[:1], calibration=[x])
        with torch.no_grad():
            assert (fast(x) - model(x)).norm() < model(x).norm()
    low = accel.decompose_model(model, calibration=[x], ranks={"0": 2})
    found = accel.search(low, example_inputs=x[:1], calibration=[x], macs=0.7, minutes=0.05)
    assert found.keys() & {"0.0", "1"}


def test_errors_of_calibration_say_what_they_said():
    """Not that the model cannot run."""
    with pytest.raises(DataError, match=r"^layer '0' reads nothing but zeros"):
        accel.convert_model(
            nn.Sequential(conv()).eval(),
            Perforate(keep=1.0, precision="int8"),
            example_inputs=image(),
            calibration=[torch.zeros_like(image())],
        )


def test_layers_that_only_one_of_the_networks_calls_are_left_to_nearest_filling():
    class Choosy(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            way = 1 if x.unique().numel() < 0.75 * x.numel() else 2  # filled in, or dense
            return self[3](self[way](x))

    torch.manual_seed(0)
    model = Choosy(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(4))).eval()
    x = image(batch=4, size=12)
    rules = {"0": Perforate(keep=0.5, mask="lattice"), "*": FITTED}
    fast = accel.convert_model(model, rules, example_inputs=x, calibration=[x])
    assert [layer.fit.nearest.all().item() for layer in list(fast)[1:]] == [True, True, False]
    with torch.no_grad():
        assert fast(x).isfinite().all()


def test_a_network_left_to_nearest_filling_is_filled_as_by_nearest_filling():
    """To the bit, whatever the mask's ties; and so is it where fits are right alone but the outputs come out worse."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    x = torch.randn(2, 3, 12, 13)
    for mask in ("lattice", "uniform", "grid"):
        fast = accel.convert_model(model, dataclasses.replace(FITTED, mask=mask), example_inputs=x, calibration=[x])
        nearest = accel.convert_model(model, Perforate(keep=0.5, mask=mask), example_inputs=x)
        for layer in (fast[0], fast[2]):
            layer.set_fit(nearest_fit(layer.out_channels))
        with torch.no_grad():
            torch.testing.assert_close(fast(x), nearest(x), rtol=1e-6, atol=1e-6)
            with one_by_one():
                assert torch.equal(fast(x), nearest(x))


@pytest.mark.parametrize(
    ("gains", "lost"),
    [
        ([0.3, 0.4, 0.2], False),
        ([0.4, 0.1, 0.05], True),
        ([0.03, 0.04, 0.09], True),  # three pictures: 2.9 standard errors are too few
        ([0.3, float("nan"), 0.2], True),
        ([0.1], False),
        ([0.1, 0.3], False),
        ([0.3, -0.1], True),
    ],
)
def test_a_gain_counts_where_it_is_surely_one(gains, lost):
    assert calibrate.is_lost(1 - torch.tensor(gains), torch.ones(len(gains))) == lost
