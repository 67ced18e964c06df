"""torch's default dtype and default device are the user's: whatever they are, the same bits come out."""

from __future__ import annotations

import contextlib
import functools
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import ACT, SACT, Perforate, Rules
from accel.kernels import max_rows as max_rows_op
from accel.kernels.positions import PositionSet


@contextlib.contextmanager
def defaults(dtype: torch.dtype = torch.float32, device: str | None = None):
    """torch's defaults within the block, with nothing remembered from outside of it."""
    forget()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        forget()


def forget() -> None:
    """Empty every cache of the package, so that what follows is made anew."""
    for found in gc.get_objects():
        if type(found) is functools._lru_cache_wrapper and found.__module__.startswith("accel."):
            found.cache_clear()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 16, 3, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(), nn.AvgPool2d(3, 2)),
        *(nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16), nn.Hardswish(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 24, 3, padding=1, padding_mode="reflect"), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).eval()


class Unit(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, 2), nn.BatchNorm2d(channels))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def make_residual_network() -> nn.Module:
    torch.manual_seed(0)
    stages = nn.Sequential(*[Unit(16, 16) for _ in range(3)]), nn.Sequential(Unit(16, 12, 2), Unit(12, 12))
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


NETWORK, RESIDUAL_NETWORK = make_network(), make_residual_network()


def converted(config, **more):
    x = drawn(2, 3, 21, 18)
    fast = accel.convert_model(NETWORK, config, example_inputs=x, **more)
    with torch.no_grad():
        outputs = [fast(x), fast(x[:, :, :13])]
    fast(x).square().sum().backward()
    return [*outputs, *(p.grad for p in fast.parameters())]


def adaptive(config):
    x = drawn(5, 3, 16, 16)
    torch.manual_seed(1)  # the heads are drawn
    fast = accel.convert_model(RESIDUAL_NETWORK, config, example_inputs=x)
    with torch.no_grad():
        out = fast(x)
    trained = fast(x)
    (trained.logits.sum() + accel.ponder_loss(trained)).backward()
    states = [tensor for s in out.stages for tensor in (s.ponder_cost, s.num_units, s.executed_macs)]
    return [out.logits, *states, trained.logits, *(p.grad for p in fast.parameters() if p.grad is not None)]


def ops():
    """Every public op, skipping torch's dispatcher and through it, with its gradients."""
    found = []
    for gradients in (False, True):
        x, weight, bias = drawn(2, 20, 9, 7), drawn(24, 20, 3, 3), drawn(24)
        leaves = [leaf.requires_grad_(gradients) for leaf in (x, weight, bias)]
        flat = torch.arange(63, dtype=torch.int32, device="cpu")
        half = PositionSet(flat[::2].clone(), flat // 2, 9, 7)
        geometry = {"padding": (1, 1, 1, 1)}
        rows = accel.ops.perforated_conv2d(x, weight, bias, half, activation="relu", compact=True, **geometry)
        found += [rows, accel.ops.perforated_conv2d(x, weight, bias, half, **geometry)]
        affine, scale = accel.ops.Affine(0.05, 100), torch.full((24,), 0.01, dtype=torch.float32, device="cpu")
        levels = accel.ops.Requantization.of(affine, scale, bias, affine)
        given = affine.quantize(x.detach()), (weight.detach() * 30).clamp(-127, 127).to(torch.int8)
        found += [accel.ops.quantized_conv2d(*given, levels, half, **geometry)]
        found += [accel.ops.interpolate(rows, half), max_rows_op.max_rows(rows.detach(), half.nearest[None], 2)]
        score = accel.ops.local_deviation(x)
        chosen = accel.ops.select_positions(score, 11)
        mask = score > score.median()
        active, wide = accel.ops.active_positions(mask), accel.ops.active_positions(mask, dilate=2)
        found += [score, chosen.positions, active.positions, active.counts, wide.positions, wide.counts]
        found += [accel.ops.masked_conv2d(x, weight, bias, some, **geometry) for some in (chosen, active)]
        state = [torch.ones_like(score), torch.ones_like(score), torch.zeros_like(score, dtype=torch.int32)]
        stepped = accel.ops.halting_step(score / score.max(), x, *state, torch.zeros_like(x))
        found += [*stepped, *accel.ops.ponder_cost(stepped[1], stepped[2])]
        if gradients:
            sum(t.sum() for t in found if t.requires_grad).backward()
            found += [leaf.grad for leaf in leaves]
    return [tensor.detach() for tensor in found]


def samples():
    """Implicit gradients and samplers."""
    found = []
    alpha = (drawn(40).abs() + 0.2).requires_grad_()
    torch.manual_seed(3)
    for q in (
        accel.distributions.Gamma(alpha, alpha.detach()),
        accel.distributions.Beta(alpha, alpha + 1),
        accel.distributions.VonMises(alpha.detach(), alpha),
        accel.distributions.StudentT(alpha + 2),
    ):
        value = q.rsample()
        found += [value.detach(), *torch.autograd.grad(value.sum(), alpha)]
    return found


CASES = {
    "nearest": lambda: converted(Perforate(keep=0.5)),
    "uniform": lambda: converted(Perforate(keep=0.3, mask="uniform")),
    "pooling": lambda: converted(Perforate(keep=0.4, mask="pooling")),
    "zero": lambda: converted(Perforate(keep=0.5, interpolate="zero")),
    "weighted": lambda: converted(Perforate(keep=0.5, mask="lattice", interpolate="weighted")),
    "adaptive mask": lambda: converted(Rules({"10": None, "*": Perforate(keep=0.5, mask="adaptive")})),
    "fitted": lambda: converted(
        Perforate(keep=0.5, mask="lattice", interpolate="fitted"), calibration=[drawn(8, 3, 21, 18, seed=4)]
    ),
    "impact": lambda: converted(Perforate(keep=0.5, mask="impact"), calibration=[drawn(4, 3, 21, 18, seed=4)]),
    "keep 1": lambda: converted(Perforate(keep=1.0)),
    "ACT": lambda: adaptive(ACT()),
    "SACT": lambda: adaptive(SACT()),
    "ops": ops,
    "samples": samples,
}
DEFAULTS = [(torch.bfloat16, None), (torch.float16, None), (torch.float64, None), (torch.float32, "meta")]


@pytest.mark.parametrize("case", CASES)
def test_defaults_change_no_bit(case):
    with defaults():
        expected = CASES[case]()
        assert all(tensor.isfinite().all() for tensor in expected)
    for dtype, device in DEFAULTS[:-1] if case == "samples" else DEFAULTS:  # torch's own distributions fail on "meta"
        with defaults(dtype, device):
            got = CASES[case]()
        assert len(got) == len(expected)
        for a, b in zip(got, expected):
            assert a.dtype == b.dtype and torch.equal(a, b), f"default {dtype} on {device}"
