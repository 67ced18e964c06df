"""Position sets, output sizes and the map of taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from accel.kernels.positions import ActiveSet, PositionSet, output_size, tap_map
from accel.tests.kernels.named import PAD


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_a_set_knows_its_keep(random_set):
    positions = random_set(7, 5, 0.5)
    assert len(positions) == 18 and positions.keep == 18 / 35 and not positions.is_full
    full = PositionSet.full(3, 4)
    assert full.is_full and full.keep == 1.0 and torch.equal(full.positions, full.nearest)
    assert full.positions.data_ptr() != full.nearest.data_ptr()


@pytest.mark.parametrize(
    ("positions", "nearest", "message"),
    [
        (torch.zeros(1), ints(0, 0), "positions must be a 1-D int32 tensor, got torch.float32"),
        (ints(0), torch.zeros(1, 2, dtype=torch.int32), r"nearest must be a 1-D int32 tensor.*\(1, 2\)"),
        (ints(), ints(0, 0), "holds 1 to 2 positions, got 0"),
        (ints(0, 1, 0), ints(0, 0), "holds 1 to 2 positions, got 3"),
        (ints(0), ints(0), "nearest must have 2 entries for 1x2, got 1"),
        (ints(0, 2), ints(0, 0), "positions must hold 0 to 1, got 0 to 2"),
        (ints(0), ints(0, 1), "nearest must hold 0 to 0, got 0 to 1"),
        (ints(0), ints(-1, 0), "nearest must hold 0 to 0, got -1 to 0"),
    ],
)
def test_bad_sets_are_named(positions, nearest, message):
    with pytest.raises(ValueError, match=message):
        PositionSet(positions, nearest, 1, 2)


@pytest.mark.parametrize("keep", [0.01, 0.3, 1.0])
def test_segments_list_who_each_row_stands_in_for(random_set, keep):
    positions = random_set(7, 5, keep)
    starts, order = positions.segments
    assert starts.dtype is order.dtype is torch.int32
    assert starts[0] == 0 and starts[-1] == 35
    for row in range(len(positions)):
        members = order[starts[row] : starts[row + 1]]
        assert torch.equal(members.long(), (positions.nearest == row).nonzero().flatten())


def test_moving_a_set_keeps_its_numbers(random_set):
    positions = random_set(7, 5, 0.5)
    assert positions.to("cpu") is positions
    moved = positions.to("meta")
    assert moved.positions.device.type == moved.nearest.device.type == "meta" and len(moved) == 18


def test_active_set_counts_its_total():
    active = ActiveSet(ints(0, 5, -1), ints(1, 1), 2, 2, 2)
    assert active.total == 2


GEOMETRIES = [
    ((7, 5), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((8, 9), (3, 2), (2, 3), (0, 2, 1, 0), (1, 1)),
    ((9, 11), (3, 3), (1, 2), (2, 2, 3, 1), (2, 3)),
    ((5, 5), (5, 5), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("mode", PAD)
def test_taps_are_those_of_unfold(geometry, mode):
    """Unfolding the padded map of pixel numbers gives the map, with -1 for padding."""
    in_size, kernel, stride, padding, dilation = geometry
    top, bottom, left, right = padding
    numbers = torch.arange(1.0, 1 + in_size[0] * in_size[1]).view(1, 1, *in_size)
    padded = F.pad(numbers, (left, right, top, bottom), mode=PAD[mode])
    expected = F.unfold(padded, kernel, dilation, 0, stride)[0].T.long() - 1
    taps = tap_map(*geometry, padding_mode=mode)
    assert taps.dtype is torch.int32
    assert torch.equal(taps.long(), expected)
    height, width = output_size(*geometry)
    assert taps.shape == (height * width, kernel[0] * kernel[1])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_output_size_is_conv2ds(geometry):
    in_size, kernel, stride, (top, bottom, left, right), dilation = geometry
    x = F.pad(torch.zeros(1, 1, *in_size), (left, right, top, bottom))
    assert output_size(*geometry) == F.conv2d(x, torch.zeros(1, 1, *kernel), None, stride, 0, dilation).shape[2:]


def test_a_kernel_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"3x3 kernel .* does not fit an input of 2x9: give a larger input"):
        output_size((2, 9), (3, 3), (1, 1), (0, 0, 0, 0), (1, 1))


def test_unknown_padding_mode_is_named():
    with pytest.raises(ValueError, match="padding_mode must be zeros, reflect, replicate or circular, got 'mirror'"):
        tap_map((4, 4), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), "mirror")
