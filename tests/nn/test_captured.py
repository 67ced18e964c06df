"""Converted networks in the hands of torch's compilers, exporters and tracers."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import ACT, PACT, SACT, Perforate
from accel.nn.adaptive import adaptive_stages
from accel.nn.perforated import PerforatedConv2d
from accel.running import one_by_one
from accel.tests.nn.halting_nets import spread_scores
from accel.zoo.registry import default_rules, get_model


@pytest.fixture(autouse=True)
def fresh():
    """Tests share code objects, of which torch.compile keeps eight captures."""
    torch._dynamo.reset()


class Net(nn.Module):
    """Two convolutions and what stands between them; a stride, groups and padding that is not zeros."""

    def __init__(self, mode="zeros"):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode)
        self.bn = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=1, groups=2)
        self.last = nn.Linear(6, 5)

    def forward(self, x):
        return self.last(self.b(F.relu(self.bn(self.a(x)))).mean((2, 3)))


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


X = drawn(2, 3, 12, 14)
CONFIGS = {
    "nearest": Perforate(keep=0.5, mask="uniform"),
    "zero": Perforate(keep=0.4, interpolate="zero"),
    "weighted": Perforate(keep=0.5, mask="lattice", interpolate="weighted", neighbors=4),
    "pooling": Perforate(keep=0.5, mask="pooling"),
    "impact": Perforate(keep=0.5, mask="impact"),
    "fitted": Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4),
    "refitted": Perforate(keep=0.5, mask="grid", interpolate="fitted", neighbors=4, correct="weights"),
    "adaptive": Perforate(keep=0.5, mask="adaptive"),
    "adaptive, weighted": Perforate(keep=0.5, mask="adaptive", interpolate="weighted", neighbors=4),
}


def converted(config=CONFIGS["nearest"], net=None):
    data = {"calibration": drawn(4, 3, 12, 14)} if config.needs_calibration else {}
    return accel.convert_model((net or Net()).eval(), config, example_inputs=X, **data)


def stepwise(net, x):
    with torch.no_grad(), one_by_one():
        return net(x)


@pytest.mark.filterwarnings("ignore:impact maps are resized")
@pytest.mark.parametrize("config", CONFIGS)
def test_a_copy_compiles_as_one_graph(config):
    """A copy has no position sets yet; outputs and gradients, at a size that nobody has seen."""
    net = converted(CONFIGS[config])
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for x in (X, drawn(3, 3, 9, 16)):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), stepwise(net, x))
        given = [each.clone().requires_grad_() for each in (x, x)]
        outputs = compiled(given[0]), net(given[1])
        torch.testing.assert_close(*outputs)
        ours, expected = (
            torch.autograd.grad(out.square().sum(), [each, *model.parameters()])
            for out, each, model in zip(outputs, given, (twin, net))
        )
        for a, b in zip(ours, expected):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode, backend", [("reflect", "inductor"), ("circular", "aot_eager")])
def test_a_copy_compiles_with_symbols_for_sizes(mode, backend):
    net = converted(CONFIGS["weighted"], Net(mode))
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for x in (X, drawn(3, 3, 9, 16), drawn(4, 3, 12, 11)):
            torch.testing.assert_close(compiled(x), stepwise(net, x))


def test_what_is_changed_after_compiling_is_seen():
    net = converted()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        before = compiled(X)
        net.a.weight.mul_(1.5)
        torch.testing.assert_close(compiled(X), stepwise(net, X))
        PerforatedConv2d.adopt(net.b, Perforate(keep=0.25), "b")
        torch.testing.assert_close(compiled(X), stepwise(net, X))
        assert not torch.allclose(compiled(X), before)


@pytest.mark.filterwarnings("ignore:impact maps are resized")
@pytest.mark.parametrize("config", CONFIGS)
def test_exports_with_dynamic_sizes(config):
    net, dim = converted(CONFIGS[config]), torch.export.Dim
    sizes = {0: dim("batch"), 2: dim("height", min=6, max=64), 3: dim("width", min=6, max=64)}
    program = torch.export.export(net, (X,), dynamic_shapes=(sizes,))
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    for each in (program, torch.export.load(stream)):
        for x in (X, drawn(5, 3, 12, 14), drawn(1, 3, 17, 9)):
            torch.testing.assert_close(each.module()(x).detach(), stepwise(net, x))


def test_the_op_keeps_torchs_rules():
    net = converted(CONFIGS["refitted"])
    calls = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.accel.perforated_layer.default and type(args[0]) is torch.Tensor:
                calls.append(args)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        torch.export.export(net, (X,)).module()(X)
    assert len(calls) == 2
    for x, weight, bias, *rest in calls:
        given = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
        results = torch.library.opcheck(torch.ops.accel.perforated_layer.default, (*given, *rest))
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("config", ["nearest", "adaptive", "fitted"])
def test_an_exported_network_counts_as_the_converted_one(config):
    net = converted(CONFIGS[config])
    with torch.no_grad():
        exported = torch.export.export(net, (X,)).module()
    assert accel.count_macs(exported, X) == accel.count_macs(net, X)


@pytest.mark.parametrize("config", ["nearest", "fitted", "adaptive"])
def test_symbolic_traces_call_the_layers(config):
    net = converted(CONFIGS[config])
    traced = torch.fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["a", "bn", "b", "last"]
    for x in (X, drawn(3, 3, 9, 16)):
        torch.testing.assert_close(traced(x).detach(), stepwise(net, x))


def test_a_trace_by_jit_refuses_sizes_that_it_was_not_made_for():
    net = converted()
    with torch.no_grad():
        traced = torch.jit.trace(net, X)
        torch.testing.assert_close(traced(X), stepwise(net, X))
        for x in (drawn(2, 3, 9, 16), drawn(3, 3, 12, 14)):
            with pytest.raises(RuntimeError, match=r"traced for an input of .* trace it anew"):
                traced(x)


@pytest.mark.parametrize("config", [ACT(), SACT()], ids=["ACT", "SACT"])
def test_adaptive_stages_are_one_op(config):
    x = drawn(2, 3, 32, 32)
    net = spread_scores(accel.convert_model(get_model("zoo:resnet20_cifar").eval(), config, example_inputs=x), x)
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for each in (x, drawn(3, 3, 24, 28)):
            got, expected = compiled(each), net(each)
            torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
            for ours, theirs in zip(got.stages, expected.stages, strict=True):
                assert torch.equal(ours.num_units, theirs.num_units) and ours.name == theirs.name
                assert torch.equal(ours.executed_macs, theirs.executed_macs) and ours.dense_macs == theirs.dense_macs
                torch.testing.assert_close(ours.halting_distribution, theirs.halting_distribution, rtol=1e-3, atol=1e-4)
        for stage in adaptive_stages(twin):
            run = torch.ops.accel.adaptive_stage.default
            state = drawn(2, stage[0].conv1.in_channels, 8, 9)
            assert set(torch.library.opcheck(run, (state, id(stage))).values()) == {"SUCCESS"}


HALF = Perforate(keep=0.5, mask="lattice")
NETWORKS = {
    "AlexNet": ("torchvision:alexnet", HALF, 64),
    "VGG-16": ("torchvision:vgg16", HALF, 32),
    "ResNet-50": ("torchvision:resnet50", HALF, 32),
    "SACT": ("zoo:resnet20_cifar", SACT(), 32),
    "PACT": ("zoo:resnet20_cifar", PACT(), 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_well_known_networks_compile_as_one_graph(name):
    model, config, size = NETWORKS[name]
    torch.manual_seed(0)
    net, x = get_model(model, "none").eval(), drawn(1, 3, size, size)
    rules = default_rules(model, config) if config is HALF else config
    net = accel.convert_model(net, rules, example_inputs=x, inplace=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        got, expected = (getattr(out, "logits", out) for out in (compiled(x), net(x)))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_exported_adaptive_networks_return_what_they_returned_before():
    x = drawn(2, 3, 32, 32)
    net = spread_scores(accel.convert_model(get_model("zoo:resnet20_cifar").eval(), SACT(), example_inputs=x), x)
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for each in (x, drawn(5, 3, 32, 32)):
            torch.testing.assert_close(program.module()(each), net(each).logits, rtol=1e-4, atol=1e-4)
