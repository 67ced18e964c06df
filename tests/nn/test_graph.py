"""What is trusted as a graph of a model, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from accel.masks import Pooling
from accel.nn.graph import module_of, pool_of, pooling_after
from accel.nn.tracing import trace, traced_parts


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.ones(1))
        self.plain = torch.ones(1)
        self.seen, self.count = [], 0


def run(graph, root, *inputs):
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(code.src, namespace)
    return namespace["forward"](root, *inputs)


def net(forward):
    return type("Net", (Base,), {"forward": forward})()


def image():
    return torch.randn(1, 3, 8, 8)


def sets_attribute(self, x):
    self.last = self.conv(x)
    return self.last


def counts(self, x):
    self.count += 1
    return self.conv(x)


def collects(self, x):
    self.seen.append(x)
    return self.conv(x)


def draws(self, x):
    return self.conv(x) + torch.randn(1)


def reads_plain_tensor(self, x):
    return self.conv(x) * (self.plain + 1)


def depends_on_data(self, x):
    return self.conv(x) if x.sum() > 0 else x


def takes_anything(self, *xs):
    return self.conv(xs[0])


def writes_items(self, x):
    y = self.conv(x)
    y[:, 0] = 0
    return y


REFUSED = [sets_attribute, counts, collects, draws, reads_plain_tensor, depends_on_data, takes_anything, writes_items]


@pytest.mark.parametrize("forward", REFUSED, ids=lambda f: f.__name__)
def test_a_forward_that_a_graph_cannot_say_is_refused_and_left_as_found(forward):
    model = net(forward)
    before = {name: id(value) for name, value in model.__dict__.items()}
    assert trace(model) is None
    assert {name: id(value) for name, value in model.__dict__.items()} == before
    assert model.seen == [] and model.count == 0 and model.training


def test_optional_arguments_are_taken_at_their_defaults():
    def forward(self, x, mask=None, twice=False):
        x = self.conv(x) if mask is None else x * mask
        return x + x if twice else x

    model, x = net(forward), image()
    graph = trace(model).graph
    assert [node.name for node in graph.nodes if node.op == "placeholder"] == ["x"]
    torch.testing.assert_close(run(graph, model, x), model(x))
    weight = torch.ones(1)
    assert trace(net(lambda self, x, mask=weight: self.conv(x))) is None
    assert trace(net(lambda self, x, *, flag=1: self.conv(x))) is None


def test_parameters_and_buffers_are_read_when_the_graph_runs():
    model = net(lambda self, x: F.conv2d(x, self.conv.weight * 2) * self.scale)
    graph, x = trace(model).graph, image()
    with torch.no_grad():
        model.conv.weight.mul_(3)
        model.scale.add_(4)
    torch.testing.assert_close(run(graph, model, x), model(x))


def test_in_place_operators_keep_their_aliases():
    def forward(self, x):
        y = self.conv(x)
        alias = y
        y += 1
        y *= 2
        y -= 3
        y /= 4
        return alias

    model, x = net(forward), image()
    torch.testing.assert_close(run(trace(model).graph, model, x), model(x))


def test_the_largest_parts_that_trace():
    model = net(depends_on_data)
    model.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model.inner = net(depends_on_data)
    model.inner.block = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.head = nn.Linear(3, 4)
    assert [name for name, _, _ in traced_parts(model)] == ["features", "inner.block"]
    model.features.forward = lambda x: x
    assert [name for name, _, _ in traced_parts(model)] == ["inner.block"]


def nodes(model):
    graph = trace(model).graph
    return list(graph.nodes), dict(model.named_modules())


@pytest.mark.parametrize(
    "pool, expected",
    [
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), Pooling((3, 3), (2, 2), (1, 1), True)),
        (nn.AvgPool2d((2, 3)), Pooling((2, 3), (2, 3))),
        (lambda x: F.max_pool2d(x, 2), Pooling((2, 2), (2, 2))),
        (lambda x: F.max_pool2d(x, 3, 2, padding=(1, 0)), Pooling((3, 3), (2, 2), (1, 0))),
        (lambda x: F.avg_pool2d(x, kernel_size=2, stride=1), Pooling((2, 2), (1, 1))),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)), Pooling((2, 2), (2, 2))),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)), None),
        (nn.Flatten(), None),
    ],
)
def test_the_pooling_behind_a_convolution(pool, expected):
    model = net(lambda self, x: self.after(self.conv(x)))
    model.after = pool
    flow, modules = nodes(model)
    conv = next(node for node in flow if node.op == "call_module")
    assert module_of(conv, modules) is model.conv and pooling_after(conv, modules) == expected


def test_a_pooling_with_indices_or_computed_sizes_is_not_one_we_know():
    model = net(lambda self, x: F.max_pool2d(self.conv(x), x.shape[2] // 4))
    flow, modules = nodes(model)
    assert all(pool_of(node, modules) is None for node in flow)
    pool = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, return_indices=True))
    assert all(pool_of(node, dict(pool.named_modules())) is None for node in fx.symbolic_trace(pool).graph.nodes)
