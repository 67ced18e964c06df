"""Large pictures: what is made beside the maps does not grow with them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate, ops
from accel.bench import large
from accel.bench.runner import Settings
from accel.kernels.positions import PositionSet, every_position
from accel.masks import build_mask
from accel.nn.inference import installed

plans = pytest.importorskip("accel.kernels.cpu.plans", reason="the C engine was not built", exc_type=ImportError)

from accel.kernels.cpu import forward  # noqa: E402

MODES = ("zeros", "reflect", "replicate", "circular")


def table_bytes(plan) -> int:
    """Of what a plan holds beside the set's own tensors."""
    return sum(t.nbytes for t in (plan.axes.rows, plan.axes.columns, plan.axes.pieces) if t is not None)


def plan_of(mask: str, keep: float, side: int, source: PositionSet | None = None, channels: int = 16):
    where = build_mask(mask, keep, side, side, generator=torch.Generator().manual_seed(0))
    geometry = plans.Geometry((side, side), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), "zeros")
    sets = (where.positions, where.nearest, None if source is None else source.nearest)
    pixels = side * side if source is None else len(source)
    return plans.static_plan(geometry, *sets, (side, side), pixels, channels < plans.RUN_CHANNELS)


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize(("mask", "keep"), [("lattice", 1.0), ("lattice", 0.5), ("grid", 0.5), ("uniform", 0.25)])
def test_tables_grow_with_the_sides_of_a_map_only(mask, keep, channels):
    small, large = (table_bytes(plan_of(mask, keep, side, channels=channels)) for side in (60, 600))
    assert 0 < large < 11 * small and large < 100_000


def test_tables_of_compact_inputs_do_too():
    sides = (60, 600)
    sources = [build_mask("lattice", 0.5, n, n, generator=torch.Generator().manual_seed(1)) for n in sides]
    small, large = (table_bytes(plan_of("lattice", 0.5, n, source)) for n, source in zip(sides, sources))
    assert 0 < large < 11 * small


def test_a_map_of_all_positions_needs_no_lists():
    plan = plan_of("lattice", 1.0, 64)
    assert plan.positions is None and plan.segments is None
    flipped = torch.arange(63, -1, -1, dtype=torch.int32)
    sets = (flipped, flipped, None)  # all of them in another order
    geometry = plans.Geometry((8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), "zeros")
    plan = plans.static_plan(geometry, *sets, (8, 8), 64, False)
    assert plan.positions is not None and plan.segments is not None


@pytest.mark.parametrize("order", ["rows", "backwards", "stand-ins"])
@pytest.mark.parametrize("channels", [3, 20])
def test_sets_of_all_positions_in_any_order(order, channels, monkeypatch):
    """Full sets that are no identity: a permutation, and positions that let others stand in for them."""
    for most in ("MOST_GROUPED", "MOST_GROUPED_COMPACT"):
        monkeypatch.setattr(forward, most, 0)
    flat = torch.arange(35, dtype=torch.int32)
    positions = {"rows": flat, "backwards": flat.flip(0), "stand-ins": flat}[order]
    nearest = {"rows": flat, "backwards": flat.flip(0), "stand-ins": flat // 2}[order]
    where = PositionSet(positions, nearest, 5, 7)
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(2, channels, 5, 7, generator=generator),
        torch.randn(18, channels, 3, 3, generator=generator),
    )
    expected = F.conv2d(x, weight, padding=1).flatten(2)[:, :, positions[nearest.long()].long()].view(2, 18, 5, 7)
    found = ops.perforated_conv2d(x, weight, None, where, padding=(1, 1, 1, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    rows = ops.perforated_conv2d(x, weight, None, where, padding=(1, 1, 1, 1), compact=True)
    torch.testing.assert_close(ops.interpolate(rows, where), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [(3, 18), (20, 5), (20, 18)], ids=str)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        ((3, 2), (2, 1), (2, 0, 1, 2), (1, 1)),
        ((2, 3), (1, 2), (1, 1, 2, 2), (2, 3)),
        ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
        ((1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
        ((1, 3), (1, 1), (0, 0, 4, 4), (1, 1)),
    ],
    ids=str,
)
def test_rows_read_through_pointers_as_through_tables(mode, channels, kernel, stride, padding, dilation, monkeypatch):
    """Sizes that are no multiple of any period, borders of every mode, dense and compact, against the reference."""
    for most in ("MOST_GROUPED", "MOST_GROUPED_COMPACT"):
        monkeypatch.setattr(forward, most, 0)
    generator = torch.Generator().manual_seed(0)
    inner, outer = channels
    x, weight = (
        torch.randn(2, inner, 13, 17, generator=generator),
        torch.randn(outer, inner, *kernel, generator=generator),
    )
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": mode, "activation": "relu"}
    size = plans.Geometry((13, 17), kernel, stride, padding, dilation, mode)
    height, width = (len(taps) for taps in plans.axis_taps(*size))
    source = build_mask("lattice", 1 / 3, 13, 17, generator=generator)
    for mask, keep in (("lattice", 1.0), ("lattice", 0.75), ("grid", 0.4), ("uniform", 0.1)):
        where = build_mask(mask, keep, height, width, generator=generator)
        for given, read in ((x, None), (x.permute(0, 2, 3, 1).flatten(0, 2)[: 2 * len(source)], source)):
            with ops.use_backend("reference"):
                expected = ops.perforated_conv2d(given, weight, None, where, source=read, **options)
            found = ops.perforated_conv2d(given, weight, None, where, source=read, **options)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "config", [Perforate(keep=1.0), Perforate(keep=0.5, mask="lattice"), Perforate(keep=0.5)], ids=str
)
@torch.inference_mode()
def test_a_net_on_a_map_whose_rows_have_no_lists(config, monkeypatch):
    monkeypatch.setattr(forward, "MOST_GROUPED", 1000)
    convs = [nn.Conv2d(inner, outer, 3, padding=1) for inner, outer in ((3, 8), (8, 8), (8, 1))]
    net = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2]).eval()
    fast = accel.convert_model(net, config, example_inputs=torch.zeros(1, 3, 32, 32))
    x = torch.randn(1, 3, 401, 263, generator=torch.Generator().manual_seed(0))
    found = fast(x)
    ((_, path),) = installed(fast)
    assert list(path.plan.verdicts.values()) == [None, None]  # the fast path ran, on the example and here
    torch.testing.assert_close(found, large.layer_by_layer(fast, x), rtol=1e-4, atol=1e-5)


def test_peak_memory_of_a_large_picture():
    """In processes of their own; tables for every tap took more than twice what the dense network takes."""
    case = {"channels": [3, 8, 8, 1], "size": [1201, 1199], "keep": [1.0, 0.5], "mask": "lattice"}
    for row in large.rows(case, Settings()):
        assert row["correct"] and row["grown_mb"] <= 1.3 * row["grown_mb_dense"]


def test_full_sets_are_one():
    first, second = (build_mask(mask, 1.0, 9, 8, generator=torch.Generator()) for mask in ("grid", "lattice"))
    assert first is second is every_position(9, 8)
