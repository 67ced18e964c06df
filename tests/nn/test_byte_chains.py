"""Maps in bytes: who hands them to whom, through poolings and into sums, and what they stand for there."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Rules
from accel.kernels.quantization import Affine
from accel.nn import quantized
from accel.nn.inference import installed
from accel.nn.quantized import floating
from accel.profiling.distances import relative_norm
from accel.running import one_by_one
from accel.tests.nn.eight_bits import FILLS, WHOLE, convert, pictures
from accel.tests.nn.replays import programs, unrecorded

HANDED = {"whole": WHOLE, **{name: FILLS[name] for name in ("nearest", "weighted", "fitted")}}
READ_BY = {"nearest": "zero"}  # whose fill lays rows over something


@pytest.mark.parametrize("fill", HANDED)
@torch.no_grad()
def test_a_layer_gives_bytes_to_the_one_that_alone_reads_it(fill, monkeypatch):
    torch.manual_seed(0)
    units = [(nn.Conv2d(c, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for c in (3, 16, 16)]
    net = nn.Sequential(*(module for unit in units for module in unit)).eval()
    config = HANDED[fill]
    fast, x, seen = convert(net, config), pictures(seed=7), []
    (_, path) = installed(fast)[0]
    assert path.chains.bytes == {"0": ["3"], "3": ["6"]} and path.doubt is None
    own_quantize = Affine.quantize
    monkeypatch.setattr(Affine, "quantize", lambda self, x: seen.append(1) or own_quantize(self, x))
    found, calls = unrecorded(fast, x), len(seen)
    seen.clear()
    with one_by_one():
        own = fast(x)
    assert (calls - len(seen), len(seen)) == (-2, 3), "only the picture is quantized"
    assert relative_norm(found, own) < 2e-3  # requantized in another order of rounding: a few bytes by one step
    assert torch.equal(found == 0, own == 0)
    plan = accel.plan_conversion(net, config, example_inputs=x[:2], calibration=[x])
    assert "bytes to 3" in next(row["note"] for row in plan.rows if row["layer"] == "0")


SIXES = {
    "ReLU6": nn.ReLU6,
    "Hardtanh": lambda: nn.Hardtanh(0, 6),
    "other bounds": lambda: nn.Hardtanh(0, 4),
    "changed bounds": lambda: changed(nn.ReLU6(), max_val=4.0),
}


def changed(module, **settings):
    for name, value in settings.items():
        setattr(module, name, value)
    return module


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", SIXES)
@torch.no_grad()
def test_inverted_residuals(kind, precision):
    """MobileNetV2's: 1x1, depthwise, 1x1, added to what they read; what lies above six is cut off, in bytes too."""

    class Inverted(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), SIXES[kind]())
            wide = [nn.Conv2d(8, 48, 1), nn.BatchNorm2d(48), SIXES[kind]()]
            depthwise = [nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.BatchNorm2d(48), SIXES[kind]()]
            self.unit = nn.Sequential(*wide, *depthwise, nn.Conv2d(48, 8, 1), nn.BatchNorm2d(8))
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.last(x + self.unit(x))

    torch.manual_seed(0)
    net, x = Inverted().eval(), pictures(seed=7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 12, 30)
    assert (net.stem[:2](x) > 6).float().mean() > 0.1
    fast = convert(net, accel.Perforate(keep=1.0, precision=precision))
    (_, path) = installed(fast)[0]
    with one_by_one():
        own = fast(x)
    assert relative_norm(fast(x), own) < (1e-5 if precision == "fp32" else 2e-2) and path.doubt is None
    if kind in ("ReLU6", "Hardtanh"):
        assert all(path.chains.fused[name][-1] == "relu6" for name in ("stem.0", "unit.0", "unit.3"))
        passed = {"stem.0": ["unit.0", "unit.6"], "unit.0": ["unit.3"], "unit.3": ["unit.6"], "unit.6": ["last"]}
        assert path.chains.bytes == (passed if precision == "int8" else {})
    else:
        assert "relu6" not in str(path.chains)


class Sides(nn.Module):
    """A map that a side output reads, and behind a pooling the next layer."""

    def __init__(self):
        super().__init__()
        self.first, self.next = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.side, self.last = nn.Conv2d(16, 1, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        size = x.shape[2:]
        x = F.relu(self.first(x))
        deep = F.relu(self.next(F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)))
        return F.interpolate(self.last(deep), size) + self.side(x)


@pytest.mark.parametrize("fill", HANDED)
@torch.no_grad()
def test_several_layers_get_the_same_bytes_some_behind_a_pooling(fill, monkeypatch):
    torch.manual_seed(0)
    net, x, seen = Sides().eval(), pictures(seed=7), []
    fast = convert(net, Rules({"side": WHOLE, "first": HANDED[fill], "*": FILLS[READ_BY.get(fill, fill)]}))
    (_, path) = installed(fast)[0]
    laid_over = fill in READ_BY
    passed = {name: set(readers) for name, readers in path.chains.bytes.items()}
    assert passed == {"first": {"side", "next"}, **({} if laid_over else {"next": {"last"}})} and path.doubt is None
    own_quantize = Affine.quantize
    monkeypatch.setattr(Affine, "quantize", lambda self, x: seen.append(1) or own_quantize(self, x))
    found = unrecorded(fast, x)
    assert len(seen) == 1 + laid_over, "only the picture is quantized, and what is laid over something"
    with one_by_one():
        own = fast(x)
    assert relative_norm(found, own) < 5e-3  # the reader with the narrower range takes the other's
    with floating():
        assert relative_norm(fast(x), own) < 0.02
    for reader in (fast.side, fast.next):
        reader.quantization = dataclasses.replace(reader.quantization, scale=reader.quantization.scale * 1.5)
    wide = fast(x)  # what changed is followed
    with one_by_one():
        assert relative_norm(wide, fast(x)) < 5e-3 and not torch.equal(wide, found)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fill", HANDED)
@torch.no_grad()
def test_bytes_without_a_batch(fill):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)]
    fast, x = convert(nn.Sequential(*layers).eval(), HANDED[fill]), pictures(seed=7)
    assert installed(fast)[0][1].chains.bytes == {"0": ["3"]}
    assert relative_norm(fast(x[0]), fast(x)[0]) < 2e-3 and installed(fast)[0][1].doubt is None


@torch.no_grad()
def test_a_map_that_somebody_reads_as_numbers_is_no_bytes():
    torch.manual_seed(0)
    net, x = Sides().eval(), pictures(seed=7)
    fast = convert(net, Rules({"side": None, "*": WHOLE}))
    assert installed(fast)[0][1].chains.bytes == {"next": ["last"]}
    with one_by_one():
        own = fast(x)
    assert relative_norm(fast(x), own) < 2e-3


class Shortcut(nn.Module):
    """What a layer reads is added to what it gives, twice; before, what no layer in eight bits reads is added."""

    def __init__(self):
        super().__init__()
        self.first, self.beside = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fourth = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = F.relu(self.second(F.relu(self.first(x))) + self.beside(x))
        y = F.relu(self.third(y) + y)
        return F.relu(self.fourth(y) + y)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("beside", ["numbers", "bytes"])
@pytest.mark.parametrize("fill", HANDED)
@torch.no_grad()
def test_sums_are_of_bytes(fill, beside, monkeypatch):
    """A map that is a layer's input and added to its output: bytes to both; the last one gives numbers. What no layer
    reads is bytes as well, if a layer in eight bits gives it."""
    torch.manual_seed(0)
    net, x, seen = Shortcut().eval(), pictures(seed=8), []
    fast = convert(net, Rules({"beside": None if beside == "numbers" else WHOLE, "*": HANDED[fill]}))
    (_, path) = installed(fast)[0]
    sums = {"second": ["third"], "third": ["fourth"], **({"beside": ["second"]} if beside == "bytes" else {})}
    assert path.chains.bytes == {"first": ["second"], **sums} and path.doubt is None
    assert all("residual" in path.chains.fused[name] for name in ("second", "third", "fourth"))
    own_convolve = quantized.quantized_conv2d

    def convolve(x, weight, *given, residual=None, **how):
        out = own_convolve(x, weight, *given, residual=residual, **how)
        seen.append((None if residual is None else residual.dtype, out.dtype))
        return out

    monkeypatch.setattr(quantized, "quantized_conv2d", convolve)
    found = fast(x)
    with one_by_one():
        own = fast(x)
    assert relative_norm(found, own) < 2e-2 and relative_norm(found, net(x)) < relative_norm(own, net(x)) + 1e-2
    if fill in ("whole", "nearest"):  # weighted sums are added to where they are made
        numbers, bytes_ = torch.float32, torch.uint8
        assert ((numbers, bytes_) in seen) == (beside == "numbers")
        assert (bytes_, bytes_) in seen and (numbers, numbers) in seen
    assert relative_norm(fast(x[0]), found[0]) < 2e-2 and path.doubt is None


@torch.no_grad()
def test_integers_that_the_model_adds_are_numbers():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.second(F.relu(self.first(x))) + (x[:, :1] > 0).to(torch.uint8).expand(-1, 8, -1, -1)

    torch.manual_seed(0)
    net, x = Adds().eval(), pictures(seed=8)
    fast = convert(net)
    assert installed(fast)[0][1].chains.bytes == {"first": ["second"]}
    with one_by_one():
        own = fast(x)
    assert relative_norm(fast(x), own) < 2e-3


class UNet(nn.Module):
    """Two levels: pooled, resized to the nearest position, and joined with the map before; `how` resizes."""

    def __init__(self, how, dim=1):
        super().__init__()
        self.how, self.dim = how, dim
        self.outer, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.joint, self.last = nn.Conv2d(40, 16, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        x = F.relu(self.outer(x))
        deep = F.relu(self.inner(F.max_pool2d(x, 2)))
        return self.last(F.relu(self.joint(torch.cat([x, self.how(deep, x)], self.dim))))


class Up(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.UpsamplingNearest2d(scale_factor=2)

    def forward(self, deep, x):
        return self.up(deep)


RESIZED = {
    "by a factor": lambda deep, x: F.interpolate(deep, scale_factor=2),
    "to a size": lambda deep, x: F.interpolate(deep, (20, 20), mode="nearest-exact"),
    "to that of a map": lambda deep, x: F.interpolate(deep, size=x.shape[-2:]),
    "by a module": Up(),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fill", HANDED)
@pytest.mark.parametrize("how", RESIZED)
@torch.no_grad()
def test_maps_of_bytes_are_resized_and_joined(how, fill, monkeypatch):
    torch.manual_seed(0)
    net, x, seen = UNet(RESIZED[how]).eval(), pictures(seed=7), []
    fast = convert(net, HANDED[fill])
    (_, path) = installed(fast)[0]
    passed = {name: set(readers) for name, readers in path.chains.bytes.items()}
    both = {"inner", "joint"}
    assert passed == {"outer": both, "inner": both, "joint": {"last"}} and path.doubt is None
    own_quantize = Affine.quantize
    monkeypatch.setattr(Affine, "quantize", lambda self, x: seen.append(1) or own_quantize(self, x))
    found = unrecorded(fast, x)
    assert len(seen) == 1, "only the picture is quantized"
    assert torch.equal(fast(x), found), "recorded, where it is"
    with one_by_one():
        own = fast(x)
    assert relative_norm(found, own) < 5e-3
    with floating():
        assert relative_norm(fast(x), own) < 0.02
    assert path.doubt is None


@torch.no_grad()
def test_a_network_of_joined_maps_runs_as_one_call():
    torch.manual_seed(0)
    fast, x = convert(UNet(RESIZED["by a factor"]).eval()), pictures(seed=7)
    fast(x)
    assert len(programs(fast)) == 1 and None not in programs(fast)


class Joins(nn.Module):
    """Maps of two layers are joined in a dimension."""

    def __init__(self, dim):
        super().__init__()
        self.one, self.two, self.dim = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), dim
        self.last = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x):
        return self.last(torch.cat((F.relu(self.one(x)), F.relu(self.two(x))), dim=self.dim))


@pytest.mark.parametrize("dim", [1, -3])
@torch.no_grad()
def test_joined_without_a_batch(dim):
    """Dimension 1 is then the height."""
    torch.manual_seed(0)
    net, x = Joins(dim).eval(), pictures(seed=7)
    fast = convert(net, HANDED["nearest"])
    assert installed(fast)[0][1].chains.bytes == {"one": ["last"], "two": ["last"]}
    if dim == 1:
        for each in (net, fast):
            with pytest.raises((RuntimeError, ValueError)):
                each(x[0])
    else:
        assert relative_norm(fast(x[0]), fast(x)[0]) < 2e-3
    assert installed(fast)[0][1].doubt is None


POOLS = {
    "pads count": nn.AvgPool2d(3, 2, 1),
    "they do not": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "rounded up": nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False),
    "divided by 5": nn.AvgPool2d((2, 3), divisor_override=5),
    "a function": None,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fill", HANDED)
@pytest.mark.parametrize("kind", POOLS)
@torch.no_grad()
def test_means_of_bytes(kind, fill, monkeypatch):
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = POOLS[kind]
            self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
            self.beside = nn.Conv2d(16, 8, 1)

        def forward(self, x):
            x = F.relu(self.one(x))
            pooled = F.avg_pool2d(x, 2) if self.pool is None else self.pool(x)
            return torch.cat([self.two(pooled).flatten(-3), self.beside(x).flatten(-3)], -1)

    torch.manual_seed(0)
    net, x, seen = Pools().eval(), pictures(seed=7), []
    fast = convert(net, HANDED[fill])
    (_, path) = installed(fast)[0]
    assert {name: {*readers} for name, readers in path.chains.bytes.items()} == {"one": {"two", "beside"}}
    own_quantize = Affine.quantize
    monkeypatch.setattr(Affine, "quantize", lambda self, x: seen.append(1) or own_quantize(self, x))
    found = unrecorded(fast, x)
    assert len(seen) == 1, "only the picture is quantized"
    assert torch.equal(fast(x), found) and None not in programs(fast)
    with one_by_one():
        own = fast(x)
    assert relative_norm(found, own) < 2e-2  # a map is rounded to bytes before its mean is
    with floating():
        assert relative_norm(fast(x), own) < 0.02
    assert relative_norm(fast(x[0]), found[0]) < 2e-2 and path.doubt is None


@pytest.mark.parametrize(
    "mover", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)], ids=lambda m: type(m).__name__
)
@torch.no_grad()
def test_called_by_keyword(mover):
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.mover, self.two = nn.Conv2d(3, 8, 3), mover, nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.two(self.mover(input=self.one(input=x)))

    torch.manual_seed(0)
    fast, x = convert(Keyword().eval()), pictures(seed=7)
    with one_by_one():
        own = fast(x)
    assert relative_norm(fast(x), own) < 2e-3 and not any(path.doubt for _, path in installed(fast))
    passed = [] if isinstance(mover, nn.AvgPool2d) else [{"one": ["two"]}]
    assert [path.chains.bytes for _, path in installed(fast)] == passed


@torch.no_grad()
def test_what_only_means_are_read_of_is_no_bytes():
    """Their range would cut off the peaks of the map."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(16, 8, 3, padding=1)).eval()
    fast, x = convert(net), pictures(seed=7)
    with one_by_one():
        own = fast(x)
    assert relative_norm(fast(x), own) < 1e-5
    assert not any(path.chains.bytes for _, path in installed(fast))


@pytest.mark.parametrize("fill", HANDED)
@torch.no_grad()
def test_what_would_be_too_coarse_is_not_shared(fill):
    """A map is joined with one that is a hundred times as large: its other reader would see three of its bytes, so that
    they get another meaning where they are joined."""
    torch.manual_seed(0)
    net, x = UNet(RESIZED["by a factor"]).eval(), pictures(seed=7)
    net.inner.weight.mul_(100)
    fast = convert(net, HANDED[fill])
    (_, path) = installed(fast)[0]
    assert path.chains.bytes == {"outer": ["inner", "cat"], "inner": ["cat"], "joint": ["last"]}
    found = unrecorded(fast, x)
    assert torch.equal(fast(x), found) and None not in programs(fast) and path.doubt is None
    with one_by_one():
        own = fast(x)
    assert relative_norm(found, own) < 5e-3


@torch.no_grad()
def test_numbers_become_bytes_where_they_are_joined():
    class Mixed(UNet):
        def forward(self, x):
            x = F.hardswish(self.outer(x))
            deep = F.relu(self.inner(F.max_pool2d(x, 2)))
            return self.last(F.relu(self.joint(torch.cat([x, self.how(deep, x)], 1))))

    torch.manual_seed(0)
    net, x = Mixed(RESIZED["by a factor"]).eval(), pictures(seed=7)
    fast = convert(net)
    (_, path) = installed(fast)[0]
    assert path.chains.bytes == {"inner": ["cat"], "joint": ["last"]} and path.doubt is None
    assert path.chains.numbers == {"outer": ["max_pool2d", "cat"]}, "bytes do not have that activation"
    with one_by_one():
        own = fast(x)
    assert relative_norm(fast(x), own) < 5e-3
