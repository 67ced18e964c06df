"""Steps between layers in eight bits that work on bytes: bilinear resizings, sums that no layer adds, bounds, means of
a whole map, and the way back to numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Rules
from accel.kernels.positions import every_position
from accel.kernels.quantization import Affine
from accel.nn import byte_maps
from accel.nn.compact import Compact
from accel.nn.inference import installed
from accel.nn.quantized import floating
from accel.profiling.distances import relative_norm
from accel.running import one_by_one
from accel.tests.nn.eight_bits import FILLS, WHOLE, convert, pictures
from accel.tests.nn.replays import programs, unrecorded

HANDED = {"whole": WHOLE, **{name: FILLS[name] for name in ("nearest", "weighted", "fitted")}}


def check(net, rules, passed, monkeypatch, within=2e-2):
    """The network hands bytes over as `passed` says, quantizes its picture alone, and gives the same numbers call by
    call, as one call, and up to rounding layer by layer."""
    fast, x, seen = convert(net, rules), pictures(seed=7), []
    (_, path) = installed(fast)[0]
    assert {name: set(readers) for name, readers in path.chains.bytes.items()} == passed and path.doubt is None
    assert not path.chains.numbers
    own_quantize = Affine.quantize
    with monkeypatch.context() as patch:
        patch.setattr(Affine, "quantize", lambda self, x: seen.append(1) or own_quantize(self, x))
        found = unrecorded(fast, x)
    assert len(seen) == 1, "only the picture is quantized"
    assert torch.equal(fast(x), found) and None not in programs(fast), "recorded"
    with one_by_one():
        own = fast(x)
    assert relative_norm(found, own) < within
    with floating():
        assert relative_norm(fast(x), own) < 3e-2
    assert path.doubt is None
    return fast


class UNet(nn.Module):
    """Two levels; `up` enlarges the deep one."""

    def __init__(self, up):
        super().__init__()
        self.up = up
        self.outer, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.joint, self.last = nn.Conv2d(40, 16, 3, padding=1), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        x = F.relu(self.outer(x))
        deep = F.relu(self.inner(F.max_pool2d(x, 2)))
        return self.last(F.relu(self.joint(torch.cat([x, self.up(deep)], 1))))


BILINEAR = {
    "by a factor": (nn.Upsample(scale_factor=2, mode="bilinear"), "whole nearest fitted"),
    "corner to corner": (nn.UpsamplingBilinear2d(scale_factor=2), "whole weighted"),
    "to a size": (nn.Upsample(size=(20, 20), mode="bilinear"), "whole"),
    "by a factor found again": (nn.Upsample(scale_factor=2.04, mode="bilinear", recompute_scale_factor=True), "whole"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how, fill", [(how, fill) for how, (_, fills) in BILINEAR.items() for fill in fills.split()])
@torch.no_grad()
def test_bilinear_resizing(how, fill, monkeypatch):
    torch.manual_seed(0)
    both = {"inner", "joint"}
    passed = {"outer": both, "inner": both, "joint": {"last"}}
    check(UNet(BILINEAR[how][0]).eval(), HANDED[fill], passed, monkeypatch)


class Layer(nn.Module):
    """What says what bytes stand for."""

    layer_name = "layer"

    def __init__(self, scale, zero_point):
        super().__init__()
        self.input = Affine(scale, zero_point)

    @property
    def quantization(self):
        return self


SIZES = [
    {"size": (9, 5)},
    {"size": (1, 1)},
    {"size": (31, 17), "align_corners": True},
    {"scale_factor": 2.0},
    {"scale_factor": (0.5, 3.0)},
    {"scale_factor": 1.7, "recompute_scale_factor": True},
]


@pytest.mark.parametrize("how", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 40])
def test_bilinear_bytes_are_the_nearest_of_the_numbers(channels, how):
    """Up to fp32 of another order of operations, a thousandth of a step."""
    generator = torch.Generator().manual_seed(channels)
    rows = torch.randint(0, 256, (2 * 7 * 6, channels), generator=generator, dtype=torch.uint8)
    source = Layer(0.25, 31)
    value = Compact(rows, every_position(7, 6), 2)
    found = byte_maps.blend(value, source, mode="bilinear", **how).as_image()
    expected = F.interpolate(source.input.dequantize(value.as_image()), mode="bilinear", **how)
    assert found.shape == expected.shape
    assert (source.input.dequantize(found) - expected).abs().max() <= 0.25 * (0.5 + 1e-3)


class Pyramid(nn.Module):
    """A feature pyramid: maps of two sizes are added where no layer adds them."""

    def __init__(self, mode, activation):
        super().__init__()
        self.mode, self.bound = mode, activation()
        self.fine, self.coarse = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, padding=1)
        self.lateral, self.one = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        fine = F.relu(self.fine(x))
        coarse = F.interpolate(self.lateral(F.relu(self.coarse(fine))), scale_factor=2.0, mode=self.mode)
        return self.last(F.relu(self.one(self.bound(fine + coarse))))


ADDED = [
    ("nearest", nn.ReLU, "whole nearest"),
    ("bilinear", nn.Identity, "whole"),
    ("bilinear", nn.ReLU6, "fitted whole"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode, activation, fill", [(m, a, fill) for m, a, fills in ADDED for fill in fills.split()])
@torch.no_grad()
def test_sums_that_no_layer_adds(mode, activation, fill, monkeypatch):
    torch.manual_seed(0)
    net = Pyramid(mode, activation).eval()
    nn.init.constant_(net.fine.bias, 5.5)  # so that some sums lie above six
    passed = {"fine": {"coarse", "add_1"}, "coarse": {"lateral"}, "lateral": {"add_1"}, "one": {"last"}}
    fast, x = check(net, HANDED[fill], passed, monkeypatch), pictures(seed=7)
    if fill == "whole":
        assert relative_norm(fast(x), net(x)) < 5e-2


@pytest.mark.parametrize("later", [True, False])
@torch.no_grad()
def test_sums_in_place_and_of_maps_of_two_sizes(later):
    """The map that is written to has been read before."""

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
            self.mean, self.three = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            one, two = F.relu(self.one(x)), F.relu(self.two(x))
            shared = self.three(one) * self.three(two)
            if later:
                one += two
            else:
                one = one + self.mean(two)
            return self.three(one) + shared

    torch.manual_seed(0)
    fast, x = convert(InPlace().eval()), pictures(seed=7)
    with one_by_one():
        own = fast(x)
    assert relative_norm(fast(x), own) < 2e-2 and not any(path.doubt for _, path in installed(fast))


class Reads(nn.Module):
    """A map that layers in eight bits read, and something else: `how`."""

    def __init__(self, how):
        super().__init__()
        self.one, self.two, self.how = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), how
        self.three = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = F.relu(self.one(x))
        z = self.three(F.relu(self.two(F.max_pool2d(y, 2))))
        return z.mean((2, 3)) * self.how(y)


@pytest.mark.parametrize("fill", HANDED)
@torch.no_grad()
def test_what_does_not_know_bytes_gets_numbers(fill):
    torch.manual_seed(0)
    fast, x = convert(Reads(lambda y: (y * 2)[:, :4].sum((2, 3))).eval(), HANDED[fill]), pictures(seed=7)
    (_, path) = installed(fast)[0]
    assert path.chains.bytes == {"one": ["two"], "two": ["three"]} and path.chains.numbers["one"] == ["mul"]
    found = unrecorded(fast, x)
    assert torch.equal(fast(x), found)
    with one_by_one():
        own = fast(x)
    assert relative_norm(found, own) < 2e-2 and path.doubt is None


@torch.no_grad()
def test_what_is_written_to_before_a_layer_reads_it_is_no_bytes():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.three = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = F.relu(self.one(x))
            z = self.two(y)
            y[:, :4].mul_(3)
            return self.three(y) * self.three(z)

    torch.manual_seed(0)
    fast, x = convert(Writes().eval()), pictures(seed=7)
    with one_by_one():
        own = fast(x)
    assert relative_norm(fast(x), own) < 2e-2
    assert all(path.doubt is None and "one" not in path.chains.bytes for _, path in installed(fast))


@torch.no_grad()
def test_the_caller_and_a_layer_in_fp32_get_what_was_not_rounded():
    class Returns(Reads):
        def forward(self, x):
            y = F.relu(self.one(x))
            return self.three(F.relu(self.two(y))), y

    torch.manual_seed(0)
    fast = convert(Returns(None).eval())
    assert installed(fast)[0][1].chains.bytes == {"two": ["three"]}
    fast = convert(Reads(nn.Conv2d(8, 4, 20)).eval(), Rules({"how": None, "*": WHOLE}))
    assert installed(fast)[0][1].chains.numbers["one"] == ["max_pool2d", "how"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fill", ["whole", "nearest", "fitted"])
@torch.no_grad()
def test_bounds_behind_a_pooling_and_means_of_a_whole_map(fill, monkeypatch):
    class Context(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
            self.pool, self.mean = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
            self.beside, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 2, 1)

        def forward(self, x):
            x = F.relu(self.pool(self.one(x)))
            mean = F.interpolate(F.relu(self.beside(self.mean(x))), (10, 10), mode="bilinear")
            return self.last(torch.cat([F.relu(self.two(x)), mean], 1))

    torch.manual_seed(0)
    net = Context().eval()
    nn.init.constant_(net.one.bias, 2.0)  # its peaks are not far above its mean
    passed = {"one": {"two", "beside"}, "two": {"last"}, "beside": {"last"}}
    check(net, Rules({"beside": WHOLE, "last": WHOLE, "*": HANDED[fill]}), passed, monkeypatch, within=5e-2)


class Stage(nn.Module):
    """A unit whose shortcut is a convolution and a norm."""

    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, 2, padding=1)
        self.outer, self.short = nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(16, 24, 1, 2)
        self.norm, self.last = nn.BatchNorm2d(24), nn.Conv2d(24, 4, 1)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last(F.relu(self.outer(F.relu(self.inner(x))) + self.norm(self.short(x))))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fill", HANDED)
@torch.no_grad()
def test_shortcuts_that_no_layer_reads(fill, monkeypatch):
    """How far they reach was seen in the calibration; a norm that changes later is followed."""
    torch.manual_seed(0)
    net = Stage().eval()
    nn.init.uniform_(net.norm.weight, -3, 3)
    nn.init.uniform_(net.norm.bias, -1, 1)
    passed = {"first": {"inner", "short"}, "inner": {"outer"}, "short": {"outer"}, "outer": {"last"}}
    fast, x = check(net, HANDED[fill], passed, monkeypatch), pictures(seed=7)
    fast.norm.weight.mul_(2)
    found = fast(x)
    assert torch.equal(found, unrecorded(fast, x))
    with one_by_one():
        assert relative_norm(found, fast(x)) < 2e-2


@torch.no_grad()
def test_bytes_are_added_to_weighted_sums(monkeypatch):
    """In the pass that makes bytes of weighted sums of neighbours."""
    torch.manual_seed(0)
    seen, own = [], byte_maps.as_numbers
    monkeypatch.setattr("accel.nn.perforated.as_numbers", lambda *given: seen.append(1) or own(*given))
    rules = Rules({"outer": FILLS["fitted"], "*": WHOLE})
    fast, x = convert(Stage().eval(), rules), pictures(seed=7)
    assert not unrecorded(fast, x).isnan().any() and not seen, "no detour through fp32"


@pytest.mark.parametrize("batch", [1, 5])
@torch.no_grad()
def test_bytes_pass_from_one_recording_to_another(batch):
    """A transposed convolution, which has no form in eight bits, lies between two; what it gives becomes bytes where it
    is joined with bytes."""

    class Transposed(UNet):
        def __init__(self):
            super().__init__(nn.ConvTranspose2d(24, 24, 2, 2))

    torch.manual_seed(0)
    fast, x = convert(Transposed().eval()), pictures(seed=7)[:batch]
    (_, path) = installed(fast)[0]
    assert path.chains.bytes == {"outer": ["inner", "cat"], "joint": ["last"]} and path.chains.numbers == {
        "inner": ["up"]
    }
    found = unrecorded(fast, x)
    assert all(torch.equal(fast(x), found) for _ in range(2)) and path.doubt is None
    assert len(programs(fast)) == 2 and None not in programs(fast)
    with one_by_one():
        assert relative_norm(found, fast(x)) < 1e-2


@torch.no_grad()
def test_how_far_a_layer_reaches_is_saved(tmp_path):
    torch.manual_seed(0)
    net, x = Stage().eval(), pictures(seed=7)
    fast = convert(net)
    accel.save_converted(fast, tmp_path / "saved")
    again = accel.load_converted(tmp_path / "saved", net)
    assert torch.equal(again.short.quantization.reach, fast.short.quantization.reach)
    assert torch.equal(again(x), fast(x)) and installed(again)[0][1].chains.bytes["short"] == ["outer"]
