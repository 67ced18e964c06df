"""mean_rows: the mean over listed rows of bytes, to the nearest byte, halves to even."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.mean_rows import mean_rows
from accel.ops import use_backend

BATCH = 2


def drawn(count, taps, windows, channels):
    generator = torch.Generator().manual_seed(count + channels)
    rows = torch.randint(0, 256, (BATCH * count, channels), generator=generator, dtype=torch.uint8)
    listed = torch.randint(-1, count, (taps, windows), generator=generator, dtype=torch.int32)
    return rows, listed, 1 / (listed >= 0).sum(0).clamp_min(1).float()


def exactly(rows, taps, share, zero):
    """In double precision, which rounds sums of so few bytes times a share as fp32 does."""
    images = rows.view(BATCH, -1, rows.shape[1]).double() - zero
    total = sum(images[:, tap.clamp_min(0).long()] * (tap >= 0)[:, None] for tap in taps)
    means = (total.float() * share[:, None]).double().round()
    return (means + zero).clamp(0, 255).to(torch.uint8).flatten(0, 1)


@pytest.mark.parametrize("zero", [0, 1, 128, 255])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (7, 4, 12, 3), (20, 9, 5, 64), (9, 2, 30, 17), (300, 4, 150, 130)], ids=str
)
def test_it_is_the_mean_of_the_rows(isa, shape, zero):
    rows, taps, share = drawn(*shape)
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            assert torch.equal(mean_rows(rows, taps, share, zero, BATCH), exactly(rows, taps, share, zero))


def test_halves_go_to_the_even_byte_and_sums_are_clamped(isa):
    rows = torch.tensor([[10, 11, 12, 255], [11, 12, 13, 255]], dtype=torch.uint8)
    taps = torch.tensor([[0, 0], [1, 1]], dtype=torch.int32)
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            found = mean_rows(rows, taps, torch.tensor([0.5, 1.0]), 0, 1)
            assert found.tolist() == [[10, 12, 12, 255], [21, 23, 25, 255]]
            assert mean_rows(rows, taps, torch.tensor([-1e30, 1e30]), 5, 1)[:, 0].tolist() == [0, 255]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads):
    rows, taps, share = drawn(300, 9, 4000, 40)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert torch.equal(mean_rows(rows, taps, share, 7, BATCH), exactly(rows, taps, share, 7))
    torch.set_num_threads(before)


def blended(rows, taps, weights, zero):
    """Every product and sum of fp32, in the order of the taps."""
    images = rows.view(BATCH, -1, rows.shape[1]).double() - zero
    total = torch.zeros((), dtype=torch.float32)
    for tap, weight in zip(taps, weights):
        steps = images[:, tap.clamp_min(0).long()] * (tap >= 0)[:, None]
        total = total + (steps * weight[:, None].double()).float()
    return (total.double().round() + zero).clamp(0, 255).to(torch.uint8).flatten(0, 1)


@pytest.mark.parametrize("zero", [0, 3, 255])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (50, 4, 700, 1), (9, 2, 30, 3), (20, 16, 5, 64), (7, 4, 12, 17), (90, 4, 150, 130)], ids=str
)
def test_weighted_means(isa, shape, zero):
    rows, taps, _ = drawn(*shape)
    weights = torch.rand(taps.shape, generator=torch.Generator().manual_seed(4)) * 2 - 0.5
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        for backend in ("cpu", "reference"):
            with use_backend(backend):
                assert torch.equal(mean_rows(rows, taps, weights, zero, BATCH), blended(rows, taps, weights, zero))
        torch.set_num_threads(before)


def test_nothing_opcheck_and_compile():
    rows, taps, share = drawn(7, 4, 12, 3)
    assert mean_rows(rows[:0], taps, share, 0, 0).shape == (0, 3)
    assert mean_rows(rows, taps[:, :0], share[:0], 0, BATCH).shape == (0, 3)
    arguments = (rows, taps, share, 7, BATCH)
    assert set(torch.library.opcheck(torch.ops.accel.mean_rows.default, arguments).values()) == {"SUCCESS"}
    compiled = torch.compile(lambda *a: mean_rows(*a) // 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), exactly(rows, taps, share, 7) // 2)


def test_bad_arguments_are_named():
    rows, taps, share = drawn(7, 4, 12, 3)
    bad = {
        r"rows must be \[3 \* P, C\]": (rows, taps, share, 0, 3),
        "T from 1 to 65793": (rows, taps[:0], share, 0, 2),
        "T from 1 to 16": (rows, taps.repeat(5, 1), torch.ones(20, 12), 0, 2),
        r"share must be \[12\] or \[4, 12\]": (rows, taps, share[:3], 0, 2),
        "zero_point must be a byte, got 256": (rows, taps, share, 256, 2),
        "move taps with": (rows, taps.to("meta"), share, 0, 2),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            mean_rows(*arguments)
    for index, name in enumerate(("rows", "taps", "share")):
        arguments = [rows, taps, share]
        arguments[index] = arguments[index].double()
        with pytest.raises(TypeError, match=f"{name} must be"):
            mean_rows(*arguments, 0, 2)
