"""torch.compile(model, backend="accel"): right numbers, by plans that ran; never anything else in silence."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import accel
from accel import SACT, Perforate
from accel.nn import backend
from accel.running import one_by_one
from accel.tests.nn.halting_nets import spread_scores
from accel.tests.threads import in_threads
from accel.zoo.registry import get_model

HALF = Perforate(keep=0.5, mask="lattice")


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def lively(model):
    """With batch statistics of its own, in evaluation."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2), nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def compiled(model, **options):
    torch._dynamo.reset()
    return torch.compile(model, backend=backend.compile_graph, **options)


def stepwise(net, x):
    with torch.no_grad(), one_by_one():
        return net(x)


class Net(nn.Module):
    """Branches on a setting, views by its own sizes, and adds in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn, self.last = nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.act, self.doubled = nn.LeakyReLU(), False

    def forward(self, x):
        x = self.act(self.bn(self.a(x)))
        y = self.b(x)
        y += x
        if self.doubled:
            y = y * 2
        return self.last(F.adaptive_avg_pool2d(F.relu(y), 1).view(x.size(0), -1))


CONFIGS = {
    "nearest": HALF,
    "zero": Perforate(keep=0.4, interpolate="zero"),
    "weighted": Perforate(keep=0.5, mask="lattice", interpolate="weighted", neighbors=4),
    "fitted": Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4),
    "adaptive": Perforate(keep=0.5, mask="adaptive"),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_numbers_and_plans(config, ran):
    data = {"calibration": drawn(4, 3, 12, 14)} if config == "fitted" else {}
    net = accel.convert_model(lively(Net()), CONFIGS[config], example_inputs=drawn(2, 3, 12, 14), **data)
    fast = compiled(net)
    for x in (drawn(2, 3, 12, 14), drawn(2, 3, 12, 14), drawn(5, 3, 12, 14), drawn(1, 3, 9, 16), drawn(3, 3, 7, 8)):
        ran.clear()
        with torch.no_grad():
            torch.testing.assert_close(fast(x), stepwise(net, x), rtol=1e-4, atol=1e-5)
        assert ran or config in ("zero", "adaptive")


@pytest.mark.parametrize("name, config", [("resnet18", HALF), ("mobilenet_v2", None)], ids=["converted", "dense"])
def test_real_networks(name, config, ran):
    x = drawn(1, 3, 64, 64)
    net = lively(torchvision.models.get_model(name, weights=None, num_classes=5))
    if config is not None:
        net = accel.convert_model(net, config, example_inputs=x)
    fast = compiled(net, fullgraph=True)
    with torch.no_grad():
        fast(x)
        ran.clear()
        torch.testing.assert_close(fast(x), stepwise(net, x), rtol=1e-4, atol=1e-4)
    assert ran


def test_what_changes_is_seen(ran):
    x = drawn(2, 3, 12, 14)
    net = accel.convert_model(lively(Net()), HALF, example_inputs=x)
    fast = compiled(net)

    def turn():
        net.doubled = True

    def swap():
        net.b = nn.Conv2d(8, 8, 1).eval()

    with torch.no_grad():
        changes = [
            lambda: net.a.weight.mul_(1.5),
            lambda: net.bn.running_var.add_(0.5),
            turn,
            lambda: setattr(net.bn, "eps", 0.5),
            lambda: net.load_state_dict(Net().state_dict()),
            swap,
        ]
        before = fast(x)
        for change in changes:
            change()
            ran.clear()
            now = fast(x)
            torch.testing.assert_close(now, stepwise(net, x), rtol=1e-4, atol=1e-5)
            assert (now - before).abs().max() > 1e-3
            before = now
        net.train()
        torch.testing.assert_close(fast(x), copy.deepcopy(net)(x), rtol=1e-4, atol=1e-5)


def test_gradients():
    x = drawn(2, 3, 12, 14)
    net = accel.convert_model(lively(Net()), HALF, example_inputs=x)
    twin = copy.deepcopy(net)
    compiled(net)(x).square().sum().backward()
    twin(x).square().sum().backward()
    for ours, expected in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-5)


def test_copies_in_threads_keep_apart():
    x = drawn(2, 3, 12, 14)
    first = accel.convert_model(lively(Net()), HALF, example_inputs=x)
    nets = [copy.deepcopy(first) for _ in range(4)]
    with torch.no_grad():
        for index, net in enumerate(nets):
            net.a.weight.mul_(1 + index)
    expected, found = [stepwise(net, x) for net in nets], {}
    torch._dynamo.reset()
    compiled_nets = [torch.compile(net, backend=backend.compile_graph) for net in nets]

    def serve(thread):
        with torch.inference_mode():
            for _ in range(3):
                found[thread] = compiled_nets[thread % 4](x)

    in_threads(serve, [(thread,) for thread in range(8)])
    assert len(found) == 8
    for thread, out in found.items():
        torch.testing.assert_close(out, expected[thread % 4], rtol=1e-4, atol=1e-5)


def test_adaptive_stages_run_as_they_are():
    x = drawn(2, 3, 32, 32)
    net = accel.convert_model(lively(get_model("zoo:resnet20_cifar")), SACT(), example_inputs=x)
    spread_scores(net, x)
    fast = compiled(net)
    with torch.no_grad():
        for each in (x, drawn(3, 3, 32, 32)):
            got, expected = fast(each), net(each)
            torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
            for ours, theirs in zip(got.stages, expected.stages, strict=True):
                torch.testing.assert_close(ours.ponder_cost, theirs.ponder_cost, rtol=1e-4, atol=1e-4)
                assert torch.equal(ours.executed_macs, theirs.executed_macs)
