"""The edges of every op: no channels, no images, maps of any strides, sizes beyond int32, a backend that must run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from accel import ops
from accel.kernels.dispatch import available_backends, find
from accel.kernels.max_rows import max_rows
from accel.kernels.positions import ActiveSet, Neighbors, PositionSet, tap_map
from accel.kernels.reference import halting_step as reference_step

needs_engine = pytest.mark.skipif("cpu" not in available_backends(), reason="the C engine was not built")


def drawn(*shape: int, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def half_set(height: int, width: int, device: str) -> PositionSet:
    flat = torch.arange(height * width, dtype=torch.int32)
    return PositionSet(flat[::2].clone(), flat // 2, height, width).to(device)


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (4, 0, 3, 3), (4, 3, 0, 3), (4, 3, 3, 0), (0, 0, 0, 0)], ids=str)
def test_a_weight_without_values_is_refused(backend, device, shape):
    x, weight = torch.zeros(1, shape[1], 5, 5, device=device), torch.zeros(shape, device=device)
    active = ActiveSet(*(torch.zeros(1, dtype=torch.int32, device=device) for _ in range(2)), 1, 3, 3)
    for call in (
        lambda: ops.perforated_conv2d(x, weight, None, PositionSet.full(3, 3).to(device)),
        lambda: ops.masked_conv2d(x, weight, None, active),
        lambda: ops.masked_conv2d_(torch.zeros(1, max(shape[0], 1), 3, 3, device=device), x, weight, None, active),
    ):
        with pytest.raises(ValueError, match="weight must have output channels, input channels and taps"):
            call()


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_map_without_pixels_is_refused(backend, device, size):
    """Padding would make it large enough; torch refuses it too."""
    x, weight = torch.zeros(1, 3, *size, device=device), torch.zeros(4, 3, 3, 3, device=device)
    with pytest.raises(ValueError, match="does not fit an input of"):
        ops.perforated_conv2d(x, weight, None, PositionSet.full(5, 5).to(device), padding=(2, 2, 2, 2))


@pytest.mark.parametrize("gradients", [False, True])
def test_a_batch_of_no_images(backend, device, gradients):
    """Every op gives what belongs to no image, with the sizes that it has otherwise, and gradients of no weight."""
    x = torch.zeros(0, 6, 8, 7, device=device, requires_grad=gradients)
    weight = drawn(10, 6, 3, 3, device=device).requires_grad_(gradients)
    bias, residual = drawn(10, device=device).requires_grad_(gradients), torch.zeros(0, 10, 8, 7, device=device)
    where, around = half_set(8, 7, device), {"padding": (1, 1, 1, 1)}
    rows = ops.perforated_conv2d(x, weight, bias, where, compact=True, activation="relu", **around)
    found = [
        (rows, (0, 10)),
        (ops.perforated_conv2d(x, weight, bias, where, residual=residual, **around), (0, 10, 8, 7)),
        (
            ops.perforated_conv2d(rows, drawn(4, 10, 3, 3, device=device), None, where, source=where, **around),
            (0, 4, 8, 7),
        ),
        (ops.interpolate(rows, where), (0, 10, 8, 7)),
    ]
    narrow, deep = drawn(3, 6, 3, 3, device=device), drawn(6, 1, 3, 3, device=device)
    found += [(ops.perforated_conv2d(x, narrow, None, where, **around), (0, 3, 8, 7))]
    found += [(ops.perforated_conv2d(x, deep, None, where, groups=6, **around), (0, 6, 8, 7))]
    flat = torch.arange(28, dtype=torch.int32, device=device)
    neighbors = Neighbors(2 * flat + 1, flat[:, None], flat[[0, 0]] + torch.tensor([0, 28], device=device).int())
    sums = drawn(1, 1, 10, device=device), drawn(1, 10, device=device)
    found += [(ops.interpolate(rows, where, neighbors, *sums), (0, 10, 8, 7))]
    score = ops.local_deviation(x)
    chosen, active = ops.select_positions(score, 5), ops.active_positions(score > 0, dilate=1)
    found += [(score, (0, 8, 7)), (chosen.positions, (0,)), (active.positions, (0,)), (active.counts, (0,))]
    for some in (chosen, active):
        found += [(ops.masked_conv2d(x, weight, bias, some, **around), (0, 10))]
        found += [(ops.masked_conv2d(x, weight, bias, some, residual=residual, **around), (0, 10, 8, 7))]
    if find(backend, "masked_conv2d_", "masked_conv2d"):
        ops.masked_conv2d_(residual, x.detach(), weight.detach(), None, active, **around)
    found += [(max_rows(rows.detach(), where.nearest[None], 0), (0, 10))]
    count = torch.zeros(0, 8, 7, dtype=torch.int32, device=device)
    *state, share = ops.halting_step(score, x, score + 1, score + 1, count, x * 0)
    found += [(state[3], (0, 6, 8, 7)), (share, (0, 8, 7))]
    found += [(total, (0,)) for total in ops.ponder_cost(state[1], state[2])]
    ops.halting_step_(score, x.detach(), score + 1, score + 1, count, torch.zeros_like(x))
    for tensor, shape in found:
        assert tuple(tensor.shape) == shape
    if gradients:
        sum(tensor.sum() for tensor, _ in found if tensor.requires_grad).backward()
        assert x.grad.shape == x.shape and not weight.grad.any() and not bias.grad.any()


def test_rows_without_channels(backend, device):
    where, flat = half_set(4, 4, device), torch.arange(8, dtype=torch.int32, device=device)
    neighbors = Neighbors(2 * flat + 1, flat[:, None], flat[[0, 0]] + torch.tensor([0, 8], device=device).int())
    rows = torch.zeros(16, 0, device=device, requires_grad=True)
    empty = torch.zeros(1, 1, 0, device=device), torch.zeros(1, 0, device=device)
    for out in (ops.interpolate(rows, where), ops.interpolate(rows, where, neighbors, *empty)):
        assert tuple(out.shape) == (2, 0, 4, 4)
        out.sum().backward()
    assert tuple(max_rows(rows.detach(), where.nearest[None], 2).shape) == (32, 0)


STRANGE = {
    "expanded images": lambda x: x[:1].expand(3, -1, -1, -1),
    "expanded channels": lambda x: x[:, :1].expand(-1, x.shape[1], -1, -1),
    "expanded pixels": lambda x: x[:, :, :1, :1].expand(-1, -1, *x.shape[2:]),
    "overlapping rows": lambda x: x.reshape(-1).as_strided(x.shape, (7, 3, 2, 1)),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: torch.cat([x, x], 1)[:, ::2],
    "one channel, any stride": lambda x: x.reshape(-1).as_strided((3, 1, 9, 7), (63, 5, 7, 1)),
    "one pixel, any stride": lambda x: x.reshape(-1).as_strided((3, 5, 1, 1), (5, 1, 11, 13)),
    "one pixel, channels apart": lambda x: x.reshape(-1).as_strided((3, 5, 1, 1), (11, 2, 1, 1)),
    "one column": lambda x: x.reshape(-1).as_strided((3, 5, 9, 1), (45, 1, 5, 77)),
    "one row": lambda x: x.reshape(-1).as_strided((3, 5, 1, 7), (35, 7, 2, 1)),
    "imaginary part of a conjugate": lambda x: torch.complex(x, x + 1).conj().imag,
}


@pytest.mark.parametrize("form", STRANGE)
def test_maps_of_any_strides(backend, device, assert_close, form):
    x = STRANGE[form](drawn(3, 5, 9, 7, device=device))
    plain = x.clone(memory_format=torch.contiguous_format)
    channels, size = x.shape[1], tuple(x.shape[2:])
    weight = drawn(6, channels, 3, 3, device=device)
    expected = F.conv2d(plain.cpu(), weight.cpu(), padding=1)
    around = {"padding": (1, 1, 1, 1)}
    assert_close(ops.perforated_conv2d(x, weight, None, PositionSet.full(*size).to(device), **around), expected)
    active = ops.active_positions(torch.ones(3, *size, dtype=torch.bool, device=device))
    out = ops.masked_conv2d(x, weight, None, active, residual=torch.zeros(3, 6, *size, device=device), **around)
    assert_close(out, expected)
    assert_close(ops.local_deviation(x), ops.local_deviation(plain))
    state = [torch.ones(3, *size, device=device), torch.ones(3, *size, device=device)]
    state.append(torch.zeros(3, *size, dtype=torch.int32, device=device))
    h = plain[:, 0].sigmoid() / 2
    got, right = (ops.halting_step(h, values, *state, torch.zeros_like(plain)) for values in (x, plain))
    for a, b in zip(got, right):
        assert_close(a, b)


def test_sizes_beyond_int32_are_refused():
    side = 2**16
    one = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="more positions than int32 can name"):
        PositionSet(one, one.expand(side * side), side, side)
    with pytest.raises(ValueError, match="more pixels than int32 can name"):
        tap_map((side, side), (1, 1), (side, side), (0, 0, 0, 0), (1, 1))


@needs_engine
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "cut out"])
@pytest.mark.parametrize("states", [(2,), (2, 7, 5)], ids=["ACT", "SACT"])
def test_a_forced_engine_steps_every_layout_itself(monkeypatch, assert_close, layout, states):
    lay = {
        "contiguous": torch.clone,
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        "cut out": lambda t: F.pad(t, (1, 2, 1, 0, 1, 1))[:, 1:-1, 1:, 1:-2],
    }[layout]
    h, remainder = drawn(*states).sigmoid(), drawn(*states, seed=1).sigmoid()
    ponder, units = remainder + 1, torch.ones(states, dtype=torch.int32)
    x, output = drawn(2, 4, 7, 5, seed=2), drawn(2, 4, 7, 5, seed=3)
    expected = reference_step.halting_step(h, x, remainder, ponder, units, output, 0.01, False)
    gradients = [drawn(*states, seed=4), drawn(*states, seed=5), drawn(2, 4, 7, 5, seed=6), drawn(*states, seed=7)]
    expected_back = reference_step.halting_step_backward(h, x, remainder, *gradients, 0.01, False)
    for name in ("halting_step", "halting_step_", "halting_step_backward"):
        monkeypatch.delattr(reference_step, name)
    with ops.use_backend("cpu"):
        got = ops.halting_step(h, lay(x), remainder, ponder, units, lay(output))
        for a, b in zip(got, expected):
            assert_close(a, b)
        back = torch.ops.accel.halting_step_backward(h, lay(x), remainder, *gradients, 0.01, False)
        for a, b in zip(back, expected_back):
            assert_close(a, b)
        state = [remainder.clone(), ponder.clone(), units.clone(), lay(output)]
        running = ops.halting_step_(h, lay(x), *state)
        for a, b in zip(state, expected):
            assert_close(a, b)
        assert torch.equal(running, expected[0] > 0)


@needs_engine
@pytest.mark.parametrize("step", [ops.halting_step, ops.halting_step_])
def test_a_forced_engine_refuses_what_it_cannot_step(step):
    h, x, units = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32)
    with ops.use_backend("cpu"), pytest.raises(RuntimeError, match=r"float32 maps and states.*leave use_backend"):
        step(h, x, h + 1, h + 1, units, x)
    assert step(h, x, h + 1, h + 1, units, x.clone()) is not None  # by itself, the reference


def test_states_are_per_image_or_per_position():
    """[N, L] for x [N, C, L] is neither: the engine would take its channels for positions."""
    h, units = torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"must be \[N\] \(ACT\) or \[N, H, W\] \(SACT\)"):
        ops.halting_step(h, torch.zeros(2, 3, 5), h + 1, h + 1, units, torch.zeros(2, 3, 5))
