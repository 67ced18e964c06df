"""Convolutions whose weight is worked out from other tensors: torch's parametrizations and the hooks before them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import accel
from accel.nn.perforated import PerforatedConv2d


class Scaled(nn.Module):
    """A parametrization of one's own, with a parameter."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2, channels).view(-1, 1, 1, 1))

    def forward(self, weight):
        return weight * self.scale


def own_parametrization(conv):
    return parametrize.register_parametrization(conv, "weight", Scaled(conv.out_channels))


def two_parametrizations(conv):
    return own_parametrization(parametrizations.weight_norm(conv))


def parametrized_bias(conv):
    parametrize.register_parametrization(conv, "bias", nn.Tanh())
    return conv


NEW = [parametrizations.weight_norm, parametrizations.spectral_norm, own_parametrization, two_parametrizations]
NEW += [parametrized_bias]
OLD = [old_weight_norm, old_spectral_norm, lambda conv: prune.l1_unstructured(conv, "weight", 0.5)]


def network(dress, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        dress(nn.Conv2d(3, 8, 3, padding=1)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        dress(nn.Conv2d(8, 8, 3, stride=2, padding=1)),
        nn.ReLU(),
        dress(nn.Conv2d(8, 4, 1)),
    )
    net(torch.randn(2, 3, 11, 9))  # the spectral norms find their vectors: drawn ones divide by almost nothing
    return net.eval()


def filled(model, fast, x):
    """What `fast` should give: torch's own convolutions, each filled in by its nearest map."""
    for plain, ours in zip(model, fast):
        x = plain(x)
        if isinstance(plain, nn.Conv2d):
            positions = ours.position_set(*x.shape[2:])
            x = x.flatten(2)[..., positions.positions[positions.nearest].long()].view_as(x)
    return x


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("dress", NEW + OLD)
def test_all_of_a_conversion(dress, tmp_path):
    model, x = network(dress), torch.randn(2, 3, 11, 9)
    with torch.no_grad():
        dense = model(x)
        same = accel.convert_model(model, accel.Perforate(keep=1.0), example_inputs=x)
        torch.testing.assert_close(same(x), dense)
        fast = accel.convert_model(model, accel.Perforate(keep=0.5, mask="lattice"), example_inputs=x)
        assert all(isinstance(fast[index], PerforatedConv2d) for index in (0, 3, 5))
        expected = filled(model, fast, x)
        torch.testing.assert_close(fast(x), expected)
        torch.testing.assert_close(copy.deepcopy(fast)(x), expected)
        accel.save_converted(fast, tmp_path)
        torch.testing.assert_close(accel.load_converted(tmp_path, network(dress, seed=1))(x), expected)
        plain = accel.revert_model(fast)
        torch.testing.assert_close(plain(x), dense)
        assert [type(layer).__name__ for layer in plain] == [type(layer).__name__ for layer in model]
        assert [sorted(layer.__dict__) for layer in plain] == [sorted(layer.__dict__) for layer in model]
        torch.testing.assert_close(model(x), dense)


@pytest.mark.parametrize("interpolate", ["nearest", "weighted"])
@pytest.mark.parametrize("dress", NEW[:4])
def test_a_change_of_what_the_weight_comes_from_is_seen(dress, interpolate):
    """In the middle of the tensor, by .data, and in memory that the weight before had: nothing else tells."""
    model, x = network(dress), torch.randn(1, 3, 10, 10)
    config = accel.Perforate(keep=0.5, mask="lattice", interpolate=interpolate)
    fast = accel.convert_model(model, config, example_inputs=x)
    with torch.no_grad():
        for _ in range(3):
            fast(x)
        for index in (0, 3):
            original = list(fast[index].parametrizations.weight.parameters())[-1]
            original.data.flatten(1)[original.shape[0] // 2, 0] += 1
        assert (fast(x) - accel.convert_model(model, config, example_inputs=x)(x)).abs().max() > 1e-3
        fresh = accel.convert_model(accel.revert_model(fast), config, example_inputs=x)
        torch.testing.assert_close(fast(x), fresh(x))


@pytest.mark.parametrize("interpolate", ["nearest", "weighted"])
def test_training_goes_through_the_parametrization_once_a_call(interpolate):
    model, x = network(parametrizations.spectral_norm), torch.randn(2, 3, 8, 8)
    config = accel.Perforate(keep=0.5, mask="lattice", interpolate=interpolate)
    fast = accel.convert_model(model, config, example_inputs=x)
    model.train(), fast.train()
    model(x)
    fast(x).square().mean().backward()
    assert all(
        layer.parametrizations.weight.original.grad.abs().sum() > 0 for layer in fast if hasattr(layer, "config")
    )
    for plain, ours in zip(model, fast):
        if isinstance(plain, nn.Conv2d):
            torch.testing.assert_close(ours.parametrizations.weight[0]._u, plain.parametrizations.weight[0]._u)


def test_a_converted_layer_may_be_parametrized_and_plain_again():
    model, x = network(lambda conv: conv), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        dense = model(x)
        fast = accel.convert_model(model, accel.Perforate(keep=0.5, mask="lattice"), example_inputs=x)
        ours = fast(x)
        for index in (0, 3, 5):
            parametrize.register_parametrization(fast[index], "weight", nn.Identity())
        torch.testing.assert_close(fast(x), ours)
        reverted = accel.revert_model(fast)
        torch.testing.assert_close(reverted(x), dense)
        for index in (0, 3, 5):
            parametrize.remove_parametrizations(reverted[index], "weight")
            assert type(reverted[index]) is nn.Conv2d
        torch.testing.assert_close(reverted(x), dense)


def test_search_tries_parametrized_layers():
    model, x = network(parametrizations.weight_norm), torch.randn(2, 3, 16, 16)
    rules = accel.search(model, example_inputs=x[:1], calibration=[x], macs=0.7)
    fast = accel.convert_model(model, rules, example_inputs=x[:1], calibration=[x])
    assert any(isinstance(layer, PerforatedConv2d) for layer in fast)
