"""Adaptive trunks in torchvision's segmentation and detection models: they train, and look longer at the objects."""

import json

import pytest
import torch

import accel
from accel.bench import shape_fcn as shape_fcn_bench
from accel.bench.halting_gradients import set_heads
from accel.bench.runner import Settings, read_cases
from accel.cli.main import main
from accel.nn.adaptive import AdaptiveOutput, adaptive_stages, dense_execution, make_adaptive
from accel.zoo import shape_fcn
from accel.zoo.shapes import draw_shapes

BOTH = pytest.mark.parametrize("config", [accel.SACT(tau=0.01), accel.PACT(tau=0.01)], ids=["SACT", "PACT"])


def drawn(count, seed):
    return draw_shapes(count, 96, torch.Generator().manual_seed(seed))


def test_ponder_maps_follow_the_objects(tmp_path, capsys):
    """About 10 seconds of one core; the recipe's 600 steps reach more."""
    changes = [part for change in ("fit.steps=60", "fit.warmup=0.1") for part in ("--set", change)]
    assert main(["train", "shape_fcn", *changes, "--quiet", "-o", str(tmp_path / "sact")]) == 0
    found = json.loads((tmp_path / "sact" / "results.json").read_text())
    print(f"rank correlation of ponder maps with the objects' masks, held-out pictures: {found['correlation']:.3f}")
    assert found["correlation"] > 0.1 and found["correlation"] > found["untrained"]
    assert 0.3 < found["macs_share"] < 1 and found["accuracy"] > 0.5


def test_a_run_of_pact_is_timed_and_judged(tmp_path, request):
    file = read_cases(request.config.rootpath / "profiles/cases/shape_fcn.toml")
    (case,) = (case for case in file["case"] if case["name"] == "PACT")
    changes = [*case["set"], "fit.steps=2", "data.batch=2"]
    recipe = str(request.config.rootpath / case["recipe"])
    case = {**case, "recipe": recipe, "folder": str(tmp_path), "set": changes, "batch": 1, "compiled": False}
    (row,) = shape_fcn_bench.rows(case, Settings(quick=True))
    assert row["correct"] and row["time_share"] > 0 and -1 <= row["correlation"] <= 1
    assert row["over_limit"] == pytest.approx(row["time_share"] - 1.15 * row["macs_share"] - 0.1, abs=1e-3)


def test_what_is_refused_is_one_line(tmp_path, capsys):
    for changes, message in (
        (['adaptive={kind="act"}'], "kind must be sact or pact, got 'act'"),
        (['adaptive={kind="pact",spatial=false}'], "decides by positions and takes the estimator Concrete"),
        (['adaptive={kind="pact",estimator="DisARM"}'], "decides by positions and takes the estimator Concrete"),
        (["segmentation.classes=3"], "holds size (pixels), [data] batch"),
        (["fit.epochs=3"], "the recipe does not fit"),
    ):
        given = [part for change in changes for part in ("--set", change)]
        assert main(["train", "shape_fcn", *given, "--quiet", "-o", str(tmp_path / "a")]) == 1
        assert message in capsys.readouterr().err


def test_correlation_of_known_maps():
    """A network whose units follow the mask correlates fully; one that ponders evenly, not at all."""

    class Given(torch.nn.Module):
        def __init__(self, even: bool):
            super().__init__()
            self.even = even

        def forward(self, x):
            masks = drawn(len(x), 7).masks[:, 0]
            rho = torch.full_like(masks, 2.0) if self.even else 2 + masks
            stage = accel.nn.adaptive.StageOutput(rho, rho.int(), rho[:, None], rho.long(), 1)
            return AdaptiveOutput(x, [stage], 0.0)

    assert shape_fcn.object_correlation(Given(even=False), drawn(3, 7)) == pytest.approx(1.0)
    assert shape_fcn.object_correlation(Given(even=True), drawn(3, 7)) == 0.0


def test_the_fcn_keeps_its_outputs_and_runs_sparsely():
    torch.manual_seed(0)
    net = make_adaptive(shape_fcn.build_fcn(), dict.fromkeys(shape_fcn.TRUNK, accel.SACT(eps=0.1))).eval()
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


@BOTH
def test_faster_rcnn_with_an_adaptive_trunk(config):
    """Losses in training with the ponder loss beside them, detections in evaluation, sparsely as densely."""
    detection = pytest.importorskip("torchvision.models.detection")
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    trunk = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=torch.nn.BatchNorm2d
    )
    model = detection.FasterRCNN(trunk, num_classes=3, min_size=64, max_size=96, rpn_pre_nms_top_n_test=20)
    model = make_adaptive(model, {f"backbone.body.layer{k}": config for k in (1, 2, 3)})
    assert len(adaptive_stages(model)) == 3
    pictures = [torch.rand(3, 64, 80), torch.rand(3, 64, 72)]
    boxes = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 44.0]]), "labels": torch.tensor([1])} for _ in pictures]
    out = model.train()(pictures, boxes)
    loss = sum(out.logits.values()) + accel.ponder_loss(out)
    loss.backward()
    assert torch.isfinite(loss) and {"loss_classifier", "loss_objectness"} <= out.logits.keys()
    halting = [p.grad for name, p in model.named_parameters() if "layer1.0.halting.conv.bias" in name]
    assert len(halting) == 1 and halting[0].abs() > 0
    set_heads(model, bias=-0.2, times=20)
    with torch.no_grad():
        found = model.eval()(pictures)
        with dense_execution(model):
            densely = model(pictures)
    assert any(stage.num_units.unique().numel() > 1 for stage in found.stages)
    for one, other in zip(found.logits, densely.logits):
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-3, atol=1e-2)
    assert all(torch.equal(a.num_units, b.num_units) for a, b in zip(found.stages, densely.stages))
    assert len(found.logits) == 2 and {"boxes", "labels", "scores"} == found.logits[0].keys()
    assert [stage.ponder_cost.shape[0] for stage in found.stages] == [2, 2, 2]
    least = 1 if isinstance(config, accel.PACT) else 2
    assert all(stage.ponder_cost.min() >= least - 1e-6 and stage.ponder_cost.max() <= 3 for stage in found.stages)
