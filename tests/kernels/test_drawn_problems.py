"""Problems drawn at random: every backend against F.conv2d, over what the hand-picked cases do not combine."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from accel.kernels.positions import output_size
from accel.ops import active_positions, masked_conv2d, perforated_conv2d
from accel.tests.kernels.named import ACTIVATIONS, PAD


def draw_geometry(rng: random.Random) -> tuple[tuple[int, int], tuple[int, int], dict]:
    """(input size, kernel, keyword arguments) of a convolution that fits its input."""
    while True:
        size = rng.randint(1, 14), rng.randint(1, 17)
        kernel = rng.choice([(1, 1), (3, 3), (3, 3), (5, 5), (1, 4), (2, 3), (7, 1)])
        geometry = {
            "stride": (rng.randint(1, 3), rng.randint(1, 3)),
            "padding": tuple(rng.randint(0, 3) for _ in range(4)),
            "dilation": (rng.randint(1, 2), rng.randint(1, 3)),
        }
        smallest = min(size)
        geometry["padding"] = tuple(min(pad, smallest - 1) for pad in geometry["padding"])  # what F.pad reflects
        try:
            output_size(size, kernel, **geometry)
        except ValueError:
            continue
        return size, kernel, geometry


def draw_tensors(rng: random.Random, size, kernel, groups, device):
    """x in a random memory format, weight, bias or None."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    channels, outputs = groups * rng.choice([1, 2, 3, 8, 17]), groups * rng.choice([1, 2, 5, 16, 33])
    x = torch.randn(rng.choice([1, 2, 5]), channels, *size, generator=g)
    if rng.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels // groups, *kernel, generator=g)
    bias = torch.randn(outputs, generator=g) if rng.random() < 0.7 else None
    return [None if t is None else t.to(device) for t in (x, weight, bias)]


def convolve(x, weight, bias, mode, groups, stride, padding, dilation):
    """torch's, in double precision."""
    top, bottom, left, right = padding
    x = F.pad(x.double(), (left, right, top, bottom), mode=PAD[mode])
    return F.conv2d(x, weight.double(), None if bias is None else bias.double(), stride, 0, dilation, groups)


def draws(backend: str) -> int:
    """Problems a test: the interpreter takes about a second for one."""
    return 2 if backend == "triton" and not torch.cuda.is_available() else 100


def take(dense, positions, compact):
    """The rows at the positions; or the map in which each stands for the positions nearest to it."""
    rows = dense.flatten(2)[:, :, positions.positions.long()]
    if compact:
        return rows.transpose(1, 2).flatten(0, 1)
    return rows[:, :, positions.nearest.long()].unflatten(2, (positions.height, positions.width))


@pytest.mark.parametrize("seed", range(4))
def test_perforated(backend, device, random_set, assert_close, seed):
    rng = random.Random(seed)
    for _ in range(draws(backend)):
        size, kernel, geometry = draw_geometry(rng)
        groups, mode, activation = rng.choice([1, 1, 2, 4]), rng.choice(list(PAD)), rng.choice(list(ACTIVATIONS))
        x, weight, bias = draw_tensors(rng, size, kernel, groups, device)
        positions = random_set(*output_size(size, kernel, **geometry), rng.random(), rng.randrange(99)).to(device)
        compact, source = rng.random() < 0.5, None
        dense = x
        if rng.random() < 0.4:
            source = random_set(*size, rng.random(), rng.randrange(99)).to(device)
            pixels = x.flatten(2)[:, :, source.positions.long()]
            dense = pixels[:, :, source.nearest.long()].view(x.shape)
            x = pixels.transpose(1, 2).flatten(0, 1)
        exact = convolve(dense, weight, bias, mode, groups, **geometry)
        expected, residual = take(exact, positions, compact), None
        if rng.random() < 0.5:
            residual = torch.randn(expected.shape, generator=torch.Generator().manual_seed(seed)).to(device)
            expected = expected + residual
        expected = ACTIVATIONS[activation](expected)
        got = perforated_conv2d(
            x, weight, bias, positions, **geometry, groups=groups, padding_mode=mode, activation=activation,
            residual=residual, compact=compact, source=source,
        )  # fmt: skip
        assert_close(got, expected)


@pytest.mark.parametrize("seed", range(4))
def test_masked(backend, needs, device, assert_close, seed):
    needs("masked_conv2d", "masked_conv2d")
    rng = random.Random(100 + seed)
    for _ in range(draws(backend)):
        size, kernel, geometry = draw_geometry(rng)
        groups, activation = rng.choice([1, 1, 2, 4]), rng.choice(list(ACTIVATIONS))
        x, weight, bias = draw_tensors(rng, size, kernel, groups, device)
        exact = convolve(x, weight, bias, "zeros", groups, **geometry)
        g = torch.Generator().manual_seed(seed)
        mask = (torch.rand(exact[:, 0].shape, generator=g) < rng.choice([0, 0.1, 0.5, 1])).to(device)
        residual = torch.randn(exact.shape, generator=g).to(device) if rng.random() < 0.5 else None
        got = masked_conv2d(
            x, weight, bias, active_positions(mask), **geometry, groups=groups, activation=activation,
            residual=residual,
        )  # fmt: skip
        if residual is None:
            expected = ACTIVATIONS[activation](exact).permute(0, 2, 3, 1)[mask]
            got = got[: len(expected)]
        else:
            expected = torch.where(mask[:, None], ACTIVATIONS[activation](exact + residual), residual.double())
        assert_close(got, expected)
