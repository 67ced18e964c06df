"""sum_rows: the sum of two maps of bytes, which stand for different numbers."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.quantization import Affine, Rescaling
from accel.kernels.sum_rows import sum_rows
from accel.ops import use_backend

BATCH = 2
OF, TO = (Affine(0.05, 128), Affine(0.11, 3)), Affine(0.09, 20)


def drawn(count, others, windows, channels):
    generator = torch.Generator().manual_seed(channels)
    rows = [
        torch.randint(0, 256, (BATCH * rows, channels), generator=generator, dtype=torch.uint8)
        for rows in (count, others)
    ]
    taps = [
        None if rows == windows else torch.randint(rows, (windows,), generator=generator, dtype=torch.int32)
        for rows in (count, others)
    ]
    return *rows, *taps


def added(first, second, taps, other_taps, low=0, high=255):
    """In steps of the result, which float64 holds exactly; each product and the sum rounded to fp32."""
    total = torch.zeros((), dtype=torch.float32)
    for rows, tap, of in ((first, taps, OF[0]), (second, other_taps, OF[1])):
        image = rows.view(BATCH, -1, rows.shape[1]).double() - of.zero_point
        steps = image if tap is None else image[:, tap.long()]
        total = total + (steps * float(torch.tensor(of.scale / TO.scale, dtype=torch.float32))).float()
    return (total.round() + TO.zero_point).clamp(low, high).to(torch.uint8).flatten(0, 1)


@pytest.mark.parametrize("bounds", [(0, 255), (20, 255), (20, 87)], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (7, 7, 7, 3), (30, 9, 30, 64), (5, 8, 40, 17), (900, 900, 900, 33)], ids=str
)
def test_it_is_the_sum(isa, shape, bounds):
    given = drawn(*shape)
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        for backend in ("cpu", "reference"):
            with use_backend(backend):
                found = sum_rows(*given, BATCH, Rescaling.of(OF, TO, bounds))
            assert torch.equal(found, added(*given, *bounds))
        torch.set_num_threads(before)


def test_a_sum_is_the_nearest_byte_of_the_numbers(isa):
    first, second, *taps = drawn(30, 9, 30, 64)
    numbers = (
        OF[0].dequantize(first).view(BATCH, 30, 64) + OF[1].dequantize(second).view(BATCH, 9, 64)[:, taps[1].long()]
    )
    steps = sum_rows(first, second, *taps, BATCH, Rescaling.of(OF, TO)).int() - TO.quantize(numbers.flatten(0, 1)).int()
    assert steps.abs().max() <= 1 and (steps != 0).float().mean() < 1e-2


def test_nothing_opcheck_and_compile():
    first, second, *taps = drawn(30, 9, 30, 5)
    rescaling = Rescaling.of(OF, TO)
    assert sum_rows(first[:0], second[:0], None, None, 0, rescaling).shape == (0, 5)
    assert sum_rows(first[:, :0], second[:, :0], *taps, BATCH, rescaling).shape == (60, 0)
    arguments = (first, second, *taps, BATCH, *rescaling.numbers)
    assert set(torch.library.opcheck(torch.ops.accel.sum_rows.default, arguments).values()) == {"SUCCESS"}
    compiled = torch.compile(lambda *a: sum_rows(*a, BATCH, rescaling) // 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(first, second, *taps), added(first, second, *taps) // 2)


def test_bad_arguments_are_named():
    first, second, taps, other_taps = drawn(30, 9, 30, 5)
    rescaling = Rescaling.of(OF, TO)
    bad = {
        r"second must be \[2 \* P, C\], of one C": (first, second[:, :2], taps, other_taps, 2, rescaling),
        r"first must be \[7 \* P, C\]": (first, second, taps, other_taps, 7, rescaling),
        "as many rows of an image, got 30 and 9": (first, second, None, None, 2, rescaling),
        "2 terms is needed, got 1": (first, second, taps, other_taps, 2, Rescaling.of(OF[:1], TO)),
        "move second with": (first, second.to("meta"), taps, other_taps, 2, rescaling),
        "move taps with": (first, second, taps, other_taps.to("meta"), 2, rescaling),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            sum_rows(*arguments)
    with pytest.raises(TypeError, match=r"second must be torch.uint8, got torch.float32: quantize it"):
        sum_rows(first, second.float(), taps, other_taps, 2, rescaling)
    with pytest.raises(TypeError, match="taps must be int32"):
        sum_rows(first, second, taps, other_taps.long(), 2, rescaling)
