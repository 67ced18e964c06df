"""A batch norm folded into weights: exact, renewed when anything changes, and never touching the modules."""

import copy
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate, Rules
from accel.nn.folding import FoldedWeights, fold
from accel.nn.inference import installed
from accel.nn.pipeline import Chains
from accel.running import one_by_one
from accel.tests.nn.flows import Flow, convs


def pair(affine=True, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d(6, affine=affine)
    nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)
    if affine:
        nn.init.uniform_(norm.weight, -1, 1), nn.init.normal_(norm.bias)
    return conv.to(dtype).eval(), norm.to(dtype).eval()


def apply(conv, weights, x):
    folded = copy.deepcopy(conv)
    folded.weight, folded.bias = (nn.Parameter(tensor) for tensor in weights)
    return folded(x)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_weights_are_norm_after_convolution(affine, bias):
    conv, norm = pair(affine, bias)
    before = copy.deepcopy((conv.state_dict(), norm.state_dict()))
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(apply(conv, fold(conv, norm)[:2], x), norm(conv(x)))
    for module, state in zip((conv, norm), before):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


CHANGES = {
    "in place": lambda conv, norm: conv.weight.mul_(2),
    "through data, and said": lambda conv, norm: (conv.weight.data.fill_(0.1), accel.refresh(conv)),
    "statistics through data, and said": lambda conv, norm: (norm.running_var.data.mul_(2), accel.refresh(norm)),
    "bias": lambda conv, norm: conv.bias.add_(1),
    "epsilon": lambda conv, norm: setattr(norm, "eps", 0.5),
    "statistics": lambda conv, norm: norm.train()(torch.randn(4, 6, 5, 5).double()),
    "replaced": lambda conv, norm: setattr(norm, "weight", nn.Parameter(torch.ones(6).double())),
    "loaded": lambda conv, norm: norm.load_state_dict(pair()[1].state_dict() | {"bias": torch.ones(6).double()}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_renews_the_cache(change):
    conv, norm = pair()
    cache = FoldedWeights()
    with torch.no_grad():
        first = cache.get(conv, norm)
        assert cache.get(conv, norm) is first
        change(conv, norm)
        norm.eval()
        renewed = cache.get(conv, norm)
        assert renewed is not first
        for got, expected in zip(renewed[:2], fold(conv, norm)[:2]):
            assert torch.equal(got, expected)


def test_low_precision_is_folded_in_single_precision():
    conv, norm = pair(dtype=torch.float32)
    exact = fold(conv, norm)
    low = fold(conv.bfloat16(), norm.bfloat16())
    for tensor, reference in zip(low[:2], exact[:2]):
        assert tensor.dtype is torch.bfloat16
        assert (tensor.float() - reference).norm() < 0.01 * reference.norm()


def test_inference_tensors_have_no_version_and_are_still_watched():
    with torch.inference_mode():
        conv, norm = pair()
        cache = FoldedWeights()
        first = cache.get(conv, norm)
        conv.weight.mul_(2)
        assert not torch.equal(cache.get(conv, norm)[0], first[0])


def test_threads_that_share_a_cache_get_their_own_weights():
    """Two sizes of one layer fold with and without a fit: what another thread folds meanwhile is not handed out."""
    conv, norm = pair()
    cache, other = FoldedWeights(), pair()[1]
    other.weight.data.mul_(3)
    right = {id(n): fold(conv, n).weight for n in (norm, other)}
    wrong = []

    def work(n):
        for _ in range(300):
            if not torch.equal(cache.get(conv, n).weight, right[id(n)]):
                wrong.append(n)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in (norm, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


class NormAct(nn.BatchNorm2d):
    """A norm and an activation in one, that checks its input as timm's does."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps))


class FrozenNorm(nn.Module):
    """Statistics of its own, and no gain."""

    def __init__(self, channels, eps=1e-3):
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)
        self.register_buffer("bias", torch.randn(channels))
        self.weight = None

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)


def by_another_eps(net, x):
    norm = net.norm
    return F.batch_norm(net.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=0.5)


def by_another_gain(net, x):
    norm, other = net.norm, net.other
    return F.batch_norm(net.conv(x), norm.running_mean, norm.running_var, other.weight, norm.bias, eps=norm.eps)


def by_the_batch(net, x):
    norm = net.norm
    y = net.conv(x)
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, x.shape[0] > 7, 0, norm.eps)


CALLED = {  # by function, and what is fused into the convolution
    "norm and activation": (lambda net, x: net.norm(net.conv(x)), ["norm", "relu"]),
    "a sum behind it": (lambda net, x: net.norm(net.conv(x)) + x, ["norm", "relu"]),
    "twice": (lambda net, x: net.norm(net.next(net.norm(net.conv(x)))), ["norm", "relu"]),
    "frozen": (lambda net, x: net.frozen(net.conv(x)) + x, ["norm", "residual"]),
    "another eps": (by_another_eps, None),
    "another module's gain": (by_another_gain, None),
    "training depends on the input": (by_the_batch, None),
}


@pytest.mark.parametrize("keep", [1.0, 0.5, None])
@pytest.mark.parametrize("name", CALLED)
def test_a_norm_that_is_called_as_a_function_is_folded_where_it_is_a_modules_own(name, keep):
    flow, fused = CALLED[name]
    torch.manual_seed(0)
    conv, following, aside = convs(3)
    layers = {"norm": NormAct(4), "other": NormAct(4), "frozen": FrozenNorm(4), "aside": aside}
    net = Flow(lambda net, x: (flow(net, x), net.aside(x)), conv=conv, next=following, **layers).eval()
    for tensor in (net.norm.running_mean, net.norm.weight, net.norm.bias, net.other.weight):
        nn.init.normal_(tensor)
    x = torch.randn(2, 4, 8, 8)
    rules = {"aside": Perforate(keep=0.5), "*": None if keep is None else Perforate(keep=keep, mask="lattice")}
    fast = accel.convert_model(net, Rules(rules), example_inputs=x)
    found = installed(fast)[0][1].chains if installed(fast) else Chains()
    assert (found.dense if keep is None else found.fused).get("conv") == fused
    with torch.no_grad():
        for _ in range(2):
            with one_by_one():
                expected = fast(x)
            torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
            if keep != 0.5:
                torch.testing.assert_close(fast(x)[0], net(x)[0], rtol=1e-4, atol=1e-5)
            for model in (fast, net):  # what is folded follows the statistics, and the setting
                model.norm.running_var.mul_(3)
                model.norm.eps = 0.2
                model.frozen.eps = 0.3


def test_a_norm_by_function_takes_a_map_without_a_batch_as_torch_does():
    """Of [C, H, W] the function takes the rows for its channels."""
    torch.manual_seed(0)
    net = Flow(lambda net, x: net.norm(net.conv(x)), conv=convs(1)[0], norm=FrozenNorm(4)).eval()
    x = torch.randn(1, 4, 4, 4)
    fast = accel.convert_model(net, Perforate(keep=1.0), example_inputs=x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast(x[0]), net(x[0]), rtol=1e-4, atol=1e-5)
        path = installed(fast)[0][1]
        torch.testing.assert_close(path.rewritten.code(fast, x[0]), net(x[0]), rtol=1e-4, atol=1e-5)


def test_checks_of_a_norm_stand_in_no_way_of_rows_and_still_check():
    torch.manual_seed(0)
    conv, following = convs(2)
    net = Flow(lambda net, x: net.next(net.norm(net.conv(x))), conv=conv, next=following, norm=NormAct(4)).eval()
    x = torch.randn(1, 4, 8, 8)
    fast = accel.convert_model(net, Perforate(keep=0.5, mask="uniform"), example_inputs=x)
    assert installed(fast)[0][1].chains.compact == {"conv": ["next"]}
    for run in (fast, lambda x: installed(fast)[0][1].rewritten.code(fast, x)):
        with torch.no_grad(), pytest.raises((AssertionError, ValueError), match="expected 4D input"):
            run(x[0])
