"""join_rows: rows of several maps side by side, on every backend that has it."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.join_rows import join_rows
from accel.kernels.quantization import Affine, Rescaling
from accel.ops import use_backend

BATCH = 2
CASES = {  # (rows of an image, channels, whether it is read through taps) of every part
    "one part": [(9, 5, True)],
    "a copy": [(9, 5, False)],
    "of one size": [(9, 5, False), (9, 64, False), (9, 1, False)],
    "resized and joined": [(5, 17, True), (20, 8, False)],
    "many": [(700, 64, True), (3000, 33, False)],
}


def drawn(case, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    windows = case[-1][0]
    parts = [
        torch.randint(0, 256, (BATCH * rows, channels), generator=generator).to(dtype) for rows, channels, _ in case
    ]
    taps = [
        torch.randint(rows, (windows,), generator=generator, dtype=torch.int32) if tapped else None
        for rows, _, tapped in case
    ]
    return parts, taps


def joined(parts, taps):
    images = [part.view(BATCH, -1, part.shape[1]) for part in parts]
    read = [image if tap is None else image[:, tap.long()] for image, tap in zip(images, taps)]
    return torch.cat(read, 2).flatten(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows_side_by_side(backend, device, needs, case, dtype):
    needs("join_rows", "join_rows")
    parts, taps = drawn(case, dtype)
    moved = [part.to(device) for part in parts], [None if tap is None else tap.to(device) for tap in taps]
    found = join_rows(*moved, BATCH)
    assert found.dtype is dtype and torch.equal(found.cpu(), joined(parts, taps))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_floats_are_the_references(dtype):
    parts, taps = drawn(CASES["resized and joined"], dtype)
    assert torch.equal(join_rows(parts, taps, BATCH), joined(parts, taps))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_and_rows_that_do_not_lie_in_a_row(threads):
    parts, taps = drawn(CASES["many"])
    expected, before = joined(parts, taps), torch.get_num_threads()
    torch.set_num_threads(threads)
    assert torch.equal(join_rows([part.T.contiguous().T for part in parts], taps, BATCH), expected)
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bytes_get_another_meaning(isa, case):
    """Every part by its own multiplier and zero point: what its bytes stand for, to the nearest byte of the result."""
    parts, taps = drawn(case, torch.uint8)
    of = [Affine(0.05 * (2 + index), 40 * index) for index in range(len(case))]
    to = Affine(0.125, 17)
    expected = joined([Affine.dequantize(each, part) for each, part in zip(of, parts)], taps)
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            found = join_rows(parts, taps, BATCH, Rescaling.of(of, to, (3, 250)))
            same = join_rows(parts, taps, BATCH, Rescaling.of([to] * len(case), to))
        assert torch.equal(found, to.quantize(expected).clamp(3, 250)) and torch.equal(same, joined(parts, taps))


def test_what_cannot_be_rescaled():
    parts, taps = drawn(CASES["resized and joined"], torch.uint8)
    with pytest.raises(ValueError, match="a rescaling is of 2 parts in bytes, got 1 terms"):
        join_rows(parts, taps, BATCH, Rescaling.of([Affine(1.0, 0)], Affine(1.0, 0)))
    with pytest.raises(ValueError, match="too far apart"):
        Rescaling.of([Affine(1e30, 0)], Affine(1e-30, 0))
    with pytest.raises(ValueError, match="zero points and bounds"):
        Rescaling.of([Affine(1.0, 0)], Affine(1.0, 0), (9, 3))
    with pytest.raises(ValueError, match="2 multipliers, but 1 zero points"):
        Rescaling((1.0, 1.0), (0,), 0)


def test_nothing(backend, device, needs):
    needs("join_rows", "join_rows")
    assert join_rows([torch.zeros(0, 4, device=device), torch.zeros(0, 2, device=device)], [None, None], 0).shape == (
        0,
        6,
    )
    assert (
        join_rows([torch.zeros(6, 0, device=device), torch.ones(6, 1, device=device)], [None] * 2, 2).tolist()
        == [[1]] * 6
    )


def test_opcheck_and_compile():
    parts, taps = drawn(CASES["resized and joined"])
    results = torch.library.opcheck(torch.ops.accel.join_rows.default, (parts, taps, BATCH, [], [], 0, 0, 255))
    assert set(results.values()) == {"SUCCESS"}
    compiled = torch.compile(lambda *a: join_rows(*a, BATCH) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(parts, taps), joined(parts, taps) * 2)


def test_bad_arguments_are_named():
    rows, taps = torch.zeros(6, 4), torch.zeros(3, dtype=torch.int32)
    bad = {
        "as many taps as parts": ([rows], [], 2),
        "one at least": ([], [], 2),
        r"parts must be \[4 \* P, C\]": ([rows], [None], 4),
        "as many rows of an image": ([rows, rows], [taps[:2], None], 2),
        "move parts with": ([rows, rows.to("meta")], [None, None], 2),
        "move taps with": ([rows], [taps.to("meta")], 2),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            join_rows(*arguments)
    with pytest.raises(TypeError, match="one dtype"):
        join_rows([rows, rows.double()], [None, None], 2)
    with pytest.raises(TypeError, match="taps must be int32"):
        join_rows([rows], [taps.long()], 2)
