"""Rules with a rank: a convolution becomes two as it is converted."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import accel
from accel import Perforate, Rules
from accel.convert import perforated_layers
from accel.errors import ConfigError, ConversionError, WeightsError
from accel.low_rank import LowRankConv2d, rank_of, ranks_of, share_of
from accel.nn.inference import installed

WHOLE = Perforate(keep=1.0, mask="lattice", rank=4)
HALF = Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4, rank=4)


def pictures(seed=1, count=8):
    return torch.randn(count, 3, 14, 12, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net():
    """Its second convolution has rank 4 exactly."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
    net.append(nn.Conv2d(16, 16, 3, groups=4)).eval()
    with torch.no_grad():
        net[2].weight.copy_((torch.randn(16, 4) @ torch.randn(4, 108)).view(16, 12, 3, 3) / 20)
    return net


def convert(net, rules, **how):
    return accel.convert_model(net, rules, example_inputs=pictures()[:2], calibration=[pictures()], **how)


@torch.no_grad()
def test_a_rank_that_the_weight_has_loses_nothing(net):
    fast, x = convert(net, {"2": WHOLE}), pictures(2)
    assert isinstance(fast[2], LowRankConv2d) and ranks_of(fast) == {"2": 4} and not ranks_of(net)
    torch.testing.assert_close(fast(x), net(x), rtol=1e-3, atol=1e-4)
    assert [(p.config.keep, p.config.rank) for p in fast[2]] == [(1.0, None)] * 2 and installed(fast)
    low = accel.decompose_model(net, calibration=[pictures()], ranks={"2": 4})
    twice = convert(low, {"2.*": Perforate(keep=1.0, mask="lattice")})
    assert torch.equal(fast(x), twice(x))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@torch.no_grad()
def test_positions_are_left_out_of_both(net, precision, tmp_path):
    config = dataclasses.replace(HALF, precision=precision)
    fast, x = convert(net, Rules({"2": config, "*": None})), pictures(3)
    first, second = fast[2]
    assert (first.config.interpolate, second.config.interpolate) == ("nearest", "fitted")
    assert {first.config.precision, second.config.precision} == {precision}
    assert torch.equal(first.position_set(14, 12).positions, second.position_set(14, 12).positions)
    whole = 14 * 12 * 12 * 16 * 9
    assert accel.count_macs(fast, x[:1]) - accel.count_macs(net, x[:1]) == 84 * 4 * (12 * 9 + 16) - whole
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, net)
    assert torch.equal(loaded(x), fast(x))
    dense = accel.revert_model(loaded)
    assert not perforated_layers(dense) and ranks_of(dense) == {"2": 4}
    torch.testing.assert_close(dense(x), net(x), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_share_of_the_macs_is_a_rank(net):
    layer = net[2]
    assert [rank_of(layer, share) for share in (0.5, 0.3, 0.01)] == [6, 4, 0]
    assert share_of(layer, 0.5) == 6 * (108 + 16) / (108 * 16) <= 0.5 and share_of(layer, None) == 1
    assert ranks_of(convert(net, Rules({"2": Perforate(keep=1.0, rank=0.3), "*": None}))) == {"2": 4}


def test_in_place_and_in_the_plan(net):
    copy = accel.revert_model(convert(net, {"0": Perforate(keep=1.0)}))
    kept = copy[0].weight
    assert convert(copy, {"2": HALF}, inplace=True) is copy and copy[0].weight is kept and ranks_of(copy) == {"2": 4}
    plan = accel.plan_conversion(net, {"2": HALF}, example_inputs=pictures()[:1], calibration=[pictures()])
    rows = {row["layer"]: row for row in plan.rows}
    assert (rows["2.0"]["shape"], rows["2.1"]["shape"]) == ("3x3 12>4", "1x1 4>16") and "2" not in rows
    assert rows["2.0"]["keep"] == rows["2.1"]["keep"] == 0.5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep": 1.0, "rank": 0}, "rank must be an integer of at least 1, or a share"),
        ({"keep": 1.0, "rank": 1.5}, r"or a share of the layer's MACs in \(0, 1\), got 1.5"),
        ({"keep": 1.0, "rank": True}, "got True"),
        ({"keep": 0.5, "rank": 4}, "mask 'grid' chooses those of each layer: give mask='lattice'"),
        ({"speedup": 2.0, "rank": 4}, "speedup finds ranks by itself: leave out rank"),
    ],
)
def test_ranks_that_make_no_sense(fields, said):
    with pytest.raises(ConfigError, match=said):
        Perforate(**fields)


def test_layers_that_cannot_have_a_rank_are_named(net):
    with pytest.raises(ConversionError, match="rank 4: layer '4' has 4 groups; leave rank out by a rule of its own"):
        convert(net, {"4": WHOLE})
    with pytest.raises(ConversionError, match="rank 20: layer '0' of 12 channels has no rank 20"):
        convert(net, {"0": Perforate(keep=1.0, rank=20)})
    with pytest.raises(ConfigError, match="rank 4 of layer '2' needs data: pass calibration="):
        accel.convert_model(net, {"2": WHOLE}, example_inputs=pictures())
    with pytest.raises(ConversionError, match="is the whole model"):
        convert(nn.Conv2d(3, 8, 3), WHOLE)


def test_a_folder_whose_layer_says_a_rank_is_damaged(net, tmp_path):
    accel.save_converted(convert(net, {"2": WHOLE}), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["layers"]["2.0"]["config"]["rank"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"config\.json is damaged .*no rank"):
        accel.load_converted(tmp_path, net)
