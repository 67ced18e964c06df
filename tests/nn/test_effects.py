"""Sums, and writes to what a convolution reads or wrote: nothing is lost, and nothing moves past a write."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate, Rules
from accel.nn import effects
from accel.nn.inference import installed
from accel.nn.tracing import trace
from accel.running import one_by_one
from accel.tests.nn.flows import Flow, convs

CONFIGS = {
    "dense": Rules({"other": Perforate(keep=0.5, mask="lattice"), "*": None}),
    "whole": Perforate(keep=1.0),
    "half": Perforate(keep=0.5, mask="lattice"),
    "weighted": Perforate(keep=0.5, mask="lattice", interpolate="weighted"),
}


class TwoMaps(Flow):
    """The same with two inputs; a 1x1 convolution reads what the function returns."""

    def forward(self, x, u):
        return self.other(self.flow(self, x, u))


def effects_net(flow):
    torch.manual_seed(0)
    conv, following, last = convs(3)
    other, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)
    rest = {"relu": nn.ReLU(inplace=True), "drop": nn.Dropout(), "same": nn.Identity()}
    layers = {"conv": conv, "next": following, "last": last, "other": other, "norm": norm, **rest}
    return TwoMaps(flow, **layers)


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)


def check(flow, config):
    """The rewritten path computes what the modules do one by one, and writes to the inputs alike; keep 1 as torch."""
    net, (x, u) = effects_net(flow).eval(), inputs()
    fast = accel.convert_model(net, CONFIGS[config], example_inputs=inputs())
    with torch.no_grad():
        found = fast(x, u)
        expected_x, expected_u = inputs()
        with one_by_one():
            expected = fast(expected_x, expected_u)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((x, u), (expected_x, expected_u), rtol=1e-4, atol=1e-5)
        if config == "whole":
            torch.testing.assert_close(found, net(*inputs()), rtol=1e-4, atol=1e-5)
    return fast


def twice(net, x, u):
    y = net.conv(x)
    y += u
    y += x
    return y


SUMS = {
    "two more": lambda net, x, u: net.conv(x) + u + x,
    "three more": lambda net, x, u: net.conv(x) + u + x + 2 * u,
    "from the left": lambda net, x, u: u + (x + net.conv(x)),
    "two convolutions": lambda net, x, u: net.conv(x) + u + net.next(x),
    "three convolutions": lambda net, x, u: F.relu(net.conv(x) + net.next(u) + net.last(x)),
    "with norms": lambda net, x, u: F.relu(net.norm(net.conv(x)) + u + net.norm(net.next(x))),
    "an activation between": lambda net, x, u: F.relu(net.conv(x) + u) + x,
    "in place": twice,
    "shared": lambda net, x, u: (lambda y: net.next(y) + y + net.last(y))(net.conv(x) + u),
    "scaled": lambda net, x, u: torch.add(torch.add(net.conv(x), u, alpha=2), x, alpha=-1),
    "scaled method": lambda net, x, u: net.conv(x).add(u, alpha=3).add_(x),
    "a number": lambda net, x, u: net.conv(x) + x.shape[2] + u,
    "a mean": lambda net, x, u: net.conv(x) + u.mean() + x,
    "broadcast": lambda net, x, u: net.conv(x) + u[:, :1] + x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", SUMS)
def test_no_addend_is_lost(name, config):
    fast = check(SUMS[name], config)
    assert installed(fast) or config == "dense" or name.startswith("scaled")  # else nothing was rewritten


def written(write, read=lambda y, x: y + x):
    """A convolution, something that writes to its input, and a sum of both."""

    def flow(net, x, u):
        x = x * 1
        y = net.norm(net.conv(x))
        x = write(net, x, u)
        return read(y, x)

    return flow


def by(operation, other=0.5):
    return written(lambda net, x, u: operation(x, other))


def set_items(net, x, u):
    x[:, 0] = 0
    return x


def write_to(part):
    def write(net, x, u):
        part(x)
        return x

    return written(write)


WRITES = {
    **{name: by(getattr(operator, name)) for name in ("imul", "isub", "iadd", "itruediv", "ifloordiv")},
    "ipow": by(operator.ipow, 2),
    "the operators": written(lambda net, x, u: _operators(x)),
    "the input itself": lambda net, x, u: (lambda y: y + x.mul_(0.5))(net.conv(x)),
    "setitem": written(set_items),
    "out": written(lambda net, x, u: torch.mul(x, 0.5, out=x)),
    "out of a convolution's addend": lambda net, x, u: (lambda y: (torch.mul(u, 2, out=u), y + u)[1])(net.conv(u * 1)),
    "a view": write_to(lambda x: x[:, 0].zero_()),
    "a view by view": write_to(lambda x: x.view(2, -1).mul_(0.5)),
    "a transposed view": write_to(lambda x: x.permute(1, 0, 2, 3).flatten(1).mul_(0.5)),
    "a chunk": write_to(lambda x: x.chunk(2, 1)[1].fill_(1)),
    "a detached alias": write_to(lambda x: x.detach().clamp_(0)),
    "data": write_to(lambda x: x.data.mul_(0.5)),
    "copy_": written(lambda net, x, u: x.copy_(u)),
    "index_add_": written(lambda net, x, u: x.index_add_(0, torch.tensor([0]), u[:1])),
    "F.relu in place": written(lambda net, x, u: F.relu(x, inplace=True)),
    "F.relu in place, by position": written(lambda net, x, u: F.relu(x, True)),
    "torch.relu_": written(lambda net, x, u: torch.relu_(x)),
    "a module in place": written(lambda net, x, u: net.relu(x)),
    "behind a dropout": write_to(lambda x: F.dropout(x, training=False).mul_(0.5)),
    "an einsum": write_to(lambda x: torch.einsum("nchw->nhwc", x).mul_(0.5)),
    "a list": write_to(lambda x: torch._foreach_mul_([x], 0.5)),
    "a module without effect": lambda net, x, u: (lambda y, z: (z.mul_(0.5), y + x)[1])(net.conv(x), net.drop(x)),
    "what was summed": lambda net, x, u: (lambda y: y + x.sub_(1) + u.add_(1))(net.conv(x) + u),
    "the weight": lambda net, x, u: (lambda y: (net.conv.weight.mul_(2), y + u, net.conv.weight.mul_(0.5))[1])(
        net.conv(x)
    ),
    "the statistics of a norm": lambda net, x, u: (
        lambda y: (net.norm.running_mean.add_(1), net.norm(y), net.norm.running_mean.sub_(1))[1]
    )(net.conv(x)),
    "rows": lambda net, x, u: (lambda y: net.next(y) + net.last(y.relu_()))(net.conv(x)),
    "rows by a module": lambda net, x, u: (lambda y: net.next(y) + net.last(net.relu(y)))(net.conv(x)),
    "rows by a function": lambda net, x, u: (lambda y: net.next(y) + net.last(torch.relu_(y)))(net.conv(x)),
    "before another convolution": lambda net, x, u: net.next(net.conv(x)) + net.last(u.mul_(3)),
}


def _operators(x):
    x *= 0.5
    x -= 1
    x /= 3
    x **= 2
    x //= 0.1
    x %= 3
    return x


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("flow", WRITES.values(), ids=WRITES)
def test_nothing_moves_past_a_write(flow, config):
    check(flow, config)


def test_what_shares_memory_and_what_writes():
    def flow(net, x, u):
        y = net.conv(x)
        z = y.view(2, -1)
        z.mul_(2)
        w = torch.sigmoid(net.norm(y))
        torch.add(w, 1, out=w)
        return F.relu(w, inplace=False)

    net = effects_net(flow)
    graph = trace(net).graph
    effects.annotate(graph, dict(net.named_modules()))
    nodes = {node.name: node for node in graph.nodes}
    assert effects.memory(nodes["conv"]) == {nodes["conv"]}
    assert nodes["conv"] in effects.memory(nodes["view"])
    assert nodes["conv"] in effects.writes(nodes["mul_"])
    assert nodes["conv"] not in effects.memory(nodes["sigmoid"])
    assert effects.writes(nodes["add"]) == {nodes["sigmoid"]}
    assert not effects.writes(nodes["relu"]) and not effects.writes(nodes["norm"])
    assert effects.memory(nodes["x"]) == {effects.OUTSIDE}
    assert effects.may_move(nodes["norm"], [nodes["relu"]]) and not effects.may_move(nodes["norm"], [nodes["mul_"]])


@pytest.mark.parametrize("name", ["a user's function", "a norm in training", "an embedding"])
def test_what_is_not_known_may_write_to_anything(name):
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    call = {
        "a user's function": (lambda x: x, (x,), {}),
        "a norm in training": (F.batch_norm, (x, x, x), {"training": True}),
        "an embedding": (F.embedding, (x, x), {"max_norm": 1.0}),
    }[name]
    node = graph.call_function(*call)
    plain = graph.call_function(torch.relu, (x,))
    effects.annotate(graph, {})
    assert effects.writes(node) and not effects.may_move(plain, [node])
