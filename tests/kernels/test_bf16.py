"""Convolutions of numbers rounded to bf16: every backend and instruction set against F.conv2d of rounded numbers."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from accel.kernels.bf16 import round_bf16
from accel.kernels.dispatch import available_backends, find
from accel.kernels.positions import PositionSet, output_size
from accel.ops import active_positions, masked_conv2d, masked_conv2d_, perforated_conv2d, use_backend
from accel.tests.drawn_sets import draw_set
from accel.tests.kernels.named import ACTIVATIONS
from accel.tests.kernels.test_drawn_problems import convolve, draw_geometry, draw_tensors, draws, take
from accel.tests.kernels.test_quantized_conv2d import CASES, rows_at

needs_engine = pytest.mark.skipif("cpu" not in available_backends(), reason="the C engine was not built")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What is allocated without filling starts as NaN."""
    empty = torch.empty

    def poison(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poison)


def rounded(x):
    """In double precision."""
    return x.bfloat16().double()


def whole_numbers(case, seed=0):
    """(x, weight, bias, residual) whose sums fp32 holds exactly, in any order."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-9, 10, (case.n, case.c, *case.size), generator=g).float()
    weight = torch.randint(-9, 10, (case.k, case.c // case.groups, *case.kernel), generator=g).float()
    bias = torch.randint(-99, 100, (case.k,), generator=g).float()
    return x, weight, bias, torch.randint(-99, 100, (case.n, case.k, *case.out_size), generator=g).float()


def run(case, x, weight, bias, positions, **options):
    return perforated_conv2d(x, weight, bias, positions, precision="bf16", **case.geometry, **options)


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("name", CASES)
def test_sums_of_whole_numbers_are_exact(isa, name, compact):
    """Every geometry, also with a bias, a residual and an activation: what is read, multiplied and written is right."""
    case = CASES[name]
    x, weight, bias, residual = whole_numbers(case)
    exact = case.sums(x, weight, 0).float() + bias[:, None, None]
    given = rows_at(residual, case.set) if compact else residual
    plain = run(case, x, weight, bias, case.set, compact=compact)
    added = run(case, x, weight, bias, case.set, compact=compact, residual=given, activation="relu")
    expected = rows_at(exact, case.set) if compact else take(exact, case.set, False)
    assert torch.equal(plain, expected) and torch.equal(added, (expected + given).relu())
    assert compact or plain.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_rounded_once(isa, name):
    """Nothing but the rounding of fp32 sums lies between the engine and exact sums of rounded numbers."""
    case, g = CASES[name], torch.Generator().manual_seed(1)
    x, weight = torch.randn(case.n, case.c, *case.size, generator=g), torch.randn(case.tensors()[1].shape, generator=g)
    bias = torch.randn(case.k, generator=g)
    found = run(case, x, weight, bias, case.set).double()
    expected = take(convolve_case(case, rounded(x), rounded(weight), bias), case.set, False)
    terms = weight[0].numel()
    assert (found - expected).norm() < 2e-7 * terms**0.5 * expected.norm()
    unrounded = take(convolve_case(case, x, weight, bias), case.set, False)
    assert (found - unrounded).norm() > 1e-5 * expected.norm()


def convolve_case(case, x, weight, bias):
    how = {name: case.geometry[name] for name in ("groups", "stride", "padding", "dilation")}
    return convolve(x, weight, bias, case.mode, **how)


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_handed_over_in_bf16_is_what_the_reader_would_round(isa, name, compact):
    """In and out: the same numbers, in half of the memory."""
    case = CASES[name]
    x, weight, bias = (t.float() / 7 for t in case.tensors()[:3])
    residual = torch.randn(case.n, case.k, *case.out_size, generator=torch.Generator().manual_seed(2))
    residual = rows_at(residual, case.set) if compact else residual
    for how in ({}, {"residual": residual, "activation": "leaky_relu"}):
        plain = run(case, x, weight, bias, case.set, compact=compact, **how)
        found = run(case, x.bfloat16(), weight, bias, case.set, compact=compact, out_dtype=torch.bfloat16, **how)
        assert found.dtype is torch.bfloat16 and torch.equal(found, plain.bfloat16())
        assert compact or found.is_contiguous(memory_format=torch.channels_last)
        with use_backend("reference"):
            again = run(case, x.bfloat16(), weight, bias, case.set, compact=compact, out_dtype=torch.bfloat16, **how)
        assert again.dtype is torch.bfloat16
        torch.testing.assert_close(again, found, rtol=2**-7, atol=1e-3)  # a number may round the other way


@pytest.mark.parametrize("name", CASES)
def test_a_full_permuted_set_is_dense_and_a_subset_its_rows(isa, name):
    case = CASES[name]
    x, weight, bias = (t.float() / 7 for t in case.tensors()[:3])
    dense = run(case, x, weight, bias, PositionSet.full(*case.out_size))
    permuted = draw_set(*case.out_size, dense[0, 0].numel(), torch.Generator().manual_seed(4))
    assert torch.equal(run(case, x, weight, bias, permuted), dense)
    assert torch.equal(run(case, x, weight, bias, case.set, compact=True), rows_at(dense, case.set))


@pytest.mark.parametrize("name", ["plain", "64 to 64", "groups", "depthwise", "1x1", "reflect", "tail of 3"])
def test_a_compact_input_is_read_through_its_set(isa, name):
    case = CASES[name]
    x, weight, bias, _ = whole_numbers(case)
    source = draw_set(*case.size, max(1, x[0, 0].numel() // 2), torch.Generator().manual_seed(5))
    expected = run(case, take(x, source, False), weight, bias, case.set)
    assert torch.equal(run(case, rows_at(x, source), weight, bias, case.set, source=source), expected)


@pytest.mark.parametrize("name", ["64 to 64", "many rows", "depthwise", "chunked taps", "three channels"])
def test_the_threads_change_nothing(isa, name):
    case, before, found = CASES[name], torch.get_num_threads(), []
    x, weight, bias = (t.float() / 7 for t in case.tensors()[:3])
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(run(case, x, weight, bias, case.set))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def drawn(rng, device):
    """(input size, geometry, groups, mode, activation, x, weight, bias)"""
    size, kernel, geometry = draw_geometry(rng)
    groups, activation = rng.choice([1, 1, 2, 4]), rng.choice(list(ACTIVATIONS))
    return size, geometry, groups, activation, *draw_tensors(rng, size, kernel, groups, device)


def test_drawn_static_problems(backend, device, random_set, assert_close):
    rng = random.Random(11)
    for _ in range(draws(backend) // 2):
        size, geometry, groups, activation, x, weight, bias = drawn(rng, device)
        positions = random_set(*output_size(size, weight.shape[2:], **geometry), rng.random()).to(device)
        compact = rng.random() < 0.5
        how = {**geometry, "groups": groups, "activation": activation, "compact": compact, "precision": "bf16"}
        expected = convolve(rounded(x), rounded(weight), bias, "zeros", groups, **geometry)
        expected = ACTIVATIONS[activation](take(expected, positions, compact))
        assert_close(perforated_conv2d(x, weight, bias, positions, **how), expected)


def test_drawn_dynamic_problems(backend, device, assert_close):
    rng = random.Random(12)
    for _ in range(draws(backend) // 2):
        size, geometry, groups, activation, x, weight, bias = drawn(rng, device)
        height, width = output_size(size, weight.shape[2:], **geometry)
        g = torch.Generator().manual_seed(rng.randrange(99))
        mask = (torch.rand(len(x), height, width, generator=g) < rng.random()).to(device)
        active = active_positions(mask)
        residual = torch.randn(len(x), len(weight), height, width, generator=g).to(device)
        how = {**geometry, "groups": groups, "activation": activation, "precision": "bf16"}
        dense = convolve(rounded(x), rounded(weight), bias, "zeros", groups, **geometry)
        expected = torch.where(mask[:, None], ACTIVATIONS[activation](residual + dense), residual.double())
        with torch.no_grad():
            assert_close(masked_conv2d(x, weight, bias, active, residual=residual, **how), expected)
        count = int(active.counts.sum())
        rows = masked_conv2d(x, weight, bias, active, **how)
        taken = ACTIVATIONS[activation](dense).permute(0, 2, 3, 1)[mask]
        assert_close(rows[:count], taken)
        assert not rows[count:].any()
        if find(backend, "masked_conv2d_", "masked_conv2d") is not None:
            out = residual.clone(memory_format=torch.channels_last)
            masked_conv2d_(out, x, weight, bias, active, accumulate=True, **how)
            assert_close(out, expected)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_gradients_pass_the_rounding(backend, device, random_set, assert_close, activation):
    """To the numbers as they were, by those that were multiplied."""
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(s, generator=g).to(device).requires_grad_() for s in ((2, 6, 7, 5), (8, 3, 3, 3), (8,))]
    positions, geometry = random_set(7, 5, 0.5).to(device), {"padding": (1, 1, 1, 1), "groups": 2}
    share = torch.randn(2, 8, 7, 5, generator=g).to(device)
    how = {**geometry, "activation": activation, "precision": "bf16"}
    found = torch.autograd.grad((perforated_conv2d(*leaves, positions, **how) * share).sum(), leaves)
    x, weight = (rounded(leaf.detach()).requires_grad_() for leaf in leaves[:2])
    bias = leaves[2].detach().double().requires_grad_()
    dense = convolve(x, weight, bias, "zeros", stride=(1, 1), dilation=(1, 1), **geometry)
    out = ACTIVATIONS[activation](take(dense, positions, False))
    for ours, theirs in zip(found, torch.autograd.grad((out * share).sum(), (x, weight, bias))):
        assert_close(ours, theirs)


def test_gradients_at_dynamic_sets_pass_the_rounding(backend, device, assert_close):
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(s, generator=g).to(device).requires_grad_() for s in ((2, 5, 6, 5), (4, 5, 3, 3), (4,))]
    mask = (torch.rand(2, 6, 5, generator=g) < 0.5).to(device)
    how = {"padding": (1, 1, 1, 1), "precision": "bf16"}
    rows = masked_conv2d(*leaves, active_positions(mask), **how)
    share = torch.randn(len(rows), 4, generator=g).to(device)
    found = torch.autograd.grad((rows * share).sum(), leaves)
    x, weight = (rounded(leaf.detach()).requires_grad_() for leaf in leaves[:2])
    bias = leaves[2].detach().double().requires_grad_()
    dense = F.conv2d(x, weight, bias, padding=1).permute(0, 2, 3, 1)[mask]
    for ours, theirs in zip(found, torch.autograd.grad((dense * share[: len(dense)]).sum(), (x, weight, bias))):
        assert_close(ours, theirs)


HALVES = [1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20, 0.0, -0.0, 3.3895314e38, 3.4e38]
ODD = [float("inf"), -float("inf"), float("nan")]


@needs_engine
def test_numbers_are_rounded_as_torch_rounds_them(isa):
    """Halves to even, what is too large to infinity; NaN stays, whatever its bits."""
    x = torch.cat([torch.tensor(HALVES + ODD), torch.randn(4096, generator=torch.Generator().manual_seed(0))])
    x = torch.cat([x, torch.tensor([0x7F800001, -1, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)])
    one = torch.ones(1, 1, 1, 1)
    found = perforated_conv2d(x.view(1, 1, 1, -1), one, None, PositionSet.full(1, len(x)), precision="bf16").flatten()
    torch.testing.assert_close(found, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(round_bf16(x), x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


@needs_engine
@pytest.mark.parametrize("channels", [1, 3, 5, 8, 15, 17])
def test_an_odd_number_beside_a_pixel_is_not_read(isa, channels):
    """An input of few channels is filled up with zeros to pairs; NaN lies behind it in memory."""
    x = torch.full((1, channels + 1, 3, 3), float("nan")).contiguous(memory_format=torch.channels_last)
    x[:, :channels] = 1.0
    weight = torch.ones(5, channels, 3, 3)
    found = perforated_conv2d(x[:, :channels], weight, None, PositionSet.full(1, 1), precision="bf16")
    assert torch.equal(found, torch.full((1, 5, 1, 1), 9.0 * channels))


@needs_engine
def test_layouts_and_an_empty_batch(isa):
    case = CASES["tail of 2"]
    x, weight, bias, _ = whole_numbers(case)
    expected = run(case, x, weight, bias, case.set)
    for given in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        found = run(case, given, weight.to(memory_format=torch.channels_last), bias, case.set)
        assert torch.equal(found, expected)
    assert run(case, x[:0], weight, bias, case.set).shape == (0, *expected.shape[1:])


@needs_engine
def test_weights_of_two_precisions_are_kept_side_by_side_and_packed_again(isa):
    case = CASES["plain"]
    x, weight, bias = (t.float() / 7 for t in case.tensors()[:3])
    before = run(case, x, weight, bias, case.set)
    plain = perforated_conv2d(x, weight, bias, case.set, **case.geometry)
    assert not torch.equal(before, plain) and torch.equal(run(case, x, weight, bias, case.set), before)
    weight.neg_()
    with use_backend("reference"):
        expected = run(case, x, weight, bias, case.set)
    torch.testing.assert_close(run(case, x, weight, bias, case.set), expected, rtol=1e-5, atol=1e-5)


def test_precisions_that_are_unknown():
    x, weight, positions = torch.ones(1, 2, 3, 3), torch.ones(1, 2, 1, 1), PositionSet.full(3, 3)
    with pytest.raises(ValueError, match="perforated_conv2d: precision must be one of fp32, bf16, got 'fp16'"):
        perforated_conv2d(x, weight, None, positions, precision="fp16")
    with pytest.raises(ValueError, match=r"out_dtype is torch.bfloat16 with precision 'bf16', or left out"):
        perforated_conv2d(x, weight, None, positions, out_dtype=torch.bfloat16)
    active = active_positions(torch.ones(1, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="masked_conv2d: precision must be one of fp32, bf16, got 'int8'"):
        masked_conv2d(x, weight, None, active, precision="int8")


def test_a_compiler_sees_rounded_numbers():
    case, g = CASES["plain"], torch.Generator().manual_seed(3)
    x, weight = torch.randn(2, 5, 7, 6, generator=g), torch.randn(6, 5, 3, 3, generator=g)
    positions = case.set
    expected = run(case, x, weight, None, positions)

    def convolve(x, weight):
        return run(case, x, weight, None, positions)

    found = torch.compile(convolve, backend="aot_eager", fullgraph=True)(x, weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
