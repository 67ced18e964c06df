"""SACT inside torchvision's segmentation and detection models: it trains, and looks longer at the objects."""

import pytest
import torch

import accel
from accel.nn.adaptive import AdaptiveOutput, adaptive_stages, dense_execution, make_adaptive
from accel.tests.zoo import shape_fcn as segmentation
from accel.zoo.shapes import draw_shapes, normalise


def test_ponder_maps_follow_the_objects(record_property):
    """About 10 seconds of one core; measured: 0.51 over 32 held-out pictures."""
    net = segmentation.train_fcn(tau=0.02, steps=60)
    found = segmentation.object_correlation(net, count=32, seed=99)
    record_property("rank correlation with the object's mask", found)
    print(f"rank correlation of ponder maps with the objects' masks, 32 held-out pictures: {found:.3f}")
    assert found > 0.1
    with torch.inference_mode():
        out = net(normalise(draw_shapes(8, segmentation.SIZE, torch.Generator().manual_seed(3)).images))
    assert all(1 < stage.num_units.float().mean() < 2 for stage in out.stages)  # it halts, but not everywhere


def test_correlation_of_known_maps():
    """A network whose units follow the mask correlates fully; one that ponders evenly, not at all."""

    class Given(torch.nn.Module):
        def __init__(self, even: bool):
            super().__init__()
            self.even = even

        def forward(self, x):
            drawn = draw_shapes(len(x), segmentation.SIZE, torch.Generator().manual_seed(7))
            rho = torch.full_like(drawn.masks[:, 0], 2.0) if self.even else 2 + drawn.masks[:, 0]
            stage = accel.nn.adaptive.StageOutput(rho, rho.int(), rho[:, None], rho.long(), 1)
            return AdaptiveOutput(x, [stage], 0.0)

    assert segmentation.object_correlation(Given(even=False), 3, seed=7) == pytest.approx(1.0)
    with pytest.warns(match="constant"):
        assert segmentation.object_correlation(Given(even=True), 3, seed=7) == 0.0


def test_the_fcn_keeps_its_outputs_and_runs_sparsely():
    torch.manual_seed(0)
    net = make_adaptive(segmentation.build_fcn(), dict.fromkeys(segmentation.TRUNK, accel.SACT(eps=0.1))).eval()
    for name, module in net.named_modules():
        if name.endswith("halting.conv"):
            module.bias.data.fill_(1.5)
            module.weight.data.mul_(20)
    x = torch.randn(2, 3, 70, 90)
    with torch.inference_mode():
        sparse = net(x)
        with dense_execution(net):
            dense = net(x)
    assert sparse.logits["out"].shape == (2, 8, 70, 90)
    assert torch.allclose(sparse.logits["out"], dense.logits["out"], atol=1e-4)
    assert 0 < (sparse.stages[0].num_units == 1).float().mean() < 1


def test_faster_rcnn_with_an_adaptive_trunk():
    """Losses in training with the ponder loss beside them, detections in evaluation."""
    detection = pytest.importorskip("torchvision.models.detection")
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    trunk = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=torch.nn.BatchNorm2d
    )
    model = detection.FasterRCNN(trunk, num_classes=3, min_size=64, max_size=96, rpn_pre_nms_top_n_test=20)
    rules = {f"backbone.body.layer{k}": accel.SACT(tau=0.01) for k in (1, 2, 3)}
    model = make_adaptive(model, rules)
    assert len(adaptive_stages(model)) == 3
    pictures = [torch.rand(3, 64, 80), torch.rand(3, 64, 72)]
    boxes = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 44.0]]), "labels": torch.tensor([1])} for _ in pictures]
    out = model.train()(pictures, boxes)
    loss = sum(out.logits.values()) + accel.ponder_loss(out)
    loss.backward()
    assert torch.isfinite(loss) and {"loss_classifier", "loss_objectness"} <= out.logits.keys()
    halting = [p.grad for name, p in model.named_parameters() if "layer1.0.halting.conv.bias" in name]
    assert len(halting) == 1 and halting[0].abs() > 0
    with torch.no_grad():
        found = model.eval()(pictures)
    assert len(found.logits) == 2 and {"boxes", "labels", "scores"} == found.logits[0].keys()
    assert [stage.ponder_cost.shape[0] for stage in found.stages] == [2, 2, 2]
    assert all(stage.ponder_cost.min() >= 2 - 1e-6 and stage.ponder_cost.max() <= 3 for stage in found.stages)
