"""The C engine, forced through every instruction set, against F.conv2d and gathers of it."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F

binding = pytest.importorskip("accel.kernels.cpu.binding", reason="the C engine was not built", exc_type=ImportError)

from accel.kernels.cpu import _engine  # noqa: E402
from accel.kernels.geometry import CallGeometry  # noqa: E402
from accel.kernels.positions import PositionSet, output_size  # noqa: E402
from accel.tests.kernels.named import ACTIVATIONS, PAD  # noqa: E402


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Every buffer the engine allocates starts as NaN, so that an element that is never written shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))


def poison(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_set(height: int, width: int, keep: float, seed: int = 0) -> PositionSet:
    """A random set in random order, with a random stand-in for every position that is left out."""
    g = seeded(seed)
    count = max(1, round(keep * height * width))
    positions = torch.randperm(height * width, generator=g)[:count].to(torch.int32)
    nearest = torch.randint(count, (height * width,), generator=g, dtype=torch.int32)
    nearest[positions.long()] = torch.arange(count, dtype=torch.int32)
    return PositionSet(positions, nearest, height, width)


def padded_conv(x, weight, bias, stride, padding, dilation, groups, padding_mode):
    top, bottom, left, right = padding
    x = F.pad(x, (left, right, top, bottom), mode=PAD[padding_mode])
    return F.conv2d(x, weight, bias, stride, 0, dilation, groups)


class Case:
    """A drawn problem and what F.conv2d makes of it."""

    def __init__(self, n, c, k, size, kernel, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1,
                 mode="zeros", keep=0.5, activation="none", seed=0):  # fmt: skip
        g = seeded(seed)
        self.x = torch.randn(n, c, *size, generator=g)
        self.weight = torch.randn(k, c // groups, *kernel, generator=g)
        self.bias = torch.randn(k, generator=g)
        self.out_size = output_size(size, kernel, stride, padding, dilation)
        self.set = random_set(*self.out_size, keep, seed)
        self.residual = torch.randn(n, k, *self.out_size, generator=g)
        self.geometry = (stride, padding, dilation, groups, mode)
        self.activation = activation

    def run(self, *, bias=True, residual=False, compact=False, x=None, source=None, activation=None):
        x = self.x if x is None else x
        batch = self.x.shape[0] if source is not None else x.shape[0]
        source_nearest = None if source is None else source.nearest
        rest = self.rows_of(self.residual) if compact else self.residual
        geometry = CallGeometry((batch, *self.x.shape[2:]), self.out_size, *self.geometry)
        return binding.perforated_conv2d(
            x, self.weight, self.bias if bias else None, self.set.positions, self.set.nearest,
            source_nearest, rest if residual else None, geometry, activation or self.activation, compact,
        )  # fmt: skip

    def expected(self, *, bias=True, residual=False, compact=False, activation=None):
        dense = padded_conv(self.x.double(), self.weight.double(), self.bias.double() if bias else None, *self.geometry)
        n, k = dense.shape[:2]
        added, out = self.residual, self.rows_of(dense)
        if compact:
            added = self.rows_of(added)
        else:
            out = out.view(n, -1, k)[:, self.set.nearest.long()].transpose(1, 2).reshape(dense.shape)
        return ACTIVATIONS[activation or self.activation](out + added if residual else out)

    def rows_of(self, dense):
        return dense.flatten(2)[:, :, self.set.positions.long()].transpose(1, 2).flatten(0, 1)


def assert_close(got, expected, tolerance=1e-6):
    assert got.shape == expected.shape
    error = (got.double() - expected).norm() / expected.norm().clamp_min(1e-12)
    assert error < tolerance, f"relative error {error:.2e}"


def depthwise(c, **rest) -> Case:
    return Case(n=2, c=c, k=c, groups=c, **rest)


CASES = {
    "3x3": partial(Case, n=2, c=16, k=64, size=(9, 11), kernel=(3, 3), padding=(1, 1, 1, 1)),
    "one output": partial(Case, n=1, c=8, k=19, size=(3, 3), kernel=(3, 3), keep=1.0),
    "one pixel": partial(Case, n=1, c=33, k=7, size=(1, 1), kernel=(1, 1), keep=1.0),
    "odd channels": partial(Case, n=3, c=13, k=37, size=(7, 5), kernel=(3, 3), padding=(1, 1, 1, 1), keep=0.3),
    "many panels": partial(Case, n=1, c=9, k=163, size=(6, 6), kernel=(3, 3), padding=(1, 1, 1, 1)),
    "1x1": partial(Case, n=2, c=32, k=48, size=(7, 7), kernel=(1, 1), keep=0.4),
    "1x1 stride 2": partial(Case, n=2, c=24, k=32, size=(7, 7), kernel=(1, 1), stride=(2, 2)),
    "first layer": partial(Case, n=2, c=3, k=16, size=(17, 13), kernel=(3, 3), padding=(1, 1, 1, 1)),
    "alexnet's first": partial(Case, n=1, c=3, k=96, size=(31, 35), kernel=(11, 11), stride=(4, 4), padding=(2,) * 4),
    "grey, 7x7": partial(Case, n=2, c=1, k=8, size=(19, 23), kernel=(7, 7), stride=(2, 2), padding=(3, 3, 3, 3)),
    "4 channels, dilated": partial(Case, n=1, c=4, k=8, size=(9, 9), kernel=(3, 3), dilation=(2, 2), padding=(2,) * 4),
    "rows dilated only": partial(Case, n=1, c=4, k=8, size=(12, 9), kernel=(3, 3), dilation=(3, 1), padding=(2,) * 4),
    "dilated": partial(Case, n=2, c=16, k=32, size=(11, 11), kernel=(3, 3), dilation=(2, 2), padding=(2, 2, 2, 2)),
    "strided": partial(Case, n=2, c=16, k=24, size=(13, 11), kernel=(5, 3), stride=(3, 2), padding=(2, 2, 1, 1)),
    "lopsided padding": partial(Case, n=1, c=16, k=16, size=(8, 6), kernel=(3, 3), padding=(0, 2, 1, 0)),
    "reflect": partial(Case, n=2, c=16, k=16, size=(7, 9), kernel=(3, 5), padding=(1, 1, 2, 2), mode="reflect"),
    "replicate": partial(Case, n=2, c=3, k=16, size=(7, 9), kernel=(3, 5), padding=(1, 1, 2, 2), mode="replicate"),
    "circular": partial(Case, n=2, c=16, k=16, size=(7, 9), kernel=(3, 5), padding=(1, 1, 2, 2), mode="circular"),
    "groups": partial(Case, n=2, c=24, k=36, size=(9, 9), kernel=(3, 3), padding=(1, 1, 1, 1), groups=4),
    "wide groups": partial(Case, n=1, c=64, k=160, size=(6, 6), kernel=(3, 3), padding=(1, 1, 1, 1), groups=2),
    "depthwise": partial(Case, n=2, c=41, k=41, size=(9, 9), kernel=(3, 3), padding=(1, 1, 1, 1), groups=41),
    "depthwise, wide": partial(Case, n=2, c=96, k=96, size=(9, 7), kernel=(5, 5), padding=(2, 2, 2, 2), groups=96),
    "depthwise, bands": partial(depthwise, c=70, size=(27, 25), kernel=(3, 3), padding=(1,) * 4, keep=0.9),
    "depthwise, strided": partial(depthwise, c=24, size=(31, 18), kernel=(5, 3), padding=(2, 2, 1, 1), stride=(2, 2)),
    "depthwise, all border": partial(depthwise, c=19, size=(2, 3), kernel=(5, 5), padding=(2,) * 4, keep=1.0),
    "depthwise, images together": partial(depthwise, c=35, size=(5, 7), kernel=(5, 5), padding=(2,) * 4, keep=0.6),
    "narrow, bands": partial(Case, n=2, c=21, k=3, size=(37, 41), kernel=(3, 3), padding=(1,) * 4, keep=0.7),
    "narrow, dilated": partial(Case, n=2, c=16, k=4, size=(19, 23), kernel=(3, 5), dilation=(2, 2), padding=(2,) * 4),
    "narrow, strided": partial(Case, n=3, c=3, k=2, size=(31, 18), kernel=(5, 3), stride=(2, 2), padding=(2, 2, 1, 1)),
    "narrow, images together": partial(Case, n=4, c=9, k=4, size=(8, 8), kernel=(3, 3), padding=(1,) * 4, keep=0.5),
    "narrow, one row of kernel": partial(Case, n=1, c=8, k=4, size=(9, 30), kernel=(1, 7), padding=(0, 0, 3, 3)),
    "channel multiplier": partial(Case, n=1, c=6, k=18, size=(9, 9), kernel=(3, 3), padding=(1, 1, 1, 1), groups=6),
    "chunked taps": partial(Case, n=1, c=256, k=64, size=(6, 6), kernel=(5, 5), padding=(2, 2, 2, 2)),
    "chunked channels": partial(Case, n=1, c=5001, k=64, size=(4, 5), kernel=(1, 1), keep=1.0),
    "one kept position": partial(Case, n=3, c=16, k=16, size=(7, 7), kernel=(3, 3), padding=(1, 1, 1, 1), keep=0.0),
    "prime sizes": partial(Case, n=1, c=17, k=61, size=(31, 29), kernel=(3, 3), padding=(1, 1, 1, 1), keep=0.25),
}  # fmt: skip


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("name", CASES)
def test_matches_gathered_conv2d(isa, name, compact):
    case = CASES[name]()
    assert_close(case.run(compact=compact), case.expected(compact=compact), 2e-6)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("compact", [False, True])
def test_epilogue(isa, activation, residual, compact):
    case = Case(n=2, c=16, k=40, size=(9, 8), kernel=(3, 3), padding=(1, 1, 1, 1), keep=0.4)
    for bias in (False, True):
        options = {"bias": bias, "residual": residual, "compact": compact, "activation": activation}
        assert_close(case.run(**options), case.expected(**options))


def test_nan_and_infinity_pass_the_activations(isa):
    """What torch's activations make of the special values, in every lane of a row."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, -1.0, 7.0, -4.0])
    x = special.repeat(5).view(1, 40, 1, 1)
    where = torch.zeros(1, dtype=torch.int32)
    for name, act in ACTIVATIONS.items():
        got = binding.perforated_conv2d(
            x, torch.ones(40, 1, 1, 1), None, where, where, None, None,
            CallGeometry((1, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 40), name, True,
        )  # fmt: skip
        torch.testing.assert_close(got, act(x.flatten(1)), equal_nan=True)


def test_a_depthwise_kernel_of_many_taps(isa):
    """4225 taps: more than the weights of ordinary convolutions that are taken at a time."""
    x, weight = torch.randn(1, 64, 3, 4, generator=seeded(1)), torch.randn(64, 1, 65, 65, generator=seeded(2))
    positions, counts = torch.arange(12, dtype=torch.int32), torch.tensor([12], dtype=torch.int32)
    geometry = CallGeometry((1, 3, 4), (3, 4), (1, 1), (32,) * 4, (1, 1), 64)
    got = binding.masked_conv2d(x, weight, None, positions, counts, None, None, geometry, "none")
    expected = F.conv2d(x.double(), weight.double(), padding=32, groups=64)
    assert_close(got, expected.permute(0, 2, 3, 1).reshape(12, 64))


def test_permuted_full_set_is_conv2d(isa):
    case = Case(n=2, c=64, k=64, size=(14, 14), kernel=(3, 3), padding=(1, 1, 1, 1), keep=1.0)
    assert not torch.equal(case.set.positions, torch.arange(196, dtype=torch.int32))
    assert_close(case.run(), padded_conv(case.x, case.weight, case.bias, *case.geometry).double(), 1e-5)


def test_any_memory_format(isa):
    case = Case(n=2, c=16, k=16, size=(9, 8), kernel=(3, 3), padding=(1, 1, 1, 1))
    few = Case(n=2, c=3, k=16, size=(9, 8), kernel=(3, 3), padding=(1, 1, 1, 1))
    for one in (case, few):
        expected = one.expected()
        wide = torch.zeros(2, one.x.shape[1], 9, 16)
        wide[..., ::2] = one.x
        for x in (one.x, one.x.contiguous(memory_format=torch.channels_last), wide[..., ::2],
                  one.x.transpose(2, 3).contiguous().transpose(2, 3)):  # fmt: skip
            out = one.run(x=x)
            assert out.is_contiguous(memory_format=torch.channels_last)
            assert_close(out, expected)


def test_one_column_with_a_meaningless_stride(isa):
    case = Case(n=2, c=3, k=16, size=(9, 1), kernel=(3, 3), padding=(1, 1, 1, 1))
    odd = case.x.as_strided(case.x.shape, (27, 9, 1, 5))  # 5 is never used: there is one column
    assert_close(case.run(x=odd), case.expected())


def test_compact_source(isa):
    """A second layer that reads the compact rows of a first one equals one that reads the interpolated map."""
    first = Case(n=3, c=8, k=24, size=(9, 8), kernel=(3, 3), padding=(1, 1, 1, 1), keep=0.4)
    rows = first.run(compact=True)
    for kernel, padding, stride in (((3, 3), (1, 1, 1, 1), (2, 1)), ((1, 1), (0, 0, 0, 0), (1, 1))):
        second = Case(n=3, c=24, k=20, size=(9, 8), kernel=kernel, padding=padding, stride=stride, seed=1)
        second.x = first.run()
        got = binding.perforated_conv2d(
            rows, second.weight, second.bias, second.set.positions, second.set.nearest, first.set.nearest, None,
            CallGeometry((3, 9, 8), second.out_size, *second.geometry), "relu", True,
        )  # fmt: skip
        assert_close(got, second.expected(compact=True, activation="relu"))


MANY_ITEMS = ("many panels", "prime sizes", "depthwise", "depthwise, bands", "groups", "chunked taps", "first layer")


@pytest.mark.parametrize("name", MANY_ITEMS)
def test_thread_count_does_not_change_a_bit(isa, name):
    case = CASES[name]()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(case.run())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("kind", ["depthwise", "few channels"])
@pytest.mark.parametrize("seed", range(30))
def test_drawn(isa, kind, seed):
    """Ragged channels, strides, borders of every kind, rows in any order, read from a map or from compact rows."""
    rng = random.Random(seed)
    channels, outputs, groups = rng.randint(1, 7), rng.randint(1, 90), 1
    if kind == "depthwise":
        channels = outputs = groups = rng.randint(2, 150)
    kernel = rng.choice((1, 3, 5, 7)), rng.choice((1, 3, 5))
    size, stride, dilation = [
        (rng.randint(low, high), rng.randint(low, high)) for low, high in ((13, 29), (1, 3), (1, 2))
    ]
    padding, keep = tuple(rng.randint(0, 4) for _ in range(4)), rng.choice((0.1, 0.5, 1.0))
    mode, activation = rng.choice(list(PAD)), rng.choice(list(ACTIVATIONS))
    case = Case(rng.randint(1, 3), channels, outputs, size, kernel, stride, padding, dilation, groups, mode, keep,
                activation, seed)  # fmt: skip
    x, source = case.x, None
    if rng.random() < 0.4:
        source = random_set(*size, 0.5, seed)
        x = case.x.flatten(2)[:, :, source.positions.long()].transpose(1, 2).flatten(0, 1).contiguous()
        case.x = case.x.flatten(2)[:, :, source.positions[source.nearest.long()].long()].view(case.x.shape)
    for compact in (False, True):
        for residual in (False, True):
            got = case.run(compact=compact, residual=residual, x=x, source=source)
            assert_close(got, case.expected(compact=compact, residual=residual), 2e-6)


def test_no_images_and_no_work(isa):
    case = Case(n=2, c=8, k=4, size=(5, 5), kernel=(3, 3))
    assert case.run(x=case.x[:0]).shape == (0, 4, 3, 3)
    assert case.run(x=case.x[:0], compact=True).shape == (0, 4)


def test_interpolate_and_its_adjoint():
    where = random_set(7, 9, 0.3)
    rows = torch.randn(3 * len(where), 5, generator=seeded(0))
    dense = binding.interpolate(rows, where.nearest, 3, (7, 9))
    expected = rows.view(3, -1, 5)[:, where.nearest.long()].view(3, 7, 9, 5).permute(0, 3, 1, 2)
    assert torch.equal(dense, expected) and dense.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(3, 5, 7, 9, generator=seeded(1))
    back = binding.interpolate_backward(grad, where.nearest, len(where))
    summed = torch.zeros(3, len(where), 5, dtype=torch.double)
    summed.index_add_(1, where.nearest.long(), grad.double().permute(0, 2, 3, 1).flatten(1, 2))
    assert_close(back, summed.flatten(0, 1))


def test_fill_without_neighbours(isa):
    """Skipped positions hold the constants of their classes, computed ones their rows."""
    ints = partial(torch.tensor, dtype=torch.int32)
    rows, constant = torch.randn(2 * 2, 21, generator=seeded(0)), torch.randn(2, 21, generator=seeded(1))
    lists = ints([3, 0]), ints([2, 1]), torch.zeros(2, 0, dtype=torch.int32), ints([0, 1, 2])
    got = binding.interpolate_fitted(rows, *lists, torch.zeros(2, 0, 21), constant, 2, (2, 2), "relu")
    images = [torch.stack((rows[2 * n + 1], constant[1], constant[0], rows[2 * n])) for n in range(2)]
    assert torch.equal(got, F.relu(torch.stack(images).view(2, 2, 2, 21).permute(0, 3, 1, 2)))


class TestPackedWeights:
    """The cache must notice every way in which a parameter changes."""

    def case(self):
        return Case(n=1, c=8, k=8, size=(6, 6), kernel=(3, 3))

    def test_in_place_update(self):
        case = self.case()
        case.run()
        case.weight.mul_(2)
        assert_close(case.run(), case.expected())

    def test_update_through_data(self):
        case = self.case()
        case.run()
        version = case.weight._version
        case.weight.data.fill_(0.5)
        assert case.weight._version == version, "the trap this test is about is gone"
        torch.autograd.graph.increment_version(case.weight)
        assert_close(case.run(), case.expected())

    def test_another_tensor_at_the_same_address(self):
        for seed in range(20):
            case = Case(n=1, c=8, k=8, size=(6, 6), kernel=(3, 3), seed=seed)
            assert_close(case.run(), case.expected())

    def test_inference_tensor(self):
        case = self.case()
        with torch.inference_mode():
            case.weight = case.weight * 1
            case.run()
            case.weight.add_(1)
            got = case.run()
        with torch.inference_mode():
            assert_close(got, case.expected())

    def test_weights_in_any_layout(self):
        case = self.case()
        dense = case.weight
        spread = torch.zeros(8, 8, 3, 6)
        spread[..., ::2] = dense
        for weight in (dense.contiguous(memory_format=torch.channels_last), spread[..., ::2]):
            case.weight = weight
            assert_close(case.run(), case.expected())

    def test_reshaped_in_place(self):
        case = Case(n=1, c=8, k=8, size=(6, 6), kernel=(1, 1))
        case.run()
        case.weight.transpose_(0, 1)
        assert_close(case.run(), case.expected())


def test_wrong_dtype_names_the_tensor():
    case = Case(n=1, c=8, k=8, size=(6, 6), kernel=(3, 3))
    case.weight = case.weight.double()
    with pytest.raises(TypeError, match=r"got torch\.float64 of shape \(8, 8, 3, 3\)"):
        case.run()


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match="cannot run the instruction set 'avx9'"):
        _engine.set_isa("avx9")


@pytest.mark.parametrize("k, groups", [(64, 1), (96, 2), (72, 1), (40, 8)])
def test_a_map_that_is_written_past_the_caches(isa, k, groups):
    """Outputs of 4 MiB and more are streamed where channels come in whole vectors, and stored where they do not."""
    case = Case(2, 16, k, (130, 134), (1, 1), groups=groups, activation="relu")
    assert case.residual.nbytes >= 1 << 22
    assert_close(case.run(residual=True), case.expected(residual=True))
