"""torch's fused optimizers raise no versions of the parameters that they write: caches must notice all the same."""

import pytest
import torch
from torch import nn

import accel
from accel.ops import use_backend


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_weights_are_those_of_after_the_step(optimizer, keep):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    x = torch.randn(2, 2, 8, 8)
    fast = accel.convert_model(net.eval(), accel.Perforate(keep=keep, mask="lattice"), example_inputs=x)
    step = optimizer(fast.parameters(), lr=0.1, fused=True)
    for training in (False, True, True, False):
        fast.train(training)
        with torch.set_grad_enabled(training):
            got = fast(x)
            with use_backend("reference"):
                torch.testing.assert_close(got, fast(x), rtol=1e-4, atol=1e-5)
        step.zero_grad()
        fast(x).square().mean().backward()
        step.step()
