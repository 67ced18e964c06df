"""Where a perforated network computes, over the pictures it reads."""

import pytest
import torch
from torch import nn

import accel
from accel import Perforate, Rules
from accel.convert.computed import computed_positions, computed_share

SIZE = (12, 16)


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1, stride=2)).eval()


def converted(dense, first, second):
    return accel.convert_model(dense, Rules({"0": first, "2": second}), example_inputs=torch.randn(1, 3, *SIZE))


def test_the_share_is_that_of_the_macs(dense):
    x = torch.randn(1, 3, *SIZE)
    fast = converted(dense, Perforate(keep=0.5, mask="lattice"), Perforate(keep=0.25, mask="lattice"))
    share = computed_share(fast, x, SIZE)
    assert share.shape == (1, *SIZE) and share.dtype is torch.float32
    assert float(share.mean()) == pytest.approx(accel.count_macs(fast, x) / accel.count_macs(dense, x), abs=1e-6)
    assert torch.equal(computed_share(dense, x, SIZE), torch.ones(1, *SIZE))
    first, second = 12 * 16 * 27 * 8, 6 * 8 * 72 * 4
    kept = computed_positions(fast, x)
    expected = first * kept["0"].float() + second * kept["2"].float().repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(share, expected / (first + second))


def test_positions_are_those_of_the_sets(dense):
    x = torch.randn(2, 3, *SIZE)
    fast = converted(dense, Perforate(keep=0.3, mask="uniform"), None)
    (kept,) = computed_positions(fast, x).values()
    positions = fast[0].position_set(*SIZE)
    assert kept.shape == (2, *SIZE) and kept[0].flatten().nonzero()[:, 0].tolist() == sorted(
        positions.positions.tolist()
    )
    assert torch.equal(kept[0], kept[1]) and computed_positions(dense, x) == {}


def test_adaptive_masks_choose_anew_for_every_picture(dense):
    x = torch.zeros(2, 3, *SIZE)
    x[0, :, 4:8, 4:8], x[1, :, 0:3, 10:15] = torch.randn(3, 4, 4), torch.randn(3, 3, 5)
    fast = converted(dense, Perforate(keep=0.5, mask="adaptive"), None)
    (kept,) = computed_positions(fast, x).values()
    assert kept.flatten(1).sum(1).tolist() == [96, 96] and not torch.equal(kept[0], kept[1])
    lattice = fast[0].position_set(*SIZE).positions.long()
    assert kept.flatten(1)[:, lattice].all()
    assert kept[0, 5:7, 5:7].all() and kept[1, 1, 11:14].all()  # where there is something to see
    share = computed_share(fast, x, SIZE)
    assert float(share.mean()) == pytest.approx(accel.count_macs(fast, x) / accel.count_macs(dense, x), abs=1e-6)


def test_a_map_without_a_batch_dimension(dense):
    x = torch.randn(3, *SIZE)
    fast = converted(dense, Perforate(keep=0.5, mask="lattice"), None)
    assert computed_positions(fast, x)["0"].shape == (1, *SIZE)
