"""quantized_conv2d: exact sums and the same bytes on every instruction set, against F.conv2d on integers in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from accel.kernels.positions import PositionSet, output_size
from accel.ops import Affine, Requantization, interpolate, quantized_conv2d, use_backend
from accel.tests.drawn_sets import draw_set
from accel.tests.kernels.named import PAD

ZEROS = (0, 128, 255)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What is allocated without filling starts as NaN, or 171, so that an element that is never written shows."""
    empty = torch.empty

    def poison(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        if tensor.dtype is torch.uint8:
            return tensor.fill_(171)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poison)


@dataclasses.dataclass(frozen=True)
class Case:
    n: int = 2
    c: int = 5
    k: int = 6
    size: tuple = (7, 6)
    kernel: tuple = (3, 3)
    stride: tuple = (1, 1)
    padding: tuple = (1, 1, 1, 1)
    dilation: tuple = (1, 1)
    groups: int = 1
    mode: str = "zeros"
    keep: float = 0.5

    def tensors(self, seed=0):
        """(x, weight, bias, weight scale): bytes of all values, the extreme ones often."""
        g = torch.Generator().manual_seed(seed)
        x = torch.randint(-150, 406, (self.n, self.c, *self.size), generator=g).clamp(0, 255).to(torch.uint8)
        shape = (self.k, self.c // self.groups, *self.kernel)
        weight = torch.randint(-180, 180, shape, generator=g).clamp(-128, 127).to(torch.int8)
        return x, weight, torch.randn(self.k, generator=g), torch.rand(self.k, generator=g) / 8 + 0.01

    @property
    def out_size(self):
        return output_size(self.size, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def set(self):
        height, width = self.out_size
        return draw_set(height, width, max(1, round(self.keep * height * width)), torch.Generator().manual_seed(3))

    @property
    def geometry(self):
        return {
            **{"stride": self.stride, "padding": self.padding, "dilation": self.dilation},
            **{"groups": self.groups, "padding_mode": self.mode},
        }

    def sums(self, x, weight, zero):
        """int64 [N, K, H, W]: float64 holds such integers exactly, in any order of summation."""
        top, bottom, left, right = self.padding
        padded = F.pad(x.double() - zero, (left, right, top, bottom), mode=PAD[self.mode])
        return F.conv2d(padded, weight.double(), None, self.stride, 0, self.dilation, self.groups).long()


CASES = {
    "plain": Case(),
    "one pixel": Case(size=(1, 1), kernel=(1, 1), padding=(0,) * 4, keep=1.0, c=1, k=1),
    "64 to 64": Case(c=64, k=64, size=(9, 8)),
    "tails of 1, 2 and 3": Case(c=33, k=70, size=(5, 7)),
    "tail of 2": Case(c=18, k=19),
    "tail of 3": Case(c=67, k=163, n=1),
    "three channels": Case(c=3, k=16, size=(13, 11), stride=(2, 2), kernel=(7, 7), padding=(3,) * 4),
    "one channel": Case(c=1, k=8),
    "1x1": Case(c=24, k=48, kernel=(1, 1), padding=(0,) * 4),
    "1x1 stride 2": Case(c=24, k=33, kernel=(1, 1), stride=(2, 2), padding=(0,) * 4),
    "5x3, strided": Case(c=16, k=24, kernel=(5, 3), stride=(3, 2), padding=(2, 2, 1, 1), size=(13, 11)),
    "dilated": Case(c=12, k=9, dilation=(2, 3), padding=(2, 2, 3, 3), size=(9, 9)),
    "lopsided padding": Case(padding=(0, 2, 3, 1)),
    "reflect": Case(mode="reflect", padding=(1, 1, 2, 2), kernel=(3, 5)),
    "replicate": Case(mode="replicate", padding=(2, 1, 0, 3)),
    "circular": Case(mode="circular", c=17),
    "groups": Case(c=24, k=36, groups=4),
    "groups of 3": Case(c=9, k=6, groups=3),
    "wide groups": Case(c=32, k=160, groups=2, n=1),
    "depthwise": Case(c=41, k=41, groups=41),
    "depthwise, wide": Case(c=96, k=96, groups=96, kernel=(5, 5), padding=(2,) * 4),
    "channel multiplier": Case(c=6, k=18, groups=6),
    "chunked taps": Case(n=1, c=257, k=64, size=(4, 4), kernel=(7, 7), padding=(3,) * 4, keep=1.0),
    "chunked channels": Case(n=1, c=20003, k=64, size=(2, 2), kernel=(1, 1), padding=(0,) * 4, keep=1.0),
    "one position": Case(c=16, k=16, keep=0.0),
    "many rows": Case(c=8, k=8, size=(61, 67)),
}  # fmt: skip


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def rows_at(dense, positions):
    """[N, K, H, W] -> [N * P, K]."""
    return dense.flatten(2)[:, :, positions.positions.long()].transpose(1, 2).flatten(0, 1)


def filled(dense, positions):
    source = positions.positions.long()[positions.nearest.long()]
    return dense.flatten(2)[:, :, source].view(dense.shape)


def run(case, x, weight, requantization, positions, backend="cpu", **options):
    with use_backend(backend):
        return quantized_conv2d(x, weight, requantization, positions, **case.geometry, **options)


def unscaled(channels, zero):
    """Sums as they are, in fp32."""
    return Requantization.of(Affine(1.0, zero), torch.ones(channels))


@pytest.mark.parametrize("zero", ZEROS)
def test_sums_are_those_of_integers(isa, case, zero):
    x, weight, _, _ = case.tensors()
    sums = rows_at(case.sums(x, weight, zero), case.set)
    got = run(case, x, weight, unscaled(case.k, zero), case.set, compact=True)
    assert got.dtype == torch.float32 and torch.equal(got, sums.float())


@pytest.mark.parametrize("value", [-128, -127, 127])
@pytest.mark.parametrize("channels", [4, 64, 103])
def test_nothing_saturates(isa, value, channels):
    """Sums of extreme values that pass far beyond 16 and 24 bits, then cancel but for a small number."""
    case = Case(n=1, c=channels, k=20, size=(6, 6))
    x = torch.full((1, channels, 6, 6), 255, dtype=torch.uint8)
    weight = torch.full((20, channels, 3, 3), value, dtype=torch.int8)
    full = PositionSet.full(6, 6)
    for zero in ZEROS:
        assert torch.equal(
            run(case, x, weight, unscaled(20, zero), full), case.sums(x, weight, zero).float().contiguous()
        )
    weight[:, :, 1] = torch.tensor([1, 2, 3], dtype=torch.int8)
    weight[:, :, 2] = -weight[:, :, 0].clamp(min=-127)
    assert torch.equal(run(case, x, weight, unscaled(20, 0), full), case.sums(x, weight, 0).float())


def byte_sides(case, zero, low_bound):
    """(x, weight, requantization, residual) with a requantized output that reaches its bounds on both sides."""
    x, weight, bias, scale = case.tensors(seed=zero)
    out = Affine(float(case.sums(x, weight, zero).double().std()) * 0.02 / 40, 255 - zero)
    requantization = Requantization.of(
        Affine(0.3, zero), scale, bias, out, bounds=(low_bound, 250), residual=Affine(0.7 * out.scale, zero)
    )
    g = torch.Generator().manual_seed(1)
    residual = torch.randint(0, 256, (case.n, case.k, *case.out_size), generator=g, dtype=torch.uint8)
    return x, weight, requantization, residual


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("zero", ZEROS)
def test_bytes_are_those_of_the_reference(isa, case, zero, compact):
    x, weight, requantization, residual = byte_sides(case, zero, 3)
    residual = rows_at(residual, case.set) if compact else residual
    for added in (None, residual):
        sides = [
            run(case, x, weight, requantization, case.set, backend, compact=compact, residual=added)
            for backend in ("cpu", "reference")
        ]
        assert sides[0].dtype == torch.uint8 and torch.equal(*sides)
        assert compact or sides[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_numbers_are_added_to_bytes(isa, case, compact):
    x, weight, requantization, residual = byte_sides(case, 128, 3)
    share = requantization.levels.residual_multiplier
    numbers = (residual.float() - 128) / 3
    given = rows_at(numbers, case.set) if compact else numbers
    levels = requantization.levels._replace(residual_zero=0)
    requantization = dataclasses.replace(requantization, levels=levels)
    found, expected = (
        run(case, x, weight, requantization, case.set, backend, compact=compact, residual=given)
        for backend in ("cpu", "reference")
    )
    assert found.dtype == torch.uint8 and torch.equal(found, expected)
    y = case.sums(x, weight, 128).to(torch.float32) * requantization.multiplier[:, None, None]
    y = filled(y + requantization.offset[:, None, None], case.set) + numbers * torch.tensor(share)
    whole = (torch.round(y) + levels.out_zero).clamp(3, 250).to(torch.uint8)
    assert torch.equal(found, rows_at(whole, case.set) if compact else whole)


@pytest.mark.parametrize("odd", [float("nan"), -float("inf")])
def test_a_residual_that_is_not_finite_is_refused(isa, odd):
    case = CASES["tail of 2"]
    x, weight, requantization, residual = byte_sides(case, 128, 3)
    requantization = dataclasses.replace(requantization, levels=requantization.levels._replace(residual_zero=0))
    residual = residual.float()
    residual[1, 18, 6, 5] = odd
    for backend in ("cpu", "reference"):
        with pytest.raises(ValueError, match="NaN or an infinity"):
            run(case, x, weight, requantization, case.set, backend, residual=residual)


def test_the_reference_is_the_formula(case):
    for zero in ZEROS:
        x, weight, requantization, residual = byte_sides(case, zero, 3)
        assert requantization.levels.low == 3
        y = case.sums(x, weight, zero).to(torch.float32) * requantization.multiplier[:, None, None]
        y = filled(y + requantization.offset[:, None, None], case.set)
        share = (residual.to(torch.float32) - zero) * torch.tensor(requantization.levels.residual_multiplier)
        expected = (torch.round(y + share) + (255 - zero)).clamp(3, 250)
        got = run(case, x, weight, requantization, case.set, "reference", residual=residual)
        assert torch.equal(got, expected.to(torch.uint8)) and got.unique().numel() > min(got.numel(), 20) // 4


def test_halves_go_to_even(isa):
    x = torch.arange(0, 256, dtype=torch.uint8).view(1, 1, 16, 16)
    weight = torch.ones(1, 1, 1, 1, dtype=torch.int8)
    requantization = Requantization.of(Affine(1.0, 128), torch.ones(1), None, Affine(2.0, 101))
    got = quantized_conv2d(x, weight, requantization, PositionSet.full(16, 16)).flatten().tolist()
    assert got == [round((q - 128) / 2) + 101 for q in range(256)]  # Python's round has halves to even


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_fp32_output_is_that_of_the_reference(isa, activation, compact):
    for case in (CASES["tail of 2"], CASES["depthwise"], CASES["64 to 64"]):
        x, weight, bias, scale = case.tensors()
        requantization = Requantization.of(Affine(0.02, 130), scale, bias)
        residual = torch.randn(case.n, case.k, *case.out_size, generator=torch.Generator().manual_seed(2))
        residual = rows_at(residual, case.set) if compact else residual
        options = {"activation": activation, "residual": residual, "compact": compact}
        sides = [run(case, x, weight, requantization, case.set, b, **options) for b in ("cpu", "reference")]
        assert torch.equal(*sides)


def test_a_full_permuted_set_is_dense_and_a_subset_its_rows(isa, case):
    height, width = case.out_size
    x, weight, requantization, _ = byte_sides(case, 128, 0)
    dense = run(case, x, weight, requantization, PositionSet.full(height, width))
    permuted = draw_set(height, width, height * width, torch.Generator().manual_seed(4))
    assert torch.equal(run(case, x, weight, requantization, permuted), dense)
    assert torch.equal(run(case, x, weight, requantization, case.set, compact=True), rows_at(dense, case.set))


@pytest.mark.parametrize("name", ["64 to 64", "many rows", "depthwise", "chunked taps"])
def test_the_threads_change_nothing(isa, name):
    case, before, found = CASES[name], torch.get_num_threads(), []
    x, weight, requantization, residual = byte_sides(case, 128, 0)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(run(case, x, weight, requantization, case.set, residual=residual))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["plain", "64 to 64", "groups", "depthwise", "1x1", "reflect"])
def test_a_compact_input_is_read_through_its_set(isa, name):
    case = CASES[name]
    x, weight, requantization, _ = byte_sides(case, 128, 0)
    source = draw_set(*case.size, max(1, x[0, 0].numel() // 2), torch.Generator().manual_seed(5))
    rows = rows_at(x, source)
    expected = run(case, filled(x, source), weight, requantization, case.set)
    assert torch.equal(run(case, rows, weight, requantization, case.set, source=source), expected)


def test_layouts_and_an_empty_batch(isa):
    case = CASES["tail of 2"]
    x, weight, requantization, _ = byte_sides(case, 128, 0)
    expected = run(case, x, weight, requantization, case.set)
    for given in (
        x.to(memory_format=torch.channels_last),
        x[:, :, :, ::1].transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(
            run(case, given, weight.to(memory_format=torch.channels_last), requantization, case.set), expected
        )
    assert run(case, x[:0], weight, requantization, case.set).shape == (0, *expected.shape[1:])


def test_changed_weights_are_packed_again(isa):
    case = CASES["plain"]
    x, weight, requantization, _ = byte_sides(case, 128, 0)
    run(case, x, weight, requantization, case.set)
    weight.neg_().clamp_(-100, 90)
    for zero in (128, 5):  # of another input, at the same weights
        again = dataclasses.replace(requantization, levels=requantization.levels._replace(x_zero=zero))
        sides = [run(case, x, weight, again, case.set, backend) for backend in ("cpu", "reference")]
        assert torch.equal(*sides)


def test_the_largest_sum_of_all(isa):
    """65793 terms of 255 * -128, and their zero point: as near to 2**31 as sums may come."""
    case = Case(n=1, c=65793, k=1, size=(1, 1), kernel=(1, 1), padding=(0,) * 4)
    x = torch.full((1, 65793, 1, 1), 255, dtype=torch.uint8)
    weight = torch.full((1, 65793, 1, 1), -128, dtype=torch.int8)
    for zero, expected in ((0, -65793 * 255 * 128), (255, 0), (254, -65793 * 128)):
        assert run(case, x, weight, unscaled(1, zero), PositionSet.full(1, 1)).item() == float(
            torch.tensor(expected, dtype=torch.int64).float()
        )
    with pytest.raises(ValueError, match="sums of more than 65793 terms overflow 32 bits, got 65794"):
        run(case, F.pad(x, (0,) * 5 + (1,)), F.pad(weight, (0,) * 5 + (1,)), unscaled(1, 0), PositionSet.full(1, 1))


def test_opcheck_compile_and_the_counters():
    case = CASES["groups"]
    x, weight, requantization, residual = byte_sides(case, 128, 0)
    sets, (offset, multiplier) = (
        (case.set.positions, case.set.nearest, None),
        (requantization.offset, requantization.multiplier),
    )
    geometry = ((case.n, *case.size), case.out_size, case.stride, case.padding, case.dilation, case.groups, case.mode)
    for compact, levels in ((False, requantization.levels), (True, requantization.levels._replace(out_zero=None))):
        given = None if compact else residual
        arguments = (x, weight, offset, *sets, given, *geometry, "none", compact, multiplier, *levels)
        results = torch.library.opcheck(torch.ops.accel.quantized_conv2d.default, arguments)
        assert set(results.values()) == {"SUCCESS"}
    expected = run(case, x, weight, requantization, case.set)
    where, options = case.set, case.geometry
    compiled = torch.compile(
        lambda x: quantized_conv2d(x, weight, requantization, where, **options),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(x), expected)
    with FlopCounterMode(display=False) as counter:
        quantized_conv2d(x, weight, requantization, where, **options)
    assert counter.get_total_flops() == 2 * case.n * len(case.set) * weight.numel()


X = Affine(1.0, 0)


def test_arguments_that_do_not_fit_are_refused():
    case = CASES["plain"]
    x, weight, requantization, residual = byte_sides(case, 128, 0)
    plain, fp32 = Requantization.of(X, torch.ones(6), None, X), Requantization.of(X, torch.ones(6))
    for call, error, message in (
        (lambda: run(case, x.float(), weight, plain, case.set), TypeError, "x must be torch.uint8, got torch.float32"),
        (
            lambda: run(case, x, weight.float(), plain, case.set),
            TypeError,
            "weight must be torch.int8, got torch.float32",
        ),
        (lambda: run(case, x, x, plain, case.set), TypeError, "weight must be torch.int8, got torch.uint8"),
        (
            lambda: run(case, x, weight, requantization, case.set, residual=residual.double()),
            TypeError,
            "residual must be torch.uint8, got torch.float64",
        ),
        (
            lambda: run(case, x, weight, requantization, case.set, residual=residual.float()),
            ValueError,
            "a residual of numbers has no zero point: give residual=NUMBERS to Requantization.of",
        ),
        (
            lambda: run(case, x, weight, fp32, case.set, residual=residual),
            TypeError,
            "residual must be torch.float32, got torch.uint8",
        ),
        (
            lambda: run(case, x, weight, plain, case.set, residual=residual),
            ValueError,
            "nothing is known of the residual's bytes: give residual= to Requantization.of",
        ),
        (
            lambda: run(case, x, weight, plain, case.set, activation="relu"),
            ValueError,
            "the activation of bytes is their bounds, got activation='relu': give bounds=",
        ),
        (lambda: run(case, x, weight, fp32, case.set, activation="gelu"), ValueError, "activation must be one of"),
        (
            lambda: run(case, x, weight[:4], plain, case.set),
            ValueError,
            "weight has 4 output channels, the requantization 6",
        ),
        (lambda: run(case, x[:, :3], weight, plain, case.set), ValueError, "expects 5 input channels"),
        (lambda: run(case, x[0], weight, plain, case.set), ValueError, r"x must be \[N, C, H, W\]"),
        (
            lambda: run(case, x, weight, plain, PositionSet.full(3, 3)),
            ValueError,
            "the output is 7x6, but the position set is for 3x3",
        ),
        (
            lambda: run(case, x, weight.to("meta"), plain, case.set),
            ValueError,
            "x is on cpu but weight is on meta: move weight with",
        ),
    ):
        with pytest.raises(error, match=f"quantized_conv2d: .*{message}") as refused:
            call()
        assert "\n" not in str(refused.value)


def test_bytes_and_numbers_there_and_back():
    affine = Affine(0.25, 100)
    q = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(affine.quantize(affine.dequantize(q)), q)
    assert affine.quantize(torch.tensor([-100.0, 100.0, 0.125, 0.375])).tolist() == [0, 255, 100, 102]
    rows = torch.arange(12, dtype=torch.uint8).view(6, 2)
    assert interpolate(rows, PositionSet.full(2, 3)).dtype == torch.uint8
