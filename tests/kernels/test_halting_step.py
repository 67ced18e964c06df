"""halting_step on every backend: the rule, its gradients, both forms."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.reference import halting_step as reference
from accel.ops import halting_step, halting_step_

SHAPES = {
    "ACT": ((5,), (5, 3, 4, 2)),
    "ACT, vectors": ((5,), (5, 7)),
    "SACT": ((2, 7, 5), (2, 3, 7, 5)),
    "SACT, one pixel": ((1, 1, 1), (1, 17, 1, 1)),
    "SACT, wide": ((1, 3, 63), (1, 16, 3, 63)),
    "SACT, no image": ((0, 3, 3), (0, 4, 3, 3)),
}
EPS = 0.01
UNITS = pytest.mark.parametrize(
    ("last", "with_score"), [(False, True), (True, True), (True, False)], ids=["", "last", "last, no score"]
)


def by_hand(h, remainder, last):
    """(goes on, halts, weight) of one position, in Python floats."""
    if remainder <= 0:
        return False, False, 0.0
    if not last and remainder - h > EPS:
        return True, False, h
    return False, True, remainder


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shapes(request):
    return request.param


def state_of(shape, x_shape, device="cpu", dtype=torch.float32):
    """h, x, remainder, ponder, units, output in the middle of a stage: some positions halted, some about to."""
    g = torch.Generator().manual_seed(0)
    h = torch.rand(shape, generator=g, dtype=torch.float64)
    remainder = torch.rand(shape, generator=g, dtype=torch.float64)
    remainder = remainder * (torch.rand(shape, generator=g) < 0.7)
    ponder = 1 + 3 * torch.rand(shape, generator=g, dtype=torch.float64)
    units = torch.randint(0, 4, shape, generator=g, dtype=torch.int32)
    x, output = (torch.randn(x_shape, generator=g, dtype=torch.float64) for _ in range(2))
    return tuple(t if t.dtype is torch.int32 else t.to(dtype) for t in (h, x, remainder, ponder, units, output))


def moved(state, device):
    return [t.to(device) for t in state]


def expected_step(h, x, remainder, ponder, units, output, last):
    """The step position by position."""
    ponder, units, output, left, weight = (t.clone() for t in (ponder, units, output, remainder, remainder))
    for where in torch.cartesian_prod(*map(torch.arange, h.shape)).view(-1, h.dim()).tolist() if h.numel() else []:
        where = tuple(where)
        goes_on, halts, w = by_hand(h[where].item(), remainder[where].item(), last)
        left[where] = remainder[where] - h[where] if goes_on else 0
        ponder[where] += goes_on + halts * w
        units[where] += goes_on + halts
        weight[where] = w
        channels = (where[0], slice(None), *where[1:]) if len(where) == 3 else where
        output[channels] += w * x[channels]
    return left, ponder, units, output, weight


@pytest.mark.parametrize("last", [False, True])
def test_one_step_position_by_position(backend, needs, device, assert_close, shapes, last):
    needs("halting_step", "halting_step")
    state = state_of(*shapes)
    got = halting_step(*moved(state, device), EPS, last)
    expected = expected_step(*state, last)
    assert torch.equal(got[2].cpu(), expected[2])
    for value, right in zip(got, expected):
        assert_close(value, right, 1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_in_place_is_the_same_step(backend, needs, device, shapes, last):
    needs("halting_step_", "halting_step")
    state = state_of(*shapes)
    h, x, *old = moved(state, device)
    if x.dim() == 4:
        x, old[3] = (t.contiguous(memory_format=torch.channels_last) for t in (x, old[3]))
    expected = halting_step(h, x, *old, EPS, last)
    active = halting_step_(h, x, *old, EPS, last)
    for new, right in zip(old, expected):
        assert torch.equal(new, right)
    assert active.dtype is torch.bool and torch.equal(active, expected[0] > 0)


def test_the_last_unit_needs_no_score(backend, needs, device, shapes):
    needs("halting_step", "halting_step")
    h, *rest = moved(state_of(*shapes), device)
    for value, right in zip(halting_step(None, *rest, EPS, True), halting_step(h, *rest, EPS, True)):
        assert torch.equal(value, right)


@UNITS
def test_gradients_are_the_rules(backend, needs, device, assert_close, shapes, last, with_score):
    """By autograd through the rule written with torch.where, in double precision."""
    needs("halting_step_backward", "halting_step")
    exact = state_of(*shapes, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in exact if t.dtype is not torch.int32]
    h, x, remainder, ponder, _, output = exact
    running = remainder > 0
    going = running & (remainder - h > EPS) & (not last)
    weight = torch.where(going, h, torch.where(running, remainder, 0))
    spread = weight[:, None] if h.dim() == 3 else weight.view(-1, *[1] * (x.dim() - 1))
    expected = (
        torch.where(going, remainder - h, 0),
        ponder + going + torch.where(running & ~going, remainder, 0),
        output + spread * x,
        weight,
    )
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in expected]
    right = torch.autograd.grad(expected, leaves, upstream, materialize_grads=True)

    state = [t.detach().to(device, torch.float32) if t.dtype is not torch.int32 else t.to(device) for t in exact]
    wanted = [t.requires_grad_() for t in state if t.dtype is not torch.int32]
    first = state[0] if with_score else None
    new = halting_step(first, *state[1:], EPS, last)
    got = torch.autograd.grad(
        (new[0], new[1], new[3], new[4]), wanted, [u.float().to(device) for u in upstream], materialize_grads=True
    )
    for gradient, value in zip(got, right):
        assert_close(gradient, value)


@pytest.mark.parametrize("last", [False, True])
def test_gradients_of_maps_with_contiguous_pixels(backend, needs, device, assert_close, monkeypatch, shapes, last):
    """The layout that the C engine steps itself, without the reference; every gradient in a layout of its own."""
    needs("halting_step_backward", "halting_step")
    h, x, remainder, ponder, _, output = state_of(*shapes)
    exact = [t.double() for t in (h, x, remainder, h + 1, ponder, output, ponder - 1)]
    expected = reference.halting_step_backward(*exact, EPS, last)
    if backend == "cpu":
        monkeypatch.setattr(reference, "halting_step_backward", None)
    given = [t.float().to(device) for t in exact]
    if h.dim() == 3:
        given[1] = given[1].contiguous(memory_format=torch.channels_last)
        given[4] = given[4].transpose(1, 2).contiguous().transpose(1, 2)
    for gradient, value in zip(torch.ops.accel.halting_step_backward(*given, EPS, last), expected):
        assert_close(gradient, value)


def test_the_gradient_of_a_mean_reaches_the_units_in_their_layout(backend, needs, device):
    """It comes as a view that repeats one value per map, which convolutions would go through slowly."""
    needs("halting_step_backward", "halting_step")
    h, x, *old = moved(state_of(*SHAPES["SACT, wide"]), device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    old[3] = old[3].contiguous(memory_format=torch.channels_last).requires_grad_()
    output = halting_step(h, x, *old, EPS, False)[3]
    got = torch.autograd.grad(output.mean((2, 3)).sum(), (x, old[3]), retain_graph=True)
    even = torch.full_like(output, 1 / output[0, 0].numel())
    for gradient, right in zip(got, torch.autograd.grad(output, (x, old[3]), even)):
        assert gradient.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(gradient, right)


def test_scores_may_be_wider_than_the_units_output(backend, needs, device, assert_close):
    """float32 scores of a float16 network."""
    needs("halting_step", "halting_step")
    if backend == "cpu":
        pytest.skip("the C engine takes float32 only")
    h, x, remainder, ponder, units, output = state_of(*SHAPES["SACT"])
    got = halting_step(*moved((h, x.half(), remainder, ponder, units, output.half()), device), EPS)
    expected = expected_step(h, x, remainder, ponder, units, output, False)
    assert got[3].dtype is torch.float16 and got[4].dtype is torch.float32
    assert_close(got[3], expected[3], 1e-3)


def test_gradcheck_away_from_the_thresholds():
    h, x, remainder, ponder, units, output = state_of((2, 3, 2), (2, 2, 3, 2), dtype=torch.float64)
    distance = (remainder - h - EPS).abs()
    assert distance.min() > 1e-4 and remainder[remainder > 0].min() > 1e-4
    remainder = torch.where(remainder > 0, remainder, -1.0)  # away from the jump at 0 as well
    leaves = [t.requires_grad_() for t in (h, x, remainder, ponder, output)]

    def run(h, x, remainder, ponder, output):
        new = halting_step(h, x, remainder, ponder, units, output, EPS)
        return new[0], new[1], new[3], new[4]

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("name", ["ACT", "SACT"])
def test_opcheck(name):
    state = [t.requires_grad_() if t.is_floating_point() else t for t in state_of(*SHAPES[name])]
    results = torch.library.opcheck(torch.ops.accel.halting_step.default, (*state, EPS, False))
    assert set(results.values()) == {"SUCCESS"}
    plain = [t.detach() for t in state]
    results = torch.library.opcheck(torch.ops.accel.halting_step_.default, (*plain, EPS, False))
    assert set(results.values()) == {"SUCCESS"}
    h, x, remainder, ponder, _, output = plain
    op = torch.ops.accel.halting_step_backward.default
    results = torch.library.opcheck(op, (h, x, remainder, h, ponder, output, h, EPS, False))
    assert set(results.values()) == {"SUCCESS"}


def test_both_forms_compile_as_one_graph():
    state = state_of(*SHAPES["SACT"])
    functional = torch.compile(lambda *s: halting_step(*s, EPS), fullgraph=True, backend="aot_eager")
    for value, right in zip(functional(*state), halting_step(*state, EPS)):
        assert torch.equal(value, right)
    in_place = torch.compile(lambda *s: halting_step_(*s, EPS), fullgraph=True, backend="aot_eager")
    expected = halting_step(*state, EPS)
    h, x, *old = (t.clone() for t in state)
    assert torch.equal(in_place(h, x, *old), expected[0] > 0)
    assert torch.equal(old[3], expected[3])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": None}, ValueError, "h may be None in the last unit only"),
        ({"eps": 1.0}, ValueError, r"eps must be in \[0, 1\)"),
        ({"h": torch.zeros(2, 7, 4)}, ValueError, "h must have shape"),
        ({"remainder": torch.zeros(2, 7)}, ValueError, r"remainder must be \[N\]"),
        ({"units": torch.zeros(2, 7, 5)}, TypeError, "units must be int32"),
        ({"h": torch.zeros(2, 7, 5, dtype=torch.float64)}, TypeError, "h must be"),
        ({"output": torch.zeros(2, 3, 7, 5, dtype=torch.float64)}, TypeError, "output must be"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    names = ("h", "x", "remainder", "ponder", "units", "output")
    arguments = {**dict(zip(names, state_of(*SHAPES["SACT"]))), **change}
    with pytest.raises(error, match=message):
        halting_step(**arguments)
