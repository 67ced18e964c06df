"""Mixed precision: autocast reaches the network on CUDA only, and halting scores stay in float32 under it."""

import pytest
import torch

import accel
from accel.config import ACT, SACT
from accel.errors import ConfigError
from accel.nn.adaptive import make_adaptive
from accel.train.classification import FitSettings, fit
from accel.zoo.cifar import CifarResNet


@pytest.mark.parametrize("config", [ACT(tau=0.1), SACT(tau=0.1)])
def test_scores_add_up_in_float32_under_autocast(config):
    torch.manual_seed(0)
    net = make_adaptive(CifarResNet(20), dict.fromkeys(("layer1", "layer2", "layer3"), config)).train()
    x = torch.randn(4, 3, 16, 16)
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    assert out.logits.dtype is torch.bfloat16
    for stage, expected in zip(out.stages, exact.stages):
        assert stage.ponder_cost.dtype is torch.float32
        assert torch.allclose(stage.halting_distribution.sum(1), torch.ones(()), atol=1e-6)
        assert stage.ponder_cost.mean().item() == pytest.approx(expected.ponder_cost.mean().item(), rel=1e-3)
    (out.logits.float().square().mean() + accel.ponder_loss(out)).backward()
    assert net.layer1[0].halting.conv.weight.grad.abs().sum() > 0


def test_on_the_cpu_precision_changes_nothing():
    def trained(precision):
        torch.manual_seed(0)
        seen = []

        def loss_of_step(model, step):
            out = model(torch.ones(3, 4) * step)
            seen.append(out.dtype)
            return out.square().mean()

        settings = FitSettings(steps=3, lr=0.1, precision=precision)
        return fit(torch.nn.Linear(4, 2), loss_of_step, settings).weight, seen

    (narrow, dtypes), (wide, _) = trained("bfloat16"), trained("float32")
    assert torch.equal(narrow, wide)
    assert dtypes == [torch.float32] * 3
    with pytest.raises(ConfigError, match="precision must be one of float32, bfloat16, got 'float8'"):
        FitSettings(steps=1, lr=0.1, precision="float8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_network_runs_in_bfloat16():
    seen = []

    def loss_of_step(model, _step):
        out = model(torch.ones(3, 4, device="cuda"))
        seen.append(out.dtype)
        return out.float().square().mean()

    model = fit(torch.nn.Linear(4, 2).cuda(), loss_of_step, FitSettings(steps=2, lr=0.1, precision="bfloat16"))
    assert seen == [torch.bfloat16] * 2
    assert model.weight.dtype is torch.float32
