"""masked_conv2d on every backend against F.conv2d under a mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from accel.kernels.positions import ActiveSet
from accel.ops import active_positions, masked_conv2d, masked_conv2d_

GEOMETRY = {
    "plain": {},
    "stride": {"stride": (2, 1)},
    "dilation": {"dilation": (1, 2)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 6},
}


def mask_of(kind: str, n: int = 3, size: tuple[int, int] = (7, 11)) -> torch.Tensor:
    """bool [n, H, W]; every kind but `full` has positions to leave out."""
    mask = torch.zeros(n, *size, dtype=torch.bool)
    if kind == "random":
        mask = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    elif kind == "one image empty":
        mask = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.4
        mask[1] = False
    elif kind == "full":
        mask[:] = True
    elif kind == "one pixel":
        mask[1, 3, 4] = True
    elif kind == "border":
        mask[:, 0] = mask[:, -1] = mask[:, :, 0] = mask[:, :, -1] = True
    return mask


MASKS = ["random", "one image empty", "full", "empty", "one pixel", "border"]


def tensors(geometry: dict, dtype=torch.float32, device="cpu"):
    """x, weight, bias, residual for a 3x3 convolution of 6 -> 6 channels, padded so that stride 1 keeps the size."""
    g = torch.Generator().manual_seed(1)
    groups, dilation = geometry.get("groups", 1), geometry.get("dilation", (1, 1))
    x = torch.randn(3, 6, 7, 11, generator=g, dtype=torch.float64)
    weight = torch.randn(6, 6 // groups, 3, 3, generator=g, dtype=torch.float64)
    bias = torch.randn(6, generator=g, dtype=torch.float64)
    out = F.conv2d(x, weight, bias, geometry.get("stride", 1), dilation, dilation, groups)
    residual = torch.randn(out.shape, generator=g, dtype=torch.float64)
    return [t.to(device, dtype) for t in (x, weight, bias, residual)]


def padding(geometry: dict) -> tuple[int, int, int, int]:
    vertical, horizontal = geometry.get("dilation", (1, 1))
    return (vertical, vertical, horizontal, horizontal)


def dense(x, weight, bias, geometry):
    dilation = geometry.get("dilation", (1, 1))
    return F.conv2d(x, weight, bias, geometry.get("stride", 1), dilation, dilation, geometry.get("groups", 1))


def rows_at(values, mask):
    """[N, K, H, W] -> [active, K]."""
    return values.permute(0, 2, 3, 1)[mask]


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, "plain") for kind in MASKS), *(("random", name) for name in GEOMETRY if name != "plain")],
)
def test_updates_the_residual_where_active(backend, needs, device, assert_close, kind, name):
    needs("masked_conv2d", "masked_conv2d")
    geometry = GEOMETRY[name]
    x, weight, bias, residual = tensors(geometry, device=device)
    mask = mask_of(kind, size=residual.shape[2:]).to(device)
    got = masked_conv2d(
        x, weight, bias, active_positions(mask), padding=padding(geometry), **geometry,
        activation="relu", residual=residual,
    )  # fmt: skip
    updated = (residual.double() + dense(x.double(), weight.double(), bias.double(), geometry)).relu()
    assert_close(got, torch.where(mask[:, None], updated, residual.double()))
    assert torch.equal(rows_at(got, ~mask), rows_at(residual, ~mask))  # the others bit by bit
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", MASKS)
def test_rows_end_in_zeros(backend, needs, device, assert_close, kind):
    """Compact output, from a set with a capacity beyond its total, as the sets of a GPU have."""
    needs("masked_conv2d", "masked_conv2d")
    x, weight, bias, _ = tensors({}, device=device)
    mask = mask_of(kind).to(device)
    found = active_positions(mask)
    total = found.total
    spare = torch.full((total + 5,), -1, dtype=torch.int32, device=device)
    spare[:total] = found.positions[:total]
    active = ActiveSet(spare, found.counts, found.batch, found.height, found.width)
    got = masked_conv2d(x, weight, bias, active, padding=(1,) * 4, activation="leaky_relu")
    expected = F.leaky_relu(dense(x.double(), weight.double(), bias.double(), {}))
    assert got.shape == (total + 5, 6)
    assert_close(got[:total], rows_at(expected, mask))
    assert torch.equal(got[total:], torch.zeros_like(got[total:]))


@pytest.mark.parametrize("kind", MASKS)
def test_reads_the_rows_of_a_dilated_set(backend, needs, device, assert_close, kind):
    """A unit's second convolution reads the first one's rows on the dilated set: all that its windows touch."""
    needs("masked_conv2d", "masked_conv2d")
    x, weight, bias, _ = tensors({}, device=device)
    mask = mask_of(kind).to(device)
    dilated = active_positions(mask, dilate=1)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 6)[dilated.positions.clamp_min(0).long()]
    got = masked_conv2d(rows, weight, bias, active_positions(mask), padding=(1,) * 4, source=dilated)
    expected = rows_at(dense(x.double(), weight.double(), bias.double(), {}), mask)
    assert_close(got[: len(expected)], expected)


def test_positions_outside_the_source_read_as_zeros(backend, needs, device, assert_close):
    needs("masked_conv2d", "masked_conv2d")
    x, weight, bias, _ = tensors({}, device=device)
    mask = mask_of("random").to(device)
    active = active_positions(mask)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 6)[active.positions.clamp_min(0).long()]
    got = masked_conv2d(rows, weight, bias, active, padding=(1,) * 4, source=active)
    expected = rows_at(dense(x.double() * mask[:, None], weight.double(), bias.double(), {}), mask)
    assert_close(got[: len(expected)], expected)


def test_reads_nothing_outside_of_the_windows(backend, needs, device):
    needs("masked_conv2d", "masked_conv2d")
    x, weight, bias, residual = tensors({}, device=device)
    mask = mask_of("one pixel").to(device)
    windows = torch.zeros_like(mask)
    windows[1, 2:5, 3:6] = True
    x[~windows[:, None].expand_as(x)] = float("nan")
    got = masked_conv2d(x, weight, bias, active_positions(mask), padding=(1,) * 4, residual=residual)
    assert got.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "form"),
    [*((kind, "residual") for kind in MASKS), ("random", "rows"), ("empty", "rows"), ("border", "source")],
)
def test_every_gradient(backend, needs, device, assert_close, kind, form):
    """dX, dW, db and d residual, through a ReLU, against autograd of the oracle in double precision."""
    needs("masked_conv2d_backward", "masked_conv2d")
    mask = mask_of(kind).to(device)
    active, dilated = active_positions(mask), active_positions(mask, dilate=1)
    exact = [t.requires_grad_() for t in tensors({}, torch.float64, device)]
    convolved = dense(*exact[:3], {})
    x, weight, bias, residual = (t.detach().float().requires_grad_() for t in exact)
    arguments = {"padding": (1,) * 4, "activation": "relu"}
    if form == "residual":
        wanted = [x, weight, bias, residual]
        expected = torch.where(mask[:, None], (exact[3] + convolved).relu(), exact[3])
        got = masked_conv2d(x, weight, bias, active, **arguments, residual=residual)
    else:
        wanted = [x, weight, bias]
        expected = rows_at(convolved.relu(), mask)
        rows = x.permute(0, 2, 3, 1).reshape(-1, 6)[dilated.positions.clamp_min(0).long()] if form == "source" else x
        source = dilated if form == "source" else None
        got = masked_conv2d(rows, weight, bias, active, **arguments, source=source)[: len(expected)]
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)
    for gradient, right in zip(
        torch.autograd.grad(got, wanted, upstream.float()),
        torch.autograd.grad(expected, exact[: len(wanted)], upstream, materialize_grads=True),
    ):
        assert_close(gradient, right)


def test_gradcheck():
    mask = mask_of("random", 1, (4, 3))
    g = torch.Generator().manual_seed(0)
    shapes = (1, 2, 4, 3), (2, 2, 3, 3), (2,), (1, 2, 4, 3)
    wanted = [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]
    active = active_positions(mask)

    def run(x, weight, bias, residual):
        return masked_conv2d(x, weight, bias, active, padding=(1,) * 4, residual=residual)

    assert torch.autograd.gradcheck(run, wanted)


@pytest.mark.parametrize("form", ["residual", "rows"])
def test_opcheck(form):
    x, weight, bias, residual = (t.requires_grad_() for t in tensors({}))
    active = active_positions(mask_of("random"))
    sets = (active.positions, active.counts, None, residual if form == "residual" else None)
    geometry = ((3, 7, 11), (7, 11), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    op = torch.ops.accel.masked_conv2d.default
    results = torch.library.opcheck(op, (x, weight, bias, *sets, *geometry, "relu"))
    assert set(results.values()) == {"SUCCESS"}
    grad = torch.randn(active.total, 6)
    op = torch.ops.accel.masked_conv2d_backward.default
    results = torch.library.opcheck(op, (grad, x.detach(), weight.detach(), *sets[:3], *geometry))
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_as_one_graph_from_the_mask_on(assert_close):
    def run(x, weight, bias, residual, mask):
        return masked_conv2d(x, weight, bias, active_positions(mask), padding=(1,) * 4, residual=residual)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    arguments = [t.requires_grad_() for t in tensors({})]
    for kind in ("random", "empty"):
        mask = mask_of(kind)
        got, expected = compiled(*arguments, mask), run(*arguments, mask)
        assert_close(got, expected, 1e-6)
        for gradients in zip(*(torch.autograd.grad(y.square().sum(), arguments) for y in (got, expected))):
            assert_close(*gradients, 1e-6)


def test_flop_counter_sees_the_active_positions():
    x, weight, bias, residual = tensors({})
    weight.requires_grad_()
    mask = mask_of("random")
    active = active_positions(mask)
    expected = int(mask.sum()) * 6 * 6 * 9
    with FlopCounterMode(display=False) as counter:
        masked_conv2d(x, weight, bias, active, padding=(1,) * 4, residual=residual).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.accel.masked_conv2d] == 2 * expected
    assert counts[torch.ops.accel.masked_conv2d_backward] == 4 * expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 6, 7, 10)}, r"output has \(N, H, W\) = \(3, 7, 10\), but the active set is for"),
        ({"x": torch.zeros(2, 6, 7, 11)}, r"output has \(N, H, W\) = \(2, 7, 11\)"),
        ({"x": torch.zeros(3, 6)}, "rows need source="),
        ({"source": active_positions(torch.ones(3, 7, 11, dtype=torch.bool))}, r"x must be \[231, C\]"),
        ({"residual": torch.zeros(3, 5, 7, 11)}, "residual must have shape"),
        ({"activation": "gelu"}, "activation must be one of"),
    ],
)
def test_bad_arguments_are_named(change, message):
    x, weight, bias, _ = tensors({})
    arguments = {"x": x, "weight": weight, "bias": bias, "active": active_positions(mask_of("random"))}
    with pytest.raises(ValueError, match=message):
        masked_conv2d(**{**arguments, "padding": (1,) * 4, **change})


def test_activation_without_backward_is_refused_in_training():
    x, weight, bias, _ = tensors({})
    active = active_positions(mask_of("random"))
    with pytest.raises(ValueError, match="hardswish has no backward"):
        masked_conv2d(x, weight.requires_grad_(), bias, active, padding=(1,) * 4, activation="hardswish")


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, "plain") for kind in MASKS), *(("random", name) for name in GEOMETRY if name != "plain")],
)
def test_in_place_touches_active_positions_only(backend, needs, device, assert_close, kind, name, accumulate):
    needs("masked_conv2d_", "masked_conv2d")
    geometry = GEOMETRY[name]
    x, weight, bias, before = tensors(geometry, device=device)
    mask = mask_of(kind, size=before.shape[2:]).to(device)
    out = before.clone(memory_format=torch.channels_last)
    got = masked_conv2d_(
        out, x, weight, bias, active_positions(mask), padding=padding(geometry), **geometry, activation="relu",
        accumulate=accumulate,
    )  # fmt: skip
    assert got is out
    values = dense(x.double(), weight.double(), bias.double(), geometry) + accumulate * before.double()
    assert_close(out, torch.where(mask[:, None], values.relu(), before.double()))
    assert torch.equal(rows_at(out, ~mask), rows_at(before, ~mask))  # the others bit by bit


def test_in_place_reads_compact_rows(backend, needs, device, assert_close):
    needs("masked_conv2d_", "masked_conv2d")
    x, weight, bias, before = tensors({}, device=device)
    mask = mask_of("random").to(device)
    active, source = active_positions(mask), active_positions(mask, dilate=1)
    wide = F.max_pool2d(mask[:, None].float(), 3, 1, 1)[:, 0] > 0
    rows = torch.zeros(len(source.positions), 6, device=device)
    rows[: source.total] = rows_at(x, wide)
    out = before.clone(memory_format=torch.channels_last)
    masked_conv2d_(out, rows, weight, bias, active, padding=(1,) * 4, accumulate=True, source=source)
    values = dense(x.double(), weight.double(), bias.double(), {}) + before.double()
    assert_close(out, torch.where(mask[:, None], values, before.double()))


def test_in_place_op_is_registered():
    x, weight, bias, out = tensors({})
    active = active_positions(mask_of("random"))
    out = out.contiguous(memory_format=torch.channels_last)
    geometry = ((3, 7, 11), (7, 11), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    arguments = (out, x, weight, bias, active.positions, active.counts, None, *geometry, "relu", True)
    results = torch.library.opcheck(torch.ops.accel.masked_conv2d_.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    with FlopCounterMode(display=False) as counter:
        masked_conv2d_(out, x, weight, bias, active, padding=(1,) * 4)
    assert counter.get_total_flops() == 2 * len(active.positions) * weight.numel()


def test_in_place_refuses_what_it_cannot_do():
    x, weight, bias, out = tensors({})
    active = active_positions(mask_of("random"))
    with pytest.raises(ValueError, match="must be contiguous in channels_last"):
        masked_conv2d_(out, x, weight, bias, active, padding=(1,) * 4)
    out = out.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="shares memory with x"):
        masked_conv2d_(out, out, weight, bias, active, padding=(1,) * 4)
    with pytest.raises(ValueError, match="has no backward"):
        masked_conv2d_(out, x, weight.requires_grad_(), bias, active, padding=(1,) * 4)
