"""The inference path: what it fuses and keeps compact, that it computes the same, and when it steps aside."""

import copy
import operator
import pickle
import threading
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import accel
from accel import Perforate, Rules
from accel.nn.inference import describe_paths, installed
from accel.nn.perforated import PerforatedConv2d
from accel.running import one_by_one
from accel.tests.nn.flows import Flow, convs

HALF = Perforate(keep=0.5, mask="uniform")


class Unit(nn.Module):
    """conv bn relu conv bn, added to the input; one ReLU for every use."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.flag = False

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        if self.flag:
            out = -out
        return self.relu(out)


def image(size=10):
    return torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(1))


def converted(model, rules=HALF, size=10):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias)
    return accel.convert_model(model.eval(), rules, example_inputs=image(size))


def both(model, x=None):
    """(outputs of the inference path, outputs module by module)."""
    x = image() if x is None else x
    with torch.no_grad():
        fused = model(x)
        with one_by_one():
            return fused, model(x)


def chains(model):
    return installed(model)[0][1].chains


def calls(model):
    """The modules that a run calls, watched from outside."""
    seen = []
    hooks = []
    for name, module in model.named_modules():
        if name:

            def hook(*_, name=name):
                seen.append(name)

            hook.observes_only = True
            hooks.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(image())
    for handle in hooks:
        handle.remove()
    return seen


def test_norm_and_activation_move_into_the_convolution():
    unit = converted(Unit())
    assert chains(unit).fused == {"conv1": ["norm", "relu"], "conv2": ["norm", "residual", "relu"]}
    assert chains(unit).compact == {"conv1": ["conv2"]}
    assert describe_paths(unit, image()) == {
        "conv1": "norm+relu fused; rows to conv2",
        "conv2": "norm+residual+relu fused",
    }
    torch.testing.assert_close(*both(unit))
    assert calls(unit) == ["conv1", "conv2"]


def test_parameters_and_norms_stay_as_they_are():
    unit = converted(Unit())
    before = copy.deepcopy(unit.state_dict())
    both(unit)
    assert list(unit.state_dict()) == list(Unit().state_dict())
    assert all(torch.equal(value, before[name]) for name, value in unit.state_dict().items())


@pytest.mark.parametrize("rules", [HALF, Perforate(keep=0.5, mask="uniform", interpolate="weighted")])
def test_a_sum_is_fused_whichever_way_it_is_written(rules):
    expected = {
        "a sum": ({"conv": ["residual", "relu"]}, lambda net, x: torch.relu(net.conv(x) + x)),
        "the other way round": ({"conv": ["residual"]}, lambda net, x: x + net.conv(x)),
        "behind a norm": ({"conv": ["norm", "residual"]}, lambda net, x: torch.add(net.bn(net.conv(x)), x)),
        "two of them": ({"next": ["residual"]}, lambda net, x: net.next(x) + net.conv(x)),
        "a shortcut that runs later": ({"next": ["residual"]}, lambda net, x: net.next(x) + net.one(x)),
        "what broadcasts": ({"conv": ["residual", "relu"]}, lambda net, x: F.relu(net.conv(x) + net.gap(x))),
    }
    for name, (fused, run) in expected.items():
        flow = converted(flowing(run), Rules({"one": None, "*": rules}))
        assert {k: v for k, v in chains(flow).fused.items() if v} == fused, name
        torch.testing.assert_close(*both(flow))


def changed_between(net, x):
    y = net.conv(x)
    z = net.one(x)
    x.add_(1)  # moved behind it, the convolution would read what this wrote
    return y + z


@pytest.mark.parametrize(
    "run",
    [
        changed_between,
        lambda net, x: operator.iadd(net.bn(x), net.conv(x)),  # changes a map that others may read
        lambda net, x: (lambda y: y + y)(net.conv(x)),
        lambda net, x: (lambda y: (y + x, y))(net.conv(x)),  # the sum is not all that reads it
        lambda net, x: F.relu(net.conv(x)) + x,
    ],
)
def test_sums_that_stay_apart(run):
    flow = converted(
        flowing(run), Rules({"one": None, "*": Perforate(keep=0.5, mask="uniform", interpolate="weighted")})
    )
    assert not installed(flow) or "residual" not in str(chains(flow).fused)
    with torch.no_grad():
        fused = flow(image())
        with one_by_one():
            torch.testing.assert_close(fused, flow(image()))


def flowing(flow):
    conv, following = convs(2)
    pools = {"pool": nn.MaxPool2d(2), "gap": nn.AdaptiveAvgPool2d(1)}
    return Flow(flow, conv=conv, next=following, one=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4), **pools)


def skip(net, x):
    y = net.conv(x)
    z = F.relu(y, inplace=True)  # y is read again: it must hold what the activation wrote
    return z + y


def skip_norm(net, x):
    y = net.bn(net.conv(x))
    return torch.relu(y), y.relu_()


def branches(net, x):
    y = net.conv(x).relu()
    return net.next(y) + net.pool(y).mean()


def half_dense(net, x):
    y = net.conv(x)
    return net.next(F.relu(y)), y.sum()


def pointwise(net, x):
    return net.one(F.gelu(net.conv(x))).flatten(1)


def sums(net, x):
    y = net.conv(x)
    z = net.bn(F.hardswish(y))
    y = y + z
    y += z
    return net.gap(y)


def mixed_sum(net, x):
    y = net.conv(x)
    return net.next(F.relu(y) + x) + net.pool(y).sum()


def average(net, x):
    return F.avg_pool2d(net.conv(x), 3, 2, padding=1, count_include_pad=False), net.next(x).mean((2, 3))


def average_ceil(net, x):
    return F.avg_pool2d(net.conv(x), 3, 2, ceil_mode=True)


def by_keyword(net, x):
    return net.next(input=net.pool(input=net.conv(input=x)))


FLOWS = {
    skip: {},
    skip_norm: {},
    branches: {"conv": ["next", "pool"]},
    half_dense: {},
    pointwise: {"conv": ["gelu", "one"]},
    sums: {"conv": ["hardswish", "bn", "add", "iadd", "gap"]},
    mixed_sum: {},
    average: {"conv": ["avg_pool2d"]},
    average_ceil: {},
    by_keyword: {"conv": ["pool"]},
}


@pytest.mark.parametrize("flow, expected", FLOWS.items(), ids=[flow.__name__ for flow in FLOWS])
def test_rows_are_passed_where_every_reader_takes_them(flow, expected):
    net = converted(flowing(flow), Rules({"one": None, "*": HALF}))
    paths = installed(net)
    found = {name: sorted(set(readers)) for name, readers in paths[0][1].chains.compact.items()} if paths else {}
    assert found == {name: sorted(readers) for name, readers in expected.items()}
    torch.testing.assert_close(*both(net))


def test_zero_interpolation_is_neither_fused_nor_compact():
    unit = converted(Unit(), Perforate(keep=0.5, interpolate="zero"))
    assert installed(unit) == []
    torch.testing.assert_close(*both(unit))


def test_activations_that_the_ops_do_not_know_stay_modules():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3), nn.LeakyReLU(), nn.Flatten())
    assert chains(converted(model)).fused == {"2": ["leaky_relu"]}


def test_a_norm_without_running_statistics_stays():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    fast = accel.convert_model(model.eval(), HALF, example_inputs=image())
    assert installed(fast) == []


def test_training_and_gradients_take_the_own_forward():
    unit = converted(Unit())
    stepwise = both(unit)[1]
    out = unit(image())
    out.sum().backward()
    assert torch.equal(out, stepwise) and unit.conv1.weight.grad.abs().sum() > 0
    statistics = unit.bn1.running_mean.clone()
    unit.train()
    with torch.no_grad():
        unit(image())
    assert not torch.equal(unit.bn1.running_mean, statistics)
    unit.eval().bn2.train()  # one norm only
    with torch.no_grad(), one_by_one():
        expected = copy.deepcopy(unit)(image())
    with torch.no_grad():
        assert torch.equal(unit(image()), expected)


def test_fine_tuned_weights_are_folded_anew():
    unit = converted(Unit())
    before = both(unit)[0]
    optimizer = torch.optim.SGD(unit.parameters(), lr=1e-4)
    unit.train()(image()).square().sum().backward()
    optimizer.step()
    unit.eval()
    fused, stepwise = both(unit)
    torch.testing.assert_close(fused, stepwise)
    assert not torch.allclose(fused, before)


def test_hooks_see_every_module():
    unit, seen = converted(Unit()), []
    unit.bn1.register_forward_hook(lambda *_: seen.append("bn1"))
    fused, stepwise = both(unit)
    assert seen == ["bn1", "bn1"] and torch.equal(fused, stepwise)


CHANGES = {
    "setting": lambda net: setattr(net[0], "flag", True),
    "module": lambda net: net.__setitem__(1, nn.Conv2d(4, 2, 1)),
    "norm": lambda net: setattr(net[0], "bn1", nn.Identity()),
    "forward": lambda net: setattr(net[0], "forward", lambda x: x * 2),
    "reverted layer": lambda net: net[0].conv1.release(),
    "added": lambda net: net.append(nn.Flatten()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_is_traced_again(change):
    net = converted(nn.Sequential(Unit(), nn.Conv2d(4, 3, 1)))
    before = both(net)[0]
    change(net)
    fused, stepwise = both(net)
    torch.testing.assert_close(fused, stepwise)
    assert fused.shape != before.shape or not torch.allclose(fused, before)


def test_copies_and_pickles_have_a_path_of_their_own():
    unit = converted(Unit())
    expected = both(unit)[0]
    for other in (copy.deepcopy(unit), pickle.loads(pickle.dumps(unit))):
        path = installed(other)[0][1]
        assert path.root is other and path is not installed(unit)[0][1]
        assert torch.equal(both(other)[0], expected) and path.chains == chains(unit)
    with torch.no_grad():
        other.conv1.weight.zero_()
        assert torch.equal(unit(image()), expected)


def test_revert_and_inplace_conversion_leave_no_path():
    unit = converted(Unit())
    assert installed(accel.revert_model(unit)) == []
    accel.convert_model(unit, Rules({"conv2": Perforate(keep=0.25)}), example_inputs=image(), inplace=True)
    assert len(installed(unit)) == 1
    torch.testing.assert_close(*both(unit))
    accel.revert_model(unit, inplace=True)
    assert installed(unit) == [] and "forward" not in unit.__dict__


def test_parts_of_a_model_that_does_not_trace():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = Unit(), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.head(self.body(x)) if x.mean() < 1e6 else x

    whole = converted(Whole())
    assert [name for name, _ in installed(whole)] == ["body"]
    assert describe_paths(whole, image())["body.conv1"] == "norm+relu fused; rows to body.conv2"
    torch.testing.assert_close(*both(whole))
    row = accel.plan_conversion(whole, HALF, example_inputs=image()).rows[0]
    assert row["note"].startswith("norm+relu fused")


def test_slices_of_a_sequential_and_parts_that_are_never_called():
    class Slices(nn.Module):
        def __init__(self, traces):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
            self.traces = traces

        def forward(self, x):
            if not self.traces and x.sum() > 1e6:
                return x
            return self.features[2:](self.features[:2](x))

    whole, slices = converted(Slices(True)), converted(Slices(False))
    assert describe_paths(whole, image())["features.0"] == "relu fused; rows to features.2"
    assert describe_paths(slices, image()) == {}
    torch.testing.assert_close(*both(whole))


def test_a_dense_pointwise_convolution_runs_on_the_rows_and_is_counted_so():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten())
    rules = Rules({"0": HALF})
    fast = converted(model, rules)
    assert accel.count_macs(fast, image()) == 2 * 50 * (4 * 36 + 6 * 4)
    plan = accel.plan_conversion(model, rules, example_inputs=image())
    assert [row["dense_macs"] for row in plan.rows] == [2 * 100 * 144, 2 * 100 * 24]
    assert [row["executed_macs"] for row in plan.rows] == [2 * 50 * 144, 2 * 50 * 24]
    assert plan.rows[1]["note"] == "on the rows of 0" and plan.rows[1]["keep"] is None


def test_sizes_formats_and_threads():
    unit = converted(Unit())
    for size in (10, 17, 5):
        x = image(size)
        fused, stepwise = both(unit, x)
        torch.testing.assert_close(fused, stepwise)
        torch.testing.assert_close(both(unit, x.contiguous(memory_format=torch.channels_last))[0], fused)
    expected, found = both(unit)[0], []
    threads = [threading.Thread(target=lambda: found.append(both(unit)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(each, expected) for each in found)


def test_compilers_and_tracers_see_the_modules():
    unit = converted(Unit())
    stepwise = both(unit)[1]
    with torch.no_grad():
        traced = torch.jit.trace(unit, image(), check_trace=False)
        torch.testing.assert_close(traced(image()), stepwise)
        compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(image()), stepwise)
        exported = torch.export.export(unit, (image(),)).module()
        torch.testing.assert_close(exported(image()), stepwise)


@pytest.mark.parametrize("name, fused", [("resnet18", 20), ("vgg11_bn", 8), ("mobilenet_v2", 52)])
def test_real_architectures(name, fused):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2), module.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 3, 64, 64)
    fast = accel.convert_model(model, Perforate(keep=0.5), example_inputs=x)
    assert len(chains(fast).fused) == fused
    quick, stepwise = both(fast, x)
    assert (quick - stepwise).norm() <= 1e-5 * stepwise.norm()
    assert all(isinstance(dict(fast.named_modules())[conv], PerforatedConv2d) for conv in chains(fast).fused)


class OrderedOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        result = OrderedDict()
        result["out"] = torch.relu(self.conv(x))
        result["rest"] = [self.other(result["out"]), OrderedDict(inner=result["out"].mean())]
        return result


def test_an_ordered_dict_comes_out_as_one():
    """As of torchvision's segmentation networks; a graph of torch.fx alone gives a plain dict."""
    model, x = OrderedOutput().eval(), torch.randn(2, 3, 8, 8)
    fast = accel.convert_model(model, Perforate(keep=1.0), example_inputs=x)
    assert [path.rewritten is not None for _, path in installed(fast)] == [True]
    with torch.no_grad():
        found, expected = fast(x), model(x)
    assert type(found) is OrderedDict and list(found) == ["out", "rest"] and type(found["rest"]) is list
    assert type(found["rest"][1]) is OrderedDict
    torch.testing.assert_close(found, expected)
