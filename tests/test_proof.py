"""The proof of a conversion on its example, and the layouts that a model's own forward can read."""

import copy
import dataclasses
import warnings
from types import FunctionType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate, Rules
from accel.convert import perforated_layers, proof
from accel.errors import ConversionError
from accel.kernels import perforated_conv2d as op
from accel.nn import pipeline
from accel.nn.inference import describe_paths, installed, refused_parts
from accel.nn.perforated import PerforatedConv2d
from accel.running import one_by_one

HALF = Perforate(keep=0.5, mask="lattice")
WHOLE = Perforate(keep=1.0)


def image(size=12):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.next = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return F.relu(self.next(F.relu(self.conv(x))) + x)


@pytest.fixture
def lossy(monkeypatch):
    """A rewriting that loses the residual of every sum."""
    own = pipeline._fuse_sum

    def lose(addition, modules, chains):
        own(addition, modules, chains)
        for node in addition.graph.nodes:
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "residual"}

    monkeypatch.setattr(pipeline, "_fuse_sum", lose)


def test_a_part_whose_rewritten_path_is_wrong_runs_its_own_forward(lossy, tmp_path):
    net = nn.Sequential(Unit(), nn.Flatten()).eval()
    with pytest.warns(UserWarning, match="runs module by module, nothing fused: its rewritten path differs by 0"):
        fast = accel.convert_model(net, HALF, example_inputs=image())
    with torch.no_grad(), one_by_one():
        expected = fast(image())
    accel.save_converted(fast, tmp_path)
    fast[0].flag = True  # traced again, and still refused
    for each in (fast, copy.deepcopy(fast), accel.load_converted(tmp_path, net)):
        with torch.no_grad():
            torch.testing.assert_close(each(image()), expected)
        assert list(refused_parts(each)) == [""] and installed(each)[0][1].rewritten is None
        assert "nothing fused" in describe_paths(each, image())["0.conv"]
    assert installed(accel.revert_model(fast)) == []


def test_the_proof_is_skipped_only_with_a_word(lossy):
    with pytest.warns(UserWarning, match="verify=False"):
        fast = accel.convert_model(Unit().eval(), HALF, example_inputs=image(), verify=False)
    assert refused_parts(fast) == {} and installed(fast)
    with pytest.warns(UserWarning, match="verify=False"):
        accel.plan_conversion(Unit(), HALF, example_inputs=image(), verify=False)


def test_a_rewritten_path_that_raises_is_left_alone(monkeypatch):
    def broken(*_, **__):
        raise IndexError("no such row")

    monkeypatch.setattr(pipeline.compact, "global_mean", broken)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    with pytest.warns(UserWarning, match="raises IndexError"):
        fast = accel.convert_model(net, HALF, example_inputs=image())
    with torch.no_grad():
        assert fast(image()).shape == (2, 4, 1, 1)


@pytest.mark.parametrize("config", [WHOLE, HALF, Perforate(keep=0.5, mask="adaptive")])
def test_a_layer_that_computes_something_else_is_refused(config, monkeypatch):
    real = op.implementation

    def shifted(name, x, module=None):
        run = real(name, x, module)
        return (lambda *arguments: run(*arguments) + 1e-3) if name == "perforated_conv2d" else run

    monkeypatch.setattr(op, "implementation", shifted)
    with pytest.raises(ConversionError, match=r"layer '0' differs by 0\.\d+ from torch's convolution .* \{'0': None\}"):
        accel.convert_model(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), config, example_inputs=image())


class Noisy(Unit):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        x = F.dropout(super().forward(x), training=True)
        return {"map": x + torch.rand_like(x), "rest": [x.argmax(1), (None, 3)], "huge": x * 1e38 * 10}


def test_random_numbers_states_and_odd_outputs_are_compared():
    net = Noisy().eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = accel.convert_model(net, HALF, example_inputs=image())
    assert installed(fast) and refused_parts(fast) == {}
    assert fast.calls.item() == net.calls.item()
    torch.set_rng_state(before)
    with torch.no_grad():
        found = fast(image())
        torch.set_rng_state(before)
        with one_by_one():
            expected = fast(image())
    torch.testing.assert_close(found["map"], expected["map"], rtol=1e-4, atol=1e-5)
    assert not found["huge"].isfinite().all()


def test_what_differs():
    @dataclasses.dataclass
    class Output:
        map: torch.Tensor

    x = torch.randn(2, 3)
    nan = torch.tensor([1.0, float("nan"), float("inf")])
    same = [(x, x + 1e-7 * x), (nan, nan.clone()), (Output(x), Output(x.clone())), ({"a": [x, 1, None]},) * 2]
    same += [(torch.zeros(0), torch.zeros(0)), (x * 1e38, x * 1e38), (x.half(), (x + 1e-4).half())]
    same += [(torch.arange(200), torch.arange(200).clamp(1)), (torch.zeros(3), torch.zeros(3))]
    other = [(x, x + 1e-3), (nan, nan.flip(0)), (Output(x), Output(x + 1)), ({"a": x}, {"b": x}), ([x], [x, x])]
    other += [(x, x.double()), (x, x[:1]), (1, 2), (x, None), (torch.arange(9), torch.arange(9) + 1)]
    other += [(torch.zeros(3), torch.ones(3)), (torch.ones(3), torch.full((3,), float("nan")))]
    assert [proof.difference(*pair) for pair in same] == [None] * len(same)
    assert all(proof.difference(*pair) for pair in other)


class LeNet(nn.Module):
    """Views its maps, as most networks of before 2019 do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8 * 9, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x))
        return self.fc(x.view(self.rows(x), -1))

    def rows(self, x):
        return x.size(0)


class Untraceable(LeNet):
    def rows(self, x):
        return len(x)  # of a proxy there is none


class Standardized(nn.Conv2d):
    def forward(self, x):
        flat = self.weight.view(self.out_channels, -1)
        flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
        return F.conv2d(x, flat.view_as(self.weight), self.bias, self.stride, self.padding)


class ViewsWeights(nn.Module):
    """Reads the weight of a convolution that it calls, and of one that it does not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.standardized, self.last = Standardized(8, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        penalty = self.conv.weight.view(8, -1).norm(dim=1).sum() + self.other.weight.view(8, -1).mean()
        return self.last(F.relu(self.standardized(F.relu(self.conv(x))))) * penalty


class Channels(nn.Module):
    """A shuffle by views, a view of three dimensions, and one written to."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.next, self.last = (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 1))

    def forward(self, x):
        x = F.relu(self.conv(x))
        n, c, h, w = x.shape
        y = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.next(y)
        y.view(n, c, -1)[:, 0].mul_(2)
        y.view(-1).add_(1)
        return self.last(y).view(n, 4, -1).softmax(2)


class WritesWhatMayBeACopy(Channels):
    """`flatten` and `reshape` give a view of a contiguous map, and a copy of a channels_last one."""

    def forward(self, x):
        y = self.next(F.relu(self.conv(x)))
        y.flatten(1)[:, ::3].zero_()
        y.reshape(-1).mul_(2)
        return self.last(F.relu(y))


@pytest.mark.parametrize("config", [WHOLE, HALF, Perforate(keep=0.5, interpolate="zero"), "fitted", "last only"])
@pytest.mark.parametrize("kind", [LeNet, Untraceable, ViewsWeights, Channels, WritesWhatMayBeACopy])
def test_a_forward_that_views_its_maps_and_weights(kind, config, tmp_path):
    net, given, whole = kind().eval(), {}, config is WHOLE
    if config == "fitted":
        config, given = dataclasses.replace(HALF, interpolate="fitted"), {"calibration": [image(), image()]}
    if config == "last only":
        config = Rules({next(name for name, _ in net.named_children()): None, "*": HALF})
    if kind is ViewsWeights:
        config = Rules({"other": None, **(dict(config.items()) if isinstance(config, Rules) else {"*": config})})
    fast = accel.convert_model(net, config, example_inputs=image(), **given)
    assert perforated_layers(fast)
    with torch.no_grad():
        found = fast(image())
        with one_by_one():
            torch.testing.assert_close(found, fast(image()), rtol=1e-4, atol=1e-5)
        if whole:
            torch.testing.assert_close(found, net(image()), rtol=1e-4, atol=1e-5)
        accel.save_converted(fast, tmp_path)
        assert torch.equal(accel.load_converted(tmp_path, kind().eval())(image()), found)
        torch.testing.assert_close(accel.revert_model(fast)(image()), net(image()))
    fast.train()(image()).sum().backward()
    assert all(layer.weight.grad.any() for layer in perforated_layers(fast).values())


def test_only_the_last_layer_before_a_view_gives_up_its_layout():
    fast = accel.convert_model(LeNet().eval(), HALF, example_inputs=image())
    assert not fast.conv1.contiguous and fast.conv2.contiguous
    assert installed(fast)[0][1].chains.fused == {"conv1": ["relu"], "conv2": ["relu"]} and not refused_parts(fast)
    with torch.no_grad(), one_by_one():
        assert fast.conv2(fast.conv1(image())).is_contiguous()
        assert isinstance(fast.conv2, PerforatedConv2d)


def test_other_layouts_stay_where_a_model_is_converted_again():
    fast = accel.convert_model(Unit().eval(), HALF, example_inputs=image())
    again = accel.convert_model(fast, Perforate(keep=0.25), example_inputs=image())
    assert not any(layer.contiguous for net in (fast, again) for layer in perforated_layers(net).values())


def test_a_forward_that_raises_only_when_converted_is_an_error():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            if not self.conv(x).is_contiguous() or isinstance(self.conv.__dict__.get("forward"), FunctionType):
                raise RuntimeError("not mine")
            return self.conv(x)

    with pytest.raises(ConversionError, match="cannot run on example_inputs any more: not mine"):
        accel.convert_model(Picky(), HALF, example_inputs=image())


def test_the_example_is_left_as_it_was():
    net, x = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)).eval(), image()
    accel.convert_model(net, HALF, example_inputs=x)
    accel.plan_conversion(net, HALF, example_inputs=x)
    assert torch.equal(x, image())
