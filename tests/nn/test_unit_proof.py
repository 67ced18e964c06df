"""A residual unit is run by its description only after it was proved to be what that says: right, or refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel.config import ACT, SACT
from accel.errors import ConfigError, ConversionError
from accel.nn.adaptive import dense_execution, make_adaptive
from accel.nn.residual_units import BranchStep, UnitDescription, register_unit
from accel.nn.stage_outputs import recorded_stages
from accel.tests.nn.halting_nets import relative, spread_scores, three_ways

CHANNELS = 8


def same(x):
    return x


class Unit(nn.Module):
    """conv1, bn1, conv2, bn2 and a shortcut, as torchvision's BasicBlock, with one thing changed."""

    def __init__(
        self, norm=nn.BatchNorm2d, act=F.relu, last=F.relu, blur=same, gate=same, scale=1.0, pre=False, **conv
    ):
        super().__init__()
        conv = {"kernel_size": 3, "padding": 1, "bias": False, **conv}
        self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, **conv) for _ in range(2))
        self.bn1, self.bn2 = norm(CHANNELS), norm(CHANNELS)
        self.act, self.last, self.blur, self.gate, self.scale, self.pre = act, last, blur, gate, scale, pre
        self.downsample = None

    def forward(self, x):
        if self.pre:
            return x + self.conv2(self.act(self.bn2(self.conv1(self.act(self.bn1(x))))))
        y = self.bn2(self.conv2(self.blur(self.act(self.bn1(self.conv1(x))))))
        return self.last(x + self.scale * self.gate(y))


class Squeeze(nn.Module):
    def __init__(self, kernel=None):
        super().__init__()
        self.fc = nn.Conv2d(CHANNELS, CHANNELS, 1) if kernel is None else nn.Conv1d(1, 1, kernel, padding=kernel // 2)

    def forward(self, x):
        mean = x.mean((2, 3), keepdim=True)
        gate = self.fc(mean) if self.fc.weight.dim() == 4 else self.fc(mean[:, None, :, 0, 0])[:, 0, :, None, None]
        return x * torch.sigmoid(gate)


class Scale(nn.Module):
    """A gain per channel that starts at one, so that an untrained unit looks like a plain one."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(CHANNELS, 1, 1))

    def forward(self, x):
        return x * self.gain


def group_norm(channels):
    return nn.GroupNorm(2, channels)


def batch_statistics(channels):
    return nn.BatchNorm2d(channels, track_running_stats=False)


REFUSED = {
    "pre-activation": {"pre": True},
    "SE": {"gate": Squeeze()},
    "ECA": {"gate": Squeeze(3)},
    "blur pooling": {"blur": nn.AvgPool2d(3, 1, 1)},
    "SiLU": {"act": F.silu},
    "ReLU6": {"act": F.relu6, "last": F.relu6},
    "last ReLU6": {"last": F.relu6},
    "leaky": {"act": F.leaky_relu},
    "hardly leaky": {"last": nn.LeakyReLU(0.001)},
    "scaled": {"scale": 0.9},
    "layer scale": {"gate": Scale()},
    "no last ReLU": {"last": same},
    "dropout in evaluation": {"gate": lambda y: F.dropout(y, 0.1)},
    "circular": {"padding_mode": "circular"},
    "reflect": {"padding_mode": "reflect"},
    "replicate": {"padding_mode": "replicate"},
    "GroupNorm": {"norm": group_norm},
    "InstanceNorm": {"norm": nn.InstanceNorm2d},
    "batch statistics": {"norm": batch_statistics},
}
RIGHT = {
    "plain": {},
    "same": {"padding": "same"},
    "same, even": {"padding": "same", "kernel_size": 4},
    "same, even and long": {"padding": "same", "kernel_size": (2, 5), "dilation": (1, 3)},
    "1x3": {"kernel_size": (1, 3), "padding": (0, 1)},
    "3x1": {"kernel_size": (3, 1), "padding": (1, 0)},
    "3x5": {"kernel_size": (3, 5), "padding": (1, 2)},
    "dilated sideways": {"dilation": (1, 2), "padding": (1, 2)},
    "dilated by 3 upwards": {"kernel_size": (5, 3), "dilation": (3, 1), "padding": (6, 1)},
    "depthwise": {"groups": CHANNELS},
    "InstanceNorm with statistics": {"norm": lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True)},
    "drop path": {"gate": nn.Dropout(0.5)},
    "norms without gain": {"norm": lambda c: nn.BatchNorm2d(c, affine=False)},
}


class Net(nn.Module):
    def __init__(self, units=3, **changed):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.layer = nn.Sequential(*[Unit(**copy.deepcopy(changed)) for _ in range(units)])

    def forward(self, x):
        return self.layer(self.stem(x))


def drawn(model: nn.Module) -> nn.Module:
    """Norms as after training, and the last of a unit at zero no longer."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 1 and hasattr(module, "running_mean"):
                tensor.data.uniform_(0.5, 1.5, generator=generator).sub_(float(name == "running_mean"))
    return model.eval()


def never_halting(net: nn.Module) -> nn.Module:
    for name, module in net.named_modules():
        if name.endswith("halting.conv"):
            nn.init.constant_(module.bias, -100.0)
            nn.init.zeros_(module.weight)
        elif name.endswith("halting.pooled"):
            nn.init.zeros_(module.weight)
    return net


@pytest.mark.parametrize("config", [ACT(), SACT()], ids=["ACT", "SACT"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_unit_that_is_not_what_it_looks_like_is_refused(kind, config):
    model = Net(**REFUSED[kind])
    for unit in model.layer:  # as training starts: nothing shows
        if isinstance(unit.bn2.weight, torch.Tensor):
            nn.init.zeros_(unit.bn2.weight)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConversionError, match=r"unit layer\.0 \(Unit\) .*register_unit") as refused:
        accel.convert_model(model, config, example_inputs=torch.randn(1, 3, 9, 8), inplace=True)
    assert "\n" not in str(refused.value)
    assert type(model.layer) is nn.Sequential and not model._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


@pytest.mark.parametrize("config", [ACT(), SACT()], ids=["ACT", "SACT"])
@pytest.mark.parametrize("kind", RIGHT)
def test_a_unit_that_is_proved_runs_as_it_did(kind, config):
    model, x = drawn(Net(**RIGHT[kind])), torch.randn(2, 3, 11, 13)
    net = never_halting(accel.convert_model(model, config, example_inputs=x))
    with torch.no_grad():
        assert relative(net(x).logits, model(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", RIGHT)
def test_windows_of_any_shape_find_what_they_read(kind, dtype, monkeypatch):
    """By the engine where it can, and unit by unit: few positions run, and what they read must have been computed."""
    monkeypatch.setattr("accel.nn.adaptive.DENSE_ABOVE", 1.0)
    model, x = drawn(Net(**RIGHT[kind])).to(dtype), torch.randn(2, 3, 16, 18, dtype=dtype)
    net = spread_scores(accel.convert_model(model, SACT(eps=0.3), example_inputs=x), x, width=3.0)
    sparse, one_by_one, dense = three_ways(net, x)
    assert 0.2 < (dense.stages[0].num_units > 1).float().mean() < 0.9
    for got in (sparse, one_by_one):
        assert relative(got.logits, dense.logits) < 1e-5
        assert torch.equal(got.stages[0].num_units, dense.stages[0].num_units)
        assert torch.equal(got.stages[0].executed_macs, dense.stages[0].executed_macs)


def test_the_proof_runs_at_the_real_shape():
    class Choosy(Unit):
        def forward(self, x):
            return super().forward(x) * (1 if x.shape[-1] < 12 else 2)

    model = Net()
    model.layer = nn.Sequential(*[Choosy() for _ in range(2)])
    accel.convert_model(model, SACT(), example_inputs=torch.randn(1, 3, 9, 11))
    with pytest.raises(ConversionError, match=r"layer\.0 \(Choosy\) computes something else .* difference 0\.5"):
        accel.convert_model(model, SACT(), example_inputs=torch.randn(1, 3, 9, 12))


def test_a_unit_is_refused_where_its_description_does_not_run():
    class Odd(Unit):
        pass

    register_unit(Odd, lambda u: UnitDescription((BranchStep(u.conv1, None, "swish"),), "relu", None))
    model = nn.Sequential(nn.Sequential(Odd(), Odd()))
    with pytest.raises(ConversionError, match=r"unit 0\.0 \(Odd\) cannot be compared with its description .*swish"):
        make_adaptive(model, {"0": SACT()})


class Split(nn.Module):
    """Two convolutions in one, as the split attention of ResNeSt."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return self.parts[0](x) * torch.sigmoid(self.parts[1](x))


def test_a_convolution_that_is_none_makes_no_unit():
    model = Net()
    for unit in model.layer:
        unit.conv2 = Split()
    with pytest.raises(ConfigError, match="no sequence of residual units"):
        accel.convert_model(model, {"layer": SACT()}, example_inputs=torch.randn(1, 3, 9, 8))
    with pytest.raises(ConversionError, match="no residual unit that could be left out"):
        accel.shorten_model(model, calibration=[torch.randn(1, 3, 9, 8)], units=["layer.1"])

    class Other(Unit):
        pass

    register_unit(Other, lambda u: UnitDescription((BranchStep(u.blur, None, "none"),), "relu", None))
    model = nn.Sequential(nn.Sequential(Other(blur=Split()), Other(blur=Split())))
    with pytest.raises(ConversionError, match=r"unit 0\.0 \(Other\) is described by a step whose conv is a Split"):
        make_adaptive(model, {"0": SACT()})


def test_a_second_stage_that_is_refused_leaves_the_first_alone():
    model = nn.Sequential(Net().layer, Net(scale=0.5).layer)
    with pytest.raises(ConversionError, match=r"unit 1\.0 "):
        make_adaptive(model, {"0": SACT(), "1": SACT()})
    assert [type(stage) for stage in model] == [nn.Sequential] * 2 and not hasattr(model[0][0], "halting")


CHANGES = {
    "activation": lambda unit: setattr(unit, "bn1", nn.Sequential(unit.bn1, nn.SiLU())),
    "convolution": lambda unit: setattr(unit, "conv2", copy.deepcopy(unit.conv1)),
    "geometry": lambda unit: (setattr(unit.conv1, "padding", (2, 2)), setattr(unit.conv1, "dilation", (2, 2))),
    "padding mode": lambda unit: (
        setattr(unit.conv1, "padding_mode", "reflect"),
        setattr(unit.conv1, "_reversed_padding_repeated_twice", [1, 1, 1, 1]),
    ),
    "eps": lambda unit: setattr(unit.bn1, "eps", 0.5),
    "hook": lambda unit: unit.conv1.register_forward_hook(lambda m, i, out: out * 2),
    "pre-hook on the unit": lambda unit: unit.register_forward_pre_hook(lambda m, i: (i[0] * 0.5,)),
    "forward": lambda unit: setattr(unit, "forward", lambda x: x + 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_unit_that_changes_after_conversion_runs_as_it_is_then(kind, dtype):
    model, x = drawn(Net()).to(dtype), torch.randn(2, 3, 16, 18, dtype=dtype)
    net = spread_scores(accel.convert_model(model, SACT(eps=0.3), example_inputs=x), x, width=3.0)
    with torch.no_grad():
        before = net(x)
        CHANGES[kind](net.layer[1])
        sparse = net(x)
        with dense_execution(net):
            dense = net(x)
    assert relative(dense.logits, before.logits) > 1e-4
    assert relative(sparse.logits, dense.logits) < 1e-5


@pytest.mark.parametrize("spatial", [False, True])
def test_a_unit_used_twice_in_a_stage_has_one_head(spatial):
    model = drawn(Net(2))
    model.layer = nn.Sequential(model.layer[0], model.layer[1], model.layer[1], model.layer[0])
    x, config = torch.randn(2, 3, 9, 8), SACT(eps=0.3) if spatial else ACT(eps=0.3)
    net = accel.convert_model(model, config, example_inputs=x)
    spread_scores(net, x, width=3.0)
    with torch.no_grad():
        sparse = net(x)
        with dense_execution(net):
            dense = net(x)
    assert relative(sparse.logits, dense.logits) < 1e-5
    assert sparse.stages[0].num_units.max() > 1
    with torch.no_grad():
        assert relative(accel.revert_model(net)(x), model(x)) < 1e-6


def test_a_unit_of_two_stages_and_names_that_a_stage_needs_are_refused():
    layer = Net(3).layer
    model = nn.Sequential(nn.Sequential(layer[0], layer[1]), nn.Sequential(layer[2], layer[1]))
    with pytest.raises(ConversionError, match=r"unit 1\.1 belongs to stage 0 too"):
        make_adaptive(model, {"0": SACT(), "1": SACT()})
    layer[0].halting = nn.Identity()
    with pytest.raises(ConversionError, match=r"unit 0\.0 has an attribute 'halting' of its own"):
        make_adaptive(model, {"0": SACT()})


def test_every_reference_to_a_stage_stays_valid():
    class Trunk(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()
            self.again = self.net.layer  # another name
            self.stages = [self.net.layer]  # and a list that holds no modules in torch's sense

        def forward(self, x):
            x = self.net.stem(x)
            for stage in self.stages:
                x = stage(x)
            return self.again(x)

    model, seen = drawn(Trunk()), []
    model.again.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(1, 3, 9, 8)
    net = make_adaptive(model, {"net.layer": SACT()})
    with torch.no_grad():
        assert [stage.name for stage in net(x).stages] == ["net.layer"] * 2
    assert len(seen) == 2


def test_maps_of_one_pixel_and_stages_of_two_units():
    model, x = drawn(Net(2)), torch.randn(3, 3, 1, 1)
    for config in (ACT(eps=0.3), SACT(eps=0.3)):
        net = spread_scores(accel.convert_model(model, config, example_inputs=x), x, width=3.0)
        with torch.no_grad():
            sparse = net(x)
            with dense_execution(net):
                dense = net(x)
        assert relative(sparse.logits, dense.logits) < 1e-5
        assert sparse.stages[0].halting_distribution.shape[:2] == (3, 2)


def test_half_precision_halts_where_the_dense_loop_does():
    model, x = drawn(Net()).bfloat16(), torch.randn(2, 3, 9, 8).bfloat16()
    net = accel.convert_model(model, SACT(), example_inputs=x)
    with torch.no_grad(), recorded_stages() as did:
        net.layer(net.stem(x))
        with dense_execution(net):
            net.layer(net.stem(x))
    sparse, dense = did
    assert sparse.halting_distribution.dtype == dense.halting_distribution.dtype == torch.float32
    assert torch.allclose(sparse.halting_distribution, dense.halting_distribution, atol=0.02)
    assert torch.allclose(sparse.halting_distribution.sum(1), torch.ones(()), atol=1e-5)
