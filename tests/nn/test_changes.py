"""What a rewritten path holds for: the way its forward took, settings anywhere, weights; what changes is followed."""

import collections
import copy
import dataclasses
import gc
import random
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import accel
from accel import Perforate
from accel.nn.inference import describe_paths, installed
from accel.nn.replay import Segment
from accel.nn.stamp import Stamp
from accel.running import one_by_one
from accel.zoo.registry import get_model

HALF = Perforate(keep=0.5, mask="lattice")
SWITCH = {"flip": False}
LIMITS = types.SimpleNamespace(low=0.0, inner=types.SimpleNamespace(high=6.0))
FACTOR = 2.0


@dataclasses.dataclass
class Config:
    flip: bool = False
    scales: list = dataclasses.field(default_factory=lambda: [1.0, 2.0])


class Slotted:
    __slots__ = ("flip",)

    def __init__(self):
        self.flip = False


def helper(y, factor=1.0):
    return y * factor


def closure():
    held = {"factor": 1.0}

    def scaled(y):
        return y * held["factor"]

    return scaled


class Net(nn.Module):
    factor = 1.0

    def __init__(self, after):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.next, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.after = after
        self.pair, self.options, self.nested = (1, 2), {"flip": False}, [[1.0], {"deep": (1.0,)}]
        self.config, self.slotted, self.act = Config(), Slotted(), torch.relu
        self.table, self.array = torch.zeros(2), np.zeros(2)
        self.scaled = closure()

    def forward(self, x):
        return self.after(self, self.last(F.relu(self.next(F.relu(self.bn(self.conv(x)))))))


def image(batch=2, size=12, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def converted(after=lambda net, y: y, x=None):
    torch.manual_seed(0)
    net = Net(after).eval()
    nn.init.normal_(net.bn.running_mean), nn.init.uniform_(net.bn.running_var, 0.5, 2), nn.init.normal_(net.bn.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return accel.convert_model(net, HALF, example_inputs=image() if x is None else x)


@pytest.fixture
def ran(monkeypatch):
    """The segments that ran: each is a part of a plan."""
    seen, run = [], Segment.run

    def counted(self, *inputs):
        seen.append(self)
        return run(self, *inputs)

    monkeypatch.setattr(Segment, "run", counted)
    return seen


def run(net, x=None):
    with torch.no_grad():
        return net((image() if x is None else x).clone())


def modules_one_by_one(net, x=None):
    with one_by_one():
        return run(net, x)


def assert_follows(net, ran, x=None):
    """The plan runs, and says what the modules say."""
    for _ in range(2):
        ran.clear()
        got = run(net, x)
        assert ran
        torch.testing.assert_close(got, modules_one_by_one(net, x), rtol=1e-4, atol=1e-4)
    return got


def set_global_flag(net):
    SWITCH["flip"] = True


def set_global_factor(net):
    global FACTOR
    FACTOR = 3.0


def deep_global(net):
    LIMITS.inner.high = 0.1


SETTINGS = {
    "tuple": (lambda net, y: y.mean(net.pair), lambda net: setattr(net, "pair", (2, 3))),
    "dict": (lambda net, y: -y if net.options["flip"] else y, lambda net: net.options.update(flip=True)),
    "list in a list": (lambda net, y: y * net.nested[0][0], lambda net: net.nested[0].__setitem__(0, 2.0)),
    "dict in a list": (lambda net, y: y * net.nested[1]["deep"][0], lambda net: net.nested[1].update(deep=(2.0,))),
    "object": (lambda net, y: -y if net.config.flip else y, lambda net: setattr(net.config, "flip", True)),
    "list of an object": (lambda net, y: y * net.config.scales[0], lambda net: net.config.scales.reverse()),
    "slots": (lambda net, y: -y if net.slotted.flip else y, lambda net: setattr(net.slotted, "flip", True)),
    "function": (lambda net, y: net.act(y), lambda net: setattr(net, "act", torch.tanh)),
    "class": (lambda net, y: y * net.factor, lambda net: setattr(Net, "factor", 2.0)),
    "tensor read by Python": (lambda net, y: -y if net.table[0] else y, lambda net: net.table.add_(1)),
    "array": (lambda net, y: y * float(net.array[0] + 1), lambda net: net.array.__setitem__(0, 1)),
    "global dict": (lambda net, y: -y if SWITCH["flip"] else y, set_global_flag),
    "global": (lambda net, y: y * FACTOR, set_global_factor),
    "global object": (lambda net, y: y.clamp(LIMITS.low, LIMITS.inner.high), deep_global),
    "closure": (lambda net, y: net.scaled(y), lambda net: net.scaled.__closure__[0].cell_contents.update(factor=2.0)),
    "default": (lambda net, y: helper(y), lambda net: setattr(helper, "__defaults__", (2.0,))),
    "eps": (lambda net, y: y, lambda net: setattr(net.bn, "eps", 1.0)),
    "eps and momentum": (lambda net, y: y, lambda net: (setattr(net.bn, "eps", 1.0), setattr(net.bn, "momentum", 1))),
    "stride": (lambda net, y: y, lambda net: setattr(net.last, "stride", (2, 2))),
    "module": (lambda net, y: y, lambda net: setattr(net, "bn", nn.Identity().eval())),
}


@pytest.fixture
def put_back():
    yield
    global FACTOR
    SWITCH["flip"], FACTOR, LIMITS.inner.high, Net.factor, helper.__defaults__ = False, 2.0, 6.0, 1.0, (1.0,)


@pytest.mark.parametrize("after, change", SETTINGS.values(), ids=SETTINGS)
def test_a_changed_setting_is_followed(after, change, ran, put_back):
    net = converted(after)
    before = assert_follows(net, ran)
    change(net)
    now = assert_follows(net, ran)
    assert now.shape != before.shape or not torch.allclose(now, before, atol=1e-3)


class Mark:
    """Not a number, to be equal to nothing."""

    def __eq__(self, other):
        return False

    __hash__ = None


@pytest.mark.parametrize("of", [lambda net: net, copy.deepcopy], ids=["the model", "a copy"])
def test_an_unchanged_model_is_looked_at_in_one_pass(of, ran, monkeypatch):
    """The second, slow look says what changed; taken at every call it cost 1.3 ms for a MobileNetV3."""
    net = of(converted())
    run(net)
    monkeypatch.setattr(Stamp, "_difference", lambda self: pytest.fail("looked twice"))
    assert_follows(net, ran)


def test_values_that_are_not_equal_to_themselves_change_nothing(ran):
    net = converted(lambda net, y: y)
    net.nothing, net.mark, net.marks = float("nan"), Mark(), [Mark(), float("nan")]
    run(net)
    plan = installed(net)[0][1].plan
    assert_follows(net, ran)
    assert installed(net)[0][1].plan is plan


def test_what_the_code_does_not_read_costs_no_new_trace(ran):
    net = converted(lambda net, y: y * net.config.scales[0])
    net.config.unrelated = 0
    run(net)
    plan = installed(net)[0][1].plan
    net.config.unrelated = 1
    SWITCH["other"] = SWITCH.get("other", 0) + 1
    assert_follows(net, ran)
    assert installed(net)[0][1].plan is plan


BRANCHES = {
    "isinstance": lambda net, y: y if isinstance(y, Tensor) else -y,
    "isinstance, the same on the example": lambda net, y: y if isinstance(y, Tensor) else y.clamp(max=1e6),
    "type": lambda net, y: y if type(y) is Tensor else -y,
    "hasattr": lambda net, y: -y if hasattr(y, "tensors") else y,
    "an expression": lambda net, y: y * (1 if isinstance(y, Tensor) else 1.0),
    "callable": lambda net, y: y if not callable(y) else y + 0,
    "layer drop": lambda net, y: y if random.random() < 0.5 else net.last(y.repeat(1, 2, 1, 1)),
    "numpy": lambda net, y: y if np.random.rand() < 0.5 else -y,
}


@pytest.mark.parametrize("after", BRANCHES.values(), ids=BRANCHES)
def test_branches_that_a_trace_cannot_tell_are_taken_as_the_forward_takes_them(after):
    torch.manual_seed(0)
    net = Net(after).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, at conversion
        fast = accel.convert_model(net, HALF, example_inputs=image())
    for seed in range(12):
        outputs = []
        for forward in (run, modules_one_by_one):
            random.seed(seed), np.random.seed(seed)
            outputs.append(forward(fast))
        torch.testing.assert_close(*outputs)
    assert all(path.refused for _, path in installed(fast))


def sizes(net, y):
    n, c, h, w = y.shape
    first, second = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, 1)
    return torch.cat((first, second.flip(1)), 1)


def containers(net, y):
    found = {"y": y, "more": [y * scale for scale in (1.0, 2.0)]}
    return sum((value for value in found["more"] if value is not None), found["y"])


Pair = collections.namedtuple("Pair", "left right")


def named(net, y):
    pair = Pair(y, right=y * 2)
    return pair.left + pair._replace(right=y).right


def guarded(net, y):
    if net.training or y is None:
        raise ValueError(f"{type(y)}")
    with torch.no_grad():
        return y if not torch.jit.is_scripting() else -y


@pytest.mark.parametrize("after", [sizes, containers, named, guarded], ids=lambda after: after.__name__)
def test_ways_that_a_trace_can_tell_run_the_plan(after, ran):
    assert_follows(converted(after), ran)


def test_what_the_collector_calls_is_no_way_of_the_forward(ran):
    def counted(_phase, _info):  # as Hypothesis and profilers count collections
        calls.append(_phase)

    calls, threshold = [], gc.get_threshold()
    gc.callbacks.append(counted)
    gc.set_threshold(1)
    try:
        fast = converted(sizes)
        assert calls and gc.isenabled()
        assert_follows(fast, ran)
    finally:
        gc.callbacks.remove(counted)
        gc.set_threshold(*threshold)


def test_a_branch_that_is_refused_is_said_in_the_report():
    with pytest.warns(UserWarning, match="takes another way through its code than when it was traced"):
        fast = accel.convert_model(Net(BRANCHES["isinstance"]).eval(), HALF, example_inputs=image())
    assert "another way" in describe_paths(fast, image())["conv"]


class ByLayout(nn.Module):
    """Takes another way where its input is contiguous, which stand-ins never are."""

    def __init__(self):
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = self.next(F.relu(self.conv(x)))
        return y if x.contiguous() is x else -y


def test_a_way_that_depends_on_the_input_is_found_at_the_first_call_of_its_kind(ran):
    x = image().contiguous(memory_format=torch.channels_last)
    net = accel.convert_model(ByLayout().eval(), HALF, example_inputs=x)
    assert_follows(net, ran, x)
    with pytest.warns(UserWarning, match=r"on inputs of \[2, 3, 12, 12\]: it takes another way"):
        first = run(net)
    torch.testing.assert_close(first, -assert_follows(net, ran, x))
    assert torch.equal(run(net), modules_one_by_one(net))


def test_new_sizes_run_the_plan_and_are_compared_once(ran):
    net = converted()
    path = installed(net)[0][1]
    for batch, size in ((1, 12), (2, 9), (3, 17), (1, 12)):
        assert_follows(net, ran, image(batch, size))
    assert len(path.plan.verdicts) == 4 and set(path.plan.verdicts.values()) == {None}


def test_the_kinds_of_inputs_that_are_remembered_are_bounded(monkeypatch, ran):
    monkeypatch.setattr("accel.nn.inference._KEYS", 3)
    net = converted()
    for size in range(8, 16):
        assert_follows(net, ran, image(1, size))
    assert len(installed(net)[0][1].plan.verdicts) == 3


def test_a_plan_that_is_wrong_for_some_inputs_leaves_these_to_the_forward(ran):
    net = converted()
    path = installed(net)[0][1]
    rewritten = path.rewritten

    def wrong(root, x):
        return rewritten.fast(root, x) + (len(x) == 1)

    path.plan = dataclasses.replace(path.plan, rewritten=dataclasses.replace(rewritten, fast=wrong))
    with pytest.warns(UserWarning, match=r"nothing fused, on inputs of \[1, 3, 12, 12\]: it differs by"):
        first = run(net, image(1))
    assert torch.equal(first, modules_one_by_one(net, image(1)))
    assert torch.equal(run(net, image(1)), first)
    assert_follows(net, ran, image(2))
    assert "differs by" in describe_paths(net, image())["conv"]


class Counts(nn.Module):
    """Writes to its input and counts its calls, in a buffer."""

    def __init__(self):
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        x.mul_(2)
        return self.next(F.relu(self.conv(x)))


def test_the_first_call_of_a_kind_happens_once(ran):
    fast = accel.convert_model(Counts().eval(), HALF, example_inputs=image())
    x, calls = image(3), fast.calls.item()
    with torch.no_grad():
        out = fast(x)
    assert ran and fast.calls == calls + 1 and torch.equal(x, image(3) * 2)
    torch.testing.assert_close(out, modules_one_by_one(fast, image(3)))


def edit_data(net):
    net.next.weight.data[3].zero_()


def edit_numpy(net):
    net.next.weight.detach().numpy()[1, 1] = 1


def edit_bias(net):
    net.last.bias.data.add_(1)


def edit_statistics(net):
    net.bn.running_mean.detach().numpy()[:] -= 2


@pytest.mark.parametrize("edit", [edit_data, edit_numpy, edit_bias, edit_statistics], ids=lambda edit: edit.__name__)
def test_writes_that_torch_cannot_see_are_old_until_they_are_told_and_then_new(edit, ran):
    net, kinds = converted(), [image(), image(1), image(3, 9)]
    before = [run(net, x) for x in kinds[:2]]
    untouched = copy.deepcopy(net)
    edit(net)
    ran.clear()
    for x, old in zip(kinds, [*before, run(untouched, kinds[2])]):  # the last: no plan had it before
        assert torch.equal(run(net, x), old)
        if edit is not edit_statistics:  # module by module, torch runs the norm
            assert torch.equal(modules_one_by_one(net, x), modules_one_by_one(untouched, x))
    assert ran
    accel.refresh(net)
    fresh = accel.convert_model(accel.revert_model(net), HALF, example_inputs=image())
    for x in kinds:
        now = assert_follows(net, ran, x)
        torch.testing.assert_close(now, run(fresh, x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(run(net), before[0], atol=1e-3)


def half_and_back(net):
    net.half().float()


def optimizer_step(net):
    with torch.no_grad():
        net.next.weight.mul_(1.5)


def new_parameter(net):
    net.last.weight = nn.Parameter(net.last.weight.detach() * 2)


def loaded(net):
    net.load_state_dict({**net.state_dict(), "next.bias": torch.ones(8)})


def assigned(net):
    net.load_state_dict({name: value * 1.5 for name, value in net.state_dict().items()}, assign=True)


@pytest.mark.parametrize("write", [half_and_back, optimizer_step, new_parameter, loaded, assigned])
def test_what_torch_sees_needs_no_telling(write, ran):
    net = converted()
    before = assert_follows(net, ran)
    write(net)
    assert not torch.equal(assert_follows(net, ran), before)
    assert len(installed(net)[0][1].plan.verdicts) == 1  # and no new trace


def adaptive():
    torch.manual_seed(0)
    return get_model("zoo:resnet32_cifar_sact").eval(), torch.randn(2, 3, 32, 32)


def first_unit(net):
    stage = next(module for module in net.modules() if type(module).__name__ == "AdaptiveStage")
    return stage[1]


def test_a_hook_inside_an_adaptive_unit_is_called_and_obeyed():
    net, x = adaptive()
    with torch.no_grad():
        before = net(x).logits
        unit = first_unit(net)
        seen = []
        handles = [unit.conv1.register_forward_hook(lambda m, i, o: (seen.append(1), o * 2)[1])]
        hooked = net(x).logits
        with accel.dense_execution(net):
            torch.testing.assert_close(hooked, net(x).logits, rtol=1e-4, atol=1e-4)
        assert seen and not torch.allclose(hooked, before)
        handles[0].remove()
        torch.testing.assert_close(net(x).logits, before)
        unit.register_forward_pre_hook(lambda m, i: (i[0] * 0.5,))
        halved = net(x).logits
        with accel.dense_execution(net):
            torch.testing.assert_close(halved, net(x).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(halved, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda unit: setattr(unit.bn1, "eps", 1.0),
        lambda unit: setattr(unit.halting.bn, "eps", 1.0),
        lambda unit: unit.bn2.train(),
    ],
    ids=["eps", "eps of the head", "a norm in training"],
)
def test_changed_settings_of_an_adaptive_unit_are_followed(change):
    net, x = adaptive()
    with torch.no_grad():
        before = net(x).logits
        change(first_unit(net))
        statistics = copy.deepcopy(net)
        now = net(x).logits
        with accel.dense_execution(statistics):
            torch.testing.assert_close(now, statistics(x).logits, rtol=1e-3, atol=1e-3)
    assert not torch.equal(now, before)


def test_containers_of_other_kinds_are_followed(ran):
    net = converted(lambda net, y: y)
    net.queue, net.ordered = collections.deque([1.0]), collections.OrderedDict(a=1.0)
    net.after = lambda net, y: y * (net.ordered["a"] + net.queue[0])
    before = assert_follows(net, ran)
    net.ordered["a"] = 3.0
    torch.testing.assert_close(assert_follows(net, ran), before * 2)
    net.queue.appendleft(5.0)
    torch.testing.assert_close(assert_follows(net, ran), before * 4)
