"""perforated_conv2d on every backend against F.conv2d, and what torch.library asks of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from accel.kernels.counting import FVCORE_HANDLES
from accel.kernels.dispatch import use_backend
from accel.kernels.positions import PositionSet, output_size
from accel.ops import perforated_conv2d
from accel.tests.kernels.named import ACTIVATIONS, PAD


@dataclasses.dataclass
class Case:
    """One convolution: shapes and geometry."""

    n: int = 2
    c: int = 4
    k: int = 6
    size: tuple[int, int] = (7, 5)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    mode: str = "zeros"
    keep: float = 0.5

    @property
    def out_size(self) -> tuple[int, int]:
        return output_size(self.size, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def geometry(self) -> dict:
        names = ("stride", "padding", "dilation", "groups")
        return {"padding_mode": self.mode, **{name: getattr(self, name) for name in names}}

    def tensors(self, dtype=torch.float32, device="cpu"):
        """x, weight, bias, residual."""
        g = torch.Generator().manual_seed(1)
        shapes = (self.n, self.c, *self.size), (self.k, self.c // self.groups, *self.kernel), (self.k,)
        shapes += ((self.n, self.k, *self.out_size),)
        return [torch.randn(shape, generator=g, dtype=torch.float64).to(device, dtype) for shape in shapes]

    def dense(self, x, weight, bias):
        """The same convolution by torch, everywhere."""
        top, bottom, left, right = self.padding
        x = F.pad(x, (left, right, top, bottom), mode=PAD[self.mode])
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)


def fill(dense, positions):
    """Every position of a dense map replaced by the value at its stand-in."""
    source = positions.positions.long()[positions.nearest.long()].to(dense.device)
    return dense.flatten(2)[:, :, source].view(dense.shape)


def rows_at(dense, positions):
    """[N, K, H, W] -> [N * P, K]."""
    return dense.flatten(2)[:, :, positions.positions.long()].transpose(1, 2).flatten(0, 1)


CASES = {
    "plain": Case(),
    "one pixel": Case(size=(1, 1), kernel=(1, 1), padding=(0, 0, 0, 0), keep=1.0),
    "one position": Case(keep=0.01),
    "full": Case(keep=1.0),
    "prime sizes, odd channels": Case(n=1, c=3, k=5, size=(13, 17)),
    "wide": Case(c=16, k=40, size=(3, 63)),
    "1x1": Case(kernel=(1, 1), padding=(0, 0, 0, 0)),
    "5x3": Case(kernel=(5, 3), padding=(2, 2, 1, 1)),
    "5x5 stride 2, 3 channels": Case(c=3, size=(11, 10), kernel=(5, 5), stride=(2, 2), padding=(2, 2, 2, 2)),
    "stride 2x1": Case(stride=(2, 1)),
    "dilation": Case(dilation=(2, 1), size=(9, 8)),
    "uneven padding": Case(padding=(0, 2, 3, 1)),
    "groups": Case(c=6, k=4, groups=2),
    "depthwise": Case(c=4, k=4, groups=4),
    "depthwise, two outputs a channel": Case(c=2, k=4, groups=2),
    "reflect": Case(mode="reflect"),
    "replicate": Case(mode="replicate", padding=(2, 1, 0, 3)),
    "circular": Case(mode="circular"),
    "63 channels": Case(c=63, k=7),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
def test_is_conv2d_at_the_positions(backend, device, case, random_set, assert_close, compact, with_residual):
    x, weight, bias, residual = case.tensors(device=device)
    positions = random_set(*case.out_size, case.keep).to(device)
    take = rows_at if compact else fill
    residual = rows_at(residual, positions) if compact else residual
    expected = take(case.dense(x.double(), weight.double(), bias.double()), positions)
    expected = (expected + residual.double() * with_residual).relu()
    residual = residual if with_residual else None
    got = perforated_conv2d(
        x, weight, bias, positions, **case.geometry, activation="relu", residual=residual, compact=compact
    )
    assert_close(got, expected)
    assert compact or got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_every_gradient(backend, needs, device, case, random_set, assert_close, compact):
    """dX, dW, db and d residual, through a ReLU, against autograd of the oracle in double precision."""
    needs("perforated_conv2d_backward", "perforated_conv2d")
    positions = random_set(*case.out_size, case.keep).to(device)
    exact = [t.requires_grad_() for t in case.tensors(torch.float64, device)]
    convolved = case.dense(*exact[:3])
    out = (rows_at(convolved + exact[3], positions) if compact else fill(convolved, positions) + exact[3]).relu()
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)
    expected = torch.autograd.grad(out, exact, upstream)

    tensors = [t.detach().float().requires_grad_() for t in exact]
    residual = rows_at(tensors[3], positions) if compact else tensors[3]
    got = perforated_conv2d(
        *tensors[:3], positions, **case.geometry, activation="relu", residual=residual, compact=compact
    )
    for gradient, right in zip(torch.autograd.grad(got, tensors, upstream.float()), expected):
        assert_close(gradient, right)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_their_gradients(backend, needs, device, random_set, assert_close, activation):
    needs("perforated_conv2d_backward", "perforated_conv2d")
    case = CASES["plain"]
    positions = random_set(*case.out_size, case.keep).to(device)
    exact = [t.requires_grad_() for t in case.tensors(torch.float64, device)]
    expected = ACTIVATIONS[activation](fill(case.dense(*exact[:3]), positions) + exact[3])
    tensors = [t.detach().float().requires_grad_() for t in exact]
    arguments = dict(case.geometry, activation=activation, residual=tensors[3])
    got = perforated_conv2d(*tensors[:3], positions, **arguments)
    with torch.no_grad():
        fused = perforated_conv2d(*tensors[:3], positions, **arguments)
    assert_close(got, expected)
    assert_close(fused, expected)
    gradients = torch.autograd.grad(got.square().sum(), tensors), torch.autograd.grad(expected.square().sum(), exact)
    for gradient, right in zip(*gradients):
        assert_close(gradient, right)


def test_permuted_full_set_is_the_dense_convolution(backend, device, random_set, assert_close):
    case = CASES["groups"]
    x, weight, bias, _ = case.tensors(device=device)
    positions = random_set(*case.out_size, 1.0).to(device)
    assert positions.is_full and not torch.equal(positions.positions, positions.positions.sort().values)
    got = perforated_conv2d(x, weight, bias, positions, **case.geometry)
    assert_close(got, case.dense(x.double(), weight.double(), bias.double()))


@pytest.mark.parametrize("mode", PAD)
def test_compact_input_is_the_interpolated_input(backend, needs, device, random_set, assert_close, mode):
    """Reading rows through the source's map equals convolving the interpolated map; so do the gradients."""
    needs("perforated_conv2d_backward", "perforated_conv2d")
    case = Case(mode=mode, stride=(2, 1))
    _, weight, bias, _ = case.tensors(device=device)
    source = random_set(*case.size, 0.4, seed=5).to(device)
    positions = random_set(*case.out_size, 0.5).to(device)
    rows = torch.randn(2 * len(source), case.c, generator=torch.Generator().manual_seed(3)).to(device)

    exact = rows.double().requires_grad_()
    weight64 = weight.double().requires_grad_()
    pixels = exact.unflatten(0, (2, -1))[:, source.nearest.long()].transpose(1, 2)
    dense = fill(case.dense(pixels.unflatten(2, case.size), weight64, bias.double()), positions)
    rows.requires_grad_()
    weight.requires_grad_()
    got = perforated_conv2d(rows, weight, bias, positions, **case.geometry, source=source)
    assert_close(got, dense)
    for gradient, right in zip(
        torch.autograd.grad(got.square().sum(), (rows, weight)),
        torch.autograd.grad(dense.square().sum(), (exact, weight64)),
    ):
        assert_close(gradient, right)


def test_any_memory_format(backend, device, random_set, assert_close):
    case = CASES["plain"]
    x, weight, bias, residual = case.tensors(device=device)
    positions = random_set(*case.out_size, case.keep).to(device)
    expected = perforated_conv2d(x, weight, bias, positions, **case.geometry, residual=residual)
    wide = torch.empty(case.n, case.c, *case.size[:1], 2 * case.size[1], device=device)[..., ::2].copy_(x)
    channels_last = torch.channels_last
    for form in (x.contiguous(memory_format=channels_last), wide, x.transpose(2, 3).contiguous().transpose(2, 3)):
        got = perforated_conv2d(
            form, weight.contiguous(memory_format=channels_last), bias, positions, **case.geometry,
            residual=residual.contiguous(memory_format=channels_last),
        )  # fmt: skip
        assert_close(got, expected, 1e-6)


def test_reads_nothing_that_it_does_not_need(backend, device):
    """NaN outside the windows of the kept positions leaves no trace, and NaN inside one does."""
    positions = PositionSet(torch.tensor([0], dtype=torch.int32), torch.zeros(64, dtype=torch.int32), 8, 8).to(device)
    x = torch.full((1, 4, 8, 8), float("nan"), device=device)
    x[:, :, :2, :2] = 1.0
    weight = torch.ones(2, 4, 3, 3, device=device)
    got = perforated_conv2d(x, weight, None, positions, padding=(1, 1, 1, 1))
    assert torch.equal(got, torch.full_like(got, 16.0))
    x[:, :, 1, 1] = float("nan")
    assert perforated_conv2d(x, weight, None, positions, padding=(1, 1, 1, 1)).isnan().all()


def test_bias_gradient_counts_every_position(backend, needs, device, random_set):
    """With ones upstream, db is images x positions of the map, not of the set."""
    needs("perforated_conv2d_backward", "perforated_conv2d")
    case = CASES["plain"]
    x, weight, bias, _ = case.tensors(device=device)
    positions = random_set(*case.out_size, 0.3).to(device)
    bias.requires_grad_()
    perforated_conv2d(x, weight, bias, positions, **case.geometry).sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, 2 * 7 * 5))


def test_empty_batch(backend, device, random_set):
    case = CASES["plain"]
    x, weight, bias, _ = case.tensors(device=device)
    positions = random_set(*case.out_size, case.keep).to(device)
    assert perforated_conv2d(x[:0], weight, bias, positions, **case.geometry).shape == (0, 6, 7, 5)
    assert perforated_conv2d(x[:0], weight, bias, positions, **case.geometry, compact=True).shape == (0, 6)


def op_arguments(case, positions, tensors, compact, activation="relu"):
    sets = (positions.positions, positions.nearest, None)
    geometry = (case.stride, case.padding, case.dilation, case.groups, case.mode, activation, compact)
    return (*tensors[:3], *sets, tensors[3], (case.n, *case.size), case.out_size, *geometry)


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_opcheck(random_set, compact):
    case = CASES["groups"]
    tensors = [t.requires_grad_() for t in case.tensors()]
    positions = random_set(*case.out_size, case.keep)
    if compact:
        tensors[3] = rows_at(tensors[3], positions).detach().requires_grad_()
    arguments = op_arguments(case, positions, tensors, compact)
    with use_backend("reference"):
        results = torch.library.opcheck(torch.ops.accel.perforated_conv2d.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_opcheck_of_the_backward(random_set):
    case = CASES["stride 2x1"]
    x, weight, _, _ = case.tensors()
    positions = random_set(*case.out_size, case.keep)
    grad = torch.randn(case.n * len(positions), case.k)
    sizes = ((case.n, *case.size), case.out_size, case.stride, case.padding, case.dilation, case.groups, case.mode)
    op = torch.ops.accel.perforated_conv2d_backward.default
    results = torch.library.opcheck(op, (grad, x, weight, positions.positions, None, *sizes))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_gradcheck(random_set, compact):
    case = Case(n=1, c=2, k=2, size=(4, 3))
    positions = random_set(*case.out_size, case.keep)
    tensors = [t.requires_grad_() for t in case.tensors(torch.float64)]
    if compact:
        tensors[3] = rows_at(tensors[3], positions).detach().requires_grad_()

    def run(x, weight, bias, residual):
        return perforated_conv2d(x, weight, bias, positions, **case.geometry, residual=residual, compact=compact)

    assert torch.autograd.gradcheck(run, tensors)


def test_compiles_as_one_graph(random_set, assert_close):
    """Outputs and gradients under torch.compile(fullgraph=True), also for a batch size not compiled for."""
    case = CASES["plain"]
    positions = random_set(*case.out_size, case.keep)

    def run(x, weight, bias, residual):
        kwargs = dict(case.geometry, activation="relu", residual=residual)
        return perforated_conv2d(x, weight, bias, positions, **kwargs).square()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for n in (2, 3, 5):
        tensors = [t.requires_grad_() for t in dataclasses.replace(case, n=n).tensors()]
        out, expected = compiled(*tensors), run(*tensors)
        assert_close(out, expected, 1e-6)
        for gradients in zip(*(torch.autograd.grad(y.sum(), tensors) for y in (out, expected))):
            assert_close(*gradients, 1e-6)


def test_compiles_through_inductor(random_set, assert_close):
    case = CASES["plain"]
    x, weight, bias, _ = case.tensors()
    positions = random_set(*case.out_size, case.keep)

    def run(x):
        return perforated_conv2d(x.relu(), weight, bias, positions, **case.geometry) + 1

    with torch.no_grad():
        assert_close(torch.compile(run, fullgraph=True)(x), run(x), 1e-6)


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_counters_see_the_executed_macs(random_set, compact):
    """2 images x 18 of 35 positions x 6 x 2 x 3 x 3, forward; the same again for dX and for dW."""
    case = Case(groups=2)
    tensors = [t.requires_grad_() for t in case.tensors()]
    positions = random_set(*case.out_size, case.keep)
    expected = 2 * 18 * 6 * 2 * 9
    with FlopCounterMode(display=False) as counter:
        perforated_conv2d(*tensors[:3], positions, **case.geometry, compact=compact).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.accel.perforated_conv2d] == 2 * expected
    assert counts[torch.ops.accel.perforated_conv2d_backward] == 4 * expected
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        perforated_conv2d(*tensors[:3], positions, **case.geometry, compact=compact)
    assert counter.get_total_flops() == 2 * expected


def test_fvcore_sees_the_executed_macs(random_set):
    from fvcore.nn import FlopCountAnalysis

    case = CASES["plain"]
    x, weight, bias, _ = case.tensors()
    positions = random_set(*case.out_size, case.keep)

    class Net(torch.nn.Module):
        def forward(self, x):
            return perforated_conv2d(x, weight, bias, positions, **case.geometry)

    analysis = FlopCountAnalysis(Net(), (x,)).set_op_handle(**FVCORE_HANDLES)
    assert analysis.total() == 2 * 18 * 6 * 4 * 9


def test_autocast_on_a_cpu_computes_in_float32(random_set, assert_close):
    case = CASES["plain"]
    x, weight, bias, _ = case.tensors()
    positions = random_set(*case.out_size, case.keep)
    expected = perforated_conv2d(x.bfloat16().float(), weight, bias, positions, **case.geometry)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = perforated_conv2d(x.bfloat16(), weight, bias, positions, **case.geometry)
    assert got.dtype is torch.float32
    assert_close(got, expected, 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 7, 5)}, "expects 4 input channels"),
        ({"x": torch.zeros(4, 35)}, "rows need source="),
        ({"x": torch.zeros(2, 4, 7, 6)}, "output is 7x6, but the position set is for 7x5"),
        ({"x": torch.zeros(2, 4, 1, 1), "padding": (0, 0, 0, 0)}, "does not fit an input of 1x1"),
        ({"weight": torch.zeros(6, 4, 3)}, r"weight must be \[K"),
        ({"bias": torch.zeros(5)}, r"bias must have shape \(6,\)"),
        ({"groups": 4}, "groups must divide the 6 output channels"),
        ({"stride": (0, 1)}, "pairs of positive ints"),
        ({"dilation": (1,)}, "pairs of positive ints"),
        ({"padding": (1, 1)}, "padding must be"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of"),
        ({"activation": "gelu"}, "activation must be one of"),
        ({"residual": torch.zeros(2, 6, 7, 4)}, "residual must have shape"),
        ({"residual": torch.zeros(2, 6, 7, 5), "compact": True}, "residual must have shape"),
    ],
)
def test_bad_arguments_are_named(random_set, change, message):
    x, weight, bias, _ = Case().tensors()
    arguments = {"x": x, "weight": weight, "bias": bias, "positions": random_set(7, 5, 0.5), "padding": (1,) * 4}
    with pytest.raises(ValueError, match=message):
        perforated_conv2d(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(6, 4, 3, 3, dtype=torch.float64)}, "weight is torch.float64"),
        ({"bias": torch.zeros(6, dtype=torch.float16)}, "bias is torch.float16"),
        ({"x": torch.zeros(2, 4, 7, 5, dtype=torch.int32)}, "x must be a floating tensor"),
    ],
)
def test_bad_dtypes_are_named(random_set, change, message):
    x, weight, bias, _ = Case().tensors()
    arguments = {"x": x, "weight": weight, "bias": bias, "positions": random_set(7, 5, 0.5), "padding": (1,) * 4}
    with pytest.raises(TypeError, match=message):
        perforated_conv2d(**{**arguments, **change})


def test_a_call_seen_before_is_still_checked(random_set):
    """The checks are remembered by kind of call: one that differs in any part is checked again."""
    x, weight, bias, residual = Case().tensors()
    positions = random_set(7, 5, 0.5)
    good = {"padding": [1, 1, 1, 1], "residual": residual}
    with torch.no_grad():
        first = perforated_conv2d(x, weight, bias, positions, **good)
        assert torch.equal(perforated_conv2d(x, weight, bias, positions, **good), first)
        for change in ({"padding": (1, 1, 1, 2)}, {"residual": residual[:1]}, {"compact": True}, {"groups": 2}):
            with pytest.raises(ValueError):
                perforated_conv2d(x, weight, bias, positions, **{**good, **change})
        with pytest.raises(ValueError):
            perforated_conv2d(x, weight, bias[:5], positions, **good)
        with pytest.raises(TypeError):
            perforated_conv2d(x, weight.half(), bias, positions, **good)
        with pytest.raises(ValueError):
            perforated_conv2d(x, weight, bias, random_set(7, 6, 0.5), **good)


def test_source_must_fit_the_rows(random_set):
    _, weight, bias, _ = Case().tensors()
    with pytest.raises(ValueError, match=r"x must be \[N \* 12, C\]"):
        perforated_conv2d(
            torch.zeros(25, 4), weight, bias, random_set(7, 5, 0.5), padding=(1,) * 4, source=random_set(6, 4, 0.5)
        )
