"""A batch norm folded into weights: exact, renewed when anything changes, and never touching the modules."""

import copy
import sys
import threading

import pytest
import torch
from torch import nn

import accel
from accel.nn.folding import FoldedWeights, fold


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
