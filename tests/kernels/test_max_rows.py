"""max_rows: the maximum over listed rows, on every backend that has it."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.max_rows import max_rows


def drawn(count, taps, windows, channels, batch=2):
    generator = torch.Generator().manual_seed(count + channels)
    rows = torch.randn(batch * count, channels, generator=generator)
    return rows, torch.randint(count, (taps, windows), generator=generator, dtype=torch.int32), batch


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (7, 4, 12, 3), (20, 9, 5, 64), (9, 2, 30, 17), (300, 4, 150, 40)], ids=str
)
def test_it_is_the_maximum_of_the_rows(backend, device, needs, shape):
    needs("max_rows", "max_rows")
    rows, taps, batch = drawn(*shape)
    expected = rows.view(batch, shape[0], -1)[:, taps.long()].amax(1).flatten(0, 1)
    assert torch.equal(max_rows(rows.to(device), taps.to(device), batch).cpu(), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (20, 9, 5, 64), (300, 4, 150, 37)], ids=str)
def test_the_maximum_of_bytes(backend, shape):
    if backend == "triton":
        pytest.skip("bytes are on CPUs")
    rows, taps, batch = drawn(*shape)
    rows = (100 * rows + 128).clamp(0, 255).to(torch.uint8)
    expected = rows.view(batch, shape[0], -1)[:, taps.long()].amax(1).flatten(0, 1)
    found = max_rows(rows, taps, batch)
    assert found.dtype is torch.uint8 and torch.equal(found, expected)


@pytest.mark.parametrize("place", range(3))
def test_a_nan_wins_in_any_place(backend, device, needs, place):
    needs("max_rows", "max_rows")
    rows = torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 6.0]])
    rows[place, 0] = float("nan")
    (got,) = max_rows(rows.to(device), torch.tensor([[0], [1], [2]], dtype=torch.int32).to(device), 1)
    assert got[0].isnan() and got[1] == 6


def test_an_empty_batch_and_no_windows(backend, device, needs):
    needs("max_rows", "max_rows")
    taps = torch.zeros(2, 3, dtype=torch.int32, device=device)
    assert max_rows(torch.zeros(0, 4, device=device), taps, 0).shape == (0, 4)
    assert max_rows(torch.zeros(6, 4, device=device), taps[:, :0], 2).shape == (0, 4)


def test_opcheck_and_compile():
    arguments = drawn(7, 4, 12, 3)
    results = torch.library.opcheck(torch.ops.accel.max_rows.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    compiled = torch.compile(lambda *a: max_rows(*a) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), max_rows(*arguments) * 2)


def test_bad_arguments_are_named():
    rows, taps, _ = drawn(7, 4, 12, 3)
    with pytest.raises(ValueError, match=r"rows must be \[3 \* P, C\]"):
        max_rows(rows, taps, 3)
    with pytest.raises(ValueError, match="T at least 1"):
        max_rows(rows, taps[:0], 2)
    with pytest.raises(TypeError, match="must be int32"):
        max_rows(rows, taps.long(), 2)
    with pytest.raises(ValueError, match="move taps with"):
        max_rows(rows, taps.to("meta"), 2)
