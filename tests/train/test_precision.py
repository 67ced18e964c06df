"""Mixed precision: the network computes in it, its parameters and halting scores stay in float32."""

import warnings

import pytest
import torch
from torch import nn

import accel
from accel.config import ACT, SACT
from accel.errors import ConfigError
from accel.nn.adaptive import make_adaptive
from accel.train import loop
from accel.train.loop import FitSettings, fit
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


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_training_computes_in_the_precision_asked_for(device, precision, dtype):
    seen = []

    def loss_of_step(model, _step):
        out = model(torch.ones(3, 4, device=device))
        seen.append(out.dtype)
        return out.float().square().mean()

    model = fit(torch.nn.Linear(4, 2).to(device), loss_of_step, FitSettings(steps=2, lr=0.1, precision=precision))
    assert seen == [dtype] * 2
    assert model.weight.dtype is torch.float32 and not torch.is_autocast_enabled(device)


@pytest.mark.parametrize("config", [None, ACT(tau=0.1), SACT(tau=0.1)])
def test_a_step_in_bfloat16_goes_where_one_in_float32_goes(config):
    def moved(precision):
        torch.manual_seed(0)
        net = CifarResNet(14)
        if config is not None:
            make_adaptive(net, dict.fromkeys(("layer1", "layer2", "layer3"), config))
        before = [parameter.detach().clone() for parameter in net.parameters()]
        x = torch.randn(8, 3, 16, 16)

        def loss_of_step(model, _step):
            out = model(x)
            if config is None:
                return out.float().square().mean()
            return out.logits.float().square().mean() + accel.ponder_loss(out)

        settings = FitSettings(steps=1, lr=0.1, warmup=0.0, weight_decay=0.0, optimizer="sgd", precision=precision)
        fit(net, loss_of_step, settings)
        return torch.cat([(now.detach() - old).flatten() for now, old in zip(net.parameters(), before)])

    wide, narrow = moved("float32"), moved("bfloat16")
    assert wide.norm() > 0 and not torch.equal(wide, narrow)
    assert torch.cosine_similarity(wide, narrow, dim=0) > 0.99


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="precision must be one of float32, bfloat16, got 'float8'"):
        FitSettings(steps=1, lr=0.1, precision="float8")


@pytest.mark.parametrize(
    ("precision", "has", "said"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0)]
)
def test_bfloat16_in_software_is_said(precision, has, said, monkeypatch):
    monkeypatch.setattr(loop, "_cpu_has_bfloat16", lambda: has)
    net = nn.Linear(2, 2)
    settings = FitSettings(steps=1, lr=0.1, precision=precision)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fit(net, lambda net, _: net(torch.ones(1, 2)).sum(), settings)
    assert sum("computes bfloat16 in software" in str(each.message) for each in found) == said
