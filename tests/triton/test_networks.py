"""Whole networks through the Triton launchers on a pretend card, against the same networks on the reference.

VGG-11 at a quarter of its width (8 convolutions; what follows them is torch's, and VGG-16 repeats some of them),
ResNet-50 with two units in the first stage and one in the others (the rest are the second again), its 3x3 convolutions
at a quarter, and a SACT ResNet-20, on small pictures. The tile is a wide one: the
interpreter takes 2 ms for each, whatever its size.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import vgg
from torchvision.models.resnet import Bottleneck, ResNet

import accel
from accel.kernels.dispatch import use_backend
from accel.nn.perforated import PerforatedConv2d
from accel.profiling.pretend_gpu import pretend_gpu
from accel.tests.elsewhere import fake_sets, to_card
from accel.tests.triton_tools.fake_gpu import fake_gpu
from accel.tests.triton_tools.synchronisation import no_synchronisation
from accel.zoo.cifar import CifarResNet

CONVOLUTIONS = {"vgg11": 8, "bottlenecks": 20}
# What building a position set or one of its lists takes.
BUILDING = {"aten::argsort", "aten::sort", "aten::searchsorted", "aten::randperm", "aten::cumsum"}
# float32 on either side: a rounding of 6e-8 in each of up to 20 layers, and sums in other orders
ROUNDING = 1e-5


def build(name: str, generator: torch.Generator) -> nn.Module:
    """A network in evaluation, its batch norms with statistics that are not the initial ones."""
    torch.manual_seed(0)
    if name == "vgg11":
        quarters = [wide if wide == "M" else wide // 4 for wide in vgg.cfgs["A"]]
        model = nn.Sequential(vgg.make_layers(quarters), nn.Flatten(), nn.Linear(128, 10))
    elif name == "bottlenecks":
        model = ResNet(Bottleneck, [2, 1, 1, 1], num_classes=10, width_per_group=16)
    else:
        model = CifarResNet(20)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("name", "interpolate", "target"), [("vgg11", "weighted", "sm100"), ("bottlenecks", "nearest", "sm90")]
)
def test_static_networks(name, interpolate, target, generator, poisoned, wide_tile):
    x = torch.randn(2, 3, 32, 32, generator=generator)
    config = accel.Perforate(keep=0.5, interpolate=interpolate)
    fast = accel.convert_model(build(name, generator), config, example_inputs=x)
    with torch.inference_mode():
        with use_backend("reference"):
            expected = fast(x)
        with fake_gpu(target) as record, use_backend("triton"):
            got = fast(x)
        assert relative_error(got, expected) < ROUNDING
        kernels = [launch.name for launch in record.launches]
        assert kernels.count("gather_gemm") == CONVOLUTIONS[name]
        assert ("interpolate_fitted_rows" in kernels) == (interpolate == "weighted")
        # once more, launches computing nothing: all that is left is the host's part of the whole network
        with pretend_gpu(target) as again, use_backend("triton"), no_synchronisation() as seen:
            fast(x)
    assert len(again.launches) == len(record.launches)
    assert "aten::linear" in seen and not seen & BUILDING, "sets and lists are kept"


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_card_has_its_own_position_sets_and_autocasts(name, generator, cuda_autocast, monkeypatch):
    """Shapes, dtypes and devices alone: tensors of a card that is not there, which can give the host no number."""
    x = torch.randn(2, 3, 32, 32, generator=generator)
    fast = accel.convert_model(build(name, generator), accel.Perforate(keep=0.5), example_inputs=x)
    built = []
    with FakeTensorMode() as mode:
        monkeypatch.setattr(PerforatedConv2d, "_build_set", fake_sets(mode, built))
        to_card(fast)
        for _ in range(2):
            with torch.no_grad():
                out = fast(torch.empty(2, 3, 32, 32, device="cuda"))
            assert len(built) == len(set(built)) == CONVOLUTIONS[name]
    assert out.dtype == torch.float16 and out.device.type == "cuda"


def test_a_sact_network(generator, poisoned, wide_tile):
    """Every position of every stage halts in the same unit, and the rest of the stage runs sparse."""
    x = torch.randn(2, 3, 16, 16, generator=generator)
    net = accel.convert_model(build("resnet20", generator), accel.SACT(tau=0.01), example_inputs=x).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == 1 and module.bias is not None:
            nn.init.normal_(module.weight, 0, 0.3, generator=generator)
            nn.init.constant_(module.bias, 0.0)  # about half of the positions halt early
    with torch.inference_mode():
        with use_backend("reference"):
            expected = net(x)
        with fake_gpu("gfx942") as record, use_backend("triton"):
            got = net(x)
    assert {"gather_gemm", "place_active", "step"} <= {launch.name for launch in record.launches}
    assert relative_error(got.logits, expected.logits) < ROUNDING
    for stage, other in zip(got.stages, expected.stages, strict=True):
        assert other.num_units.unique().numel() > 1
        assert torch.equal(stage.num_units, other.num_units)
        assert relative_error(stage.ponder_cost, other.ponder_cost) < ROUNDING
