"""Low-rank convolutions against what linear algebra says of them."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import accel
from accel import Perforate
from accel.errors import ConfigError, ConversionError, DataError


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 10, 3, stride=2)).eval()


@torch.no_grad()
def test_at_full_rank_nothing_changes():
    model, x = two_layers(), drawn(1, 4, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    low = accel.decompose_model(model, calibration=[x], ranks={"0": 12, "2": 10})
    assert [tuple(low[0][i].weight.shape) for i in (0, 1)] == [(12, 3, 3, 3), (12, 12, 1, 1)]
    other = drawn(2, 2, 3, 16, 16)
    torch.testing.assert_close(low(other), model(other), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("geometry", [{}, {"padding": 2, "dilation": 2, "padding_mode": "reflect"}, {"bias": False}])
@torch.no_grad()
def test_filters_in_a_subspace_are_found(geometry):
    layer = nn.Conv2d(3, 16, 3, **geometry)
    layer.weight.copy_((drawn(0, 16, 4) @ drawn(1, 4, 27)).view(16, 3, 3, 3))
    model = nn.Sequential(layer)
    low = accel.decompose_model(model, calibration=[drawn(2, 4, 3, 12, 12)], ranks={"0": 4})
    other = drawn(3, 2, 3, 10, 14)
    torch.testing.assert_close(low(other), model(other), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_first_layer_loses_the_variance_of_the_directions_left_out():
    model, x = nn.Sequential(nn.Conv2d(3, 12, 3)), drawn(1, 6, 3, 20, 20)
    low = accel.decompose_model(model, calibration=[x], ranks={"*": 5})
    rows = model(x).permute(0, 2, 3, 1).flatten(0, 2).double()
    left = torch.linalg.eigvalsh(rows.T.cov(correction=0))[:-5].sum()
    lost = (low(x) - model(x)).double().square().sum(1).mean()
    torch.testing.assert_close(lost, left, rtol=1e-4, atol=1e-8)


@torch.no_grad()
def test_a_layer_is_solved_for_the_inputs_that_it_will_get():
    model, x = two_layers(), drawn(1, 8, 3, 24, 24)
    low = accel.decompose_model(model, calibration=[x], ranks={"0": 3, "2": 6})
    alone = accel.decompose_model(model, calibration=[x], ranks={"2": 6})  # for the dense network's inputs
    target, hidden = model(x), torch.relu(low[0](x))
    in_line, blind = ((pair(hidden) - target).square().mean() for pair in (low[2], alone[2]))
    assert in_line < 0.95 * blind
    torch.testing.assert_close(low(x), low[2](hidden))


@torch.no_grad()
def test_ranks_for_a_share_of_the_macs():
    model, x = two_layers(), drawn(1, 4, 3, 16, 16)
    dense = accel.count_macs(model, x)
    shares, losses = [], []
    for share in (0.5, 0.3, 0.2):
        low = accel.decompose_model(model, calibration=[x], macs=share)
        shares.append(accel.count_macs(low, x) / dense)
        losses.append(float((low(x) - model(x)).square().mean()))
        assert share - 0.12 < shares[-1] <= share  # a rank of the first layer is worth 7 %
    assert losses == sorted(losses) and losses[0] > 0
    kept = accel.decompose_model(model, calibration=[x], macs=0.8, ranks={"0": None})
    assert type(kept[0]) is nn.Conv2d and isinstance(kept[2], nn.Sequential)


def test_perforation_and_low_rank_add_up(tmp_path):
    model, x = two_layers(), drawn(1, 4, 3, 16, 16)
    low = accel.decompose_model(model, calibration=[x], ranks={"0": 4, "2": 4})
    config = Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4)
    fast = accel.convert_model(low, {"*.0": config, "*": None}, example_inputs=x, calibration=[x])
    first = 4 * 4 * 27 * 256, 4 * 12 * 4 * 256
    assert accel.count_macs(low[:1], x) == sum(first)
    assert accel.count_macs(fast[:1], x) == first[0] // 2 + first[1]
    accel.save_converted(fast, tmp_path)
    assert torch.equal(accel.load_converted(tmp_path, copy.deepcopy(low))(x), fast(x))


def test_a_shared_layer_is_decomposed_once_under_all_its_names():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    low = accel.decompose_model(
        nn.Sequential(layer, nn.ReLU(), layer), calibration=[drawn(0, 2, 4, 8, 8)], ranks={"0": 2}
    )
    assert low[0] is low[2] and isinstance(low[0], nn.Sequential)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ConfigError, r"no layer would be decomposed: give ranks=\{pattern: rank\} or macs="),
        ({"ranks": {"0": 13}}, ConfigError, "layer '0' has ranks from 1 to 12, got 13"),
        ({"ranks": {"9": 3}}, ConfigError, "rank '9' matches no convolution of one group: the model's are 0, 2"),
        ({"macs": 1.5}, ConfigError, r"macs .* must lie in \(0, 1\), got 1.5"),
        ({"macs": 0.01}, ConversionError, "macs=0.01 cannot be met: at rank 1 everywhere 0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        accel.decompose_model(two_layers(), calibration=[drawn(1, 2, 3, 16, 16)], **options)


def test_a_model_of_one_layer_is_refused():
    with pytest.raises(ConfigError, match=r"a single convolution: put it into an nn\.Sequential"):
        accel.decompose_model(nn.Conv2d(3, 4, 3), calibration=[drawn(1, 2, 3, 8, 8)], ranks={"*": 2})


def test_a_layer_that_is_never_called_is_refused():
    class Aside(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    model = Aside(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3))
    with pytest.raises(DataError, match="the calibration data never reaches layer '1': leave it whole by rank None"):
        accel.decompose_model(model, calibration=[drawn(1, 2, 3, 8, 8)], ranks={"*": 2})


class Thin(nn.Module):
    """Layers with one output channel, one input channel, groups, dead and equal channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.to_one = nn.Conv2d(16, 1, 3, padding=1)
        self.from_one = nn.Conv2d(1, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.dead = nn.Conv2d(16, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 8, 3, padding=1)
        with torch.no_grad():
            self.dead.weight[:4] = 0
            self.dead.weight[4:8] = self.dead.weight[8:]

    def forward(self, x):
        x = torch.relu(self.grouped(self.from_one(self.to_one(torch.relu(self.stem(x))))))
        return self.last(torch.relu(self.dead(x)))


@pytest.mark.parametrize("macs", [0.9, 0.5, 0.25])
@torch.no_grad()
def test_layers_of_one_channel_and_dead_ones(macs):
    model, x = Thin().eval(), drawn(1, 4, 3, 16, 16)
    low = accel.decompose_model(model, calibration=x, macs=macs)
    assert accel.count_macs(low, x) <= macs * accel.count_macs(model, x)
    assert low(x).isfinite().all()


@torch.no_grad()
def test_ranks_above_what_a_layer_has_lose_nothing():
    model, x = Thin().eval(), drawn(1, 4, 3, 16, 16)
    ranks = {"stem": 16, "to_one": 1, "from_one": 16, "dead": 12, "last": 8}
    low = accel.decompose_model(model, calibration=x, ranks=ranks)
    torch.testing.assert_close(low(x), model(x), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_one_picture_of_one_position():
    model = nn.Sequential(nn.Conv2d(3, 8, 4), nn.Conv2d(8, 6, 1)).eval()
    x = drawn(1, 1, 3, 4, 4)
    low = accel.decompose_model(model, calibration=x, ranks={"*": 2})
    torch.testing.assert_close(low(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hed_is_decomposed():
    """Its side outputs have one channel."""
    from accel.zoo.hed import HED

    torch.manual_seed(0)
    model, x = HED().eval(), drawn(1, 1, 3, 32, 32)
    low = accel.decompose_model(model, calibration=x, macs=0.25)
    assert accel.count_macs(low, x) <= 0.25 * accel.count_macs(model, x)
    assert all(out.isfinite().all() for out in tree_leaves(low(x)))
