"""Networks that others wrote, by name and without pretrained weights, and how they are called.

`torchvision:NAME` and `timm:NAME` go by the registries there; `smp:`, `ultralytics:` and `transformers:` by the tables
below; `own:` by the functions of `accel.bench.foreign_own`. All but the first and the last need the extra `bench`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from accel.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A network and how to call it.

    Attributes:
        model: in evaluation.
        inputs: pictures [N, 3, H, W] -> the arguments of the model.
        read: (model, arguments) -> the outputs that are compared.
    """

    model: nn.Module
    inputs: Callable[[Tensor], tuple]
    read: Callable[[nn.Module, tuple], object]


def build(name: str, seed: int = 0) -> Foreign:
    """The network `family:name` as its library initialises it.

    Raises:
        ConfigError: no such family or network, or its library is not installed.
    """
    import torch

    family, _, network = name.partition(":")
    if family not in _FAMILIES:
        raise ConfigError(f"no network {name!r}: give FAMILY:NAME, the families are {', '.join(_FAMILIES)}")
    torch.manual_seed(seed)
    try:
        model = _FAMILIES[family](network).eval()
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name} needs {error.name}: pip install 'skimconv[bench]'") from error
    return Foreign(model, _INPUTS.get(network, lambda pictures: (pictures,)), _READS.get(network, _whole))


def _torchvision(name: str) -> nn.Module:
    import torchvision

    options = {"weights": None}
    if name in _DETECTORS:
        options["weights_backbone"] = None
        if name != "ssd300_vgg16":  # it takes 300x300 only; the others scale every picture up to 800
            options |= {"min_size": 64, "max_size": 256}
        if "rcnn" in name:  # a keypoint head takes 3.6 G multiply-accumulates for every box
            options |= {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 2}
    elif name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        options["weights_backbone"] = None
    elif name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return torchvision.models.get_model(name, **options)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def _smp(name: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    made = {
        "unet": lambda: smp.Unet("resnet18", encoder_weights=None),
        "deeplabv3plus": lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None),
    }
    return _entry(made, name)()


def _ultralytics(name: str) -> nn.Module:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    made = {"yolov8n": DetectionModel, "yolo11n-seg": SegmentationModel}
    return _entry(made, name)(f"{name}.yaml", verbose=False)


def _transformers(name: str) -> nn.Module:
    import transformers as hf

    made = {
        "resnet": lambda: hf.ResNetForImageClassification(
            hf.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], embedding_size=32)
        ),
        "segformer": lambda: hf.SegformerForSemanticSegmentation(hf.SegformerConfig(num_labels=10)),
        "detr": lambda: hf.DetrForObjectDetection(
            hf.DetrConfig(
                use_timm_backbone=False,
                use_pretrained_backbone=False,
                backbone=None,
                backbone_config=hf.ResNetConfig(
                    depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], embedding_size=32, out_features=["stage4"]
                ),
                encoder_layers=2,
                decoder_layers=2,
                num_queries=20,
            )
        ),
        "mobilenet_v2": lambda: hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config()),
        "convnext": lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(depths=[2, 2, 2, 2], hidden_sizes=[48, 96, 192, 384])
        ),
    }
    return _entry(made, name)()


def _own(name: str) -> nn.Module:
    from accel.bench.foreign_own import NETWORKS

    return _entry(NETWORKS, name)()


def _entry(made: dict[str, Callable], name: str) -> Callable:
    if name not in made:
        raise ConfigError(f"no network {name!r}, only {', '.join(made)}")
    return made[name]


_FAMILIES = {
    "torchvision": _torchvision,
    "timm": _timm,
    "smp": _smp,
    "ultralytics": _ultralytics,
    "transformers": _transformers,
    "own": _own,
}


def _whole(model: nn.Module, arguments: tuple) -> object:
    return model(*arguments)


def _rcnn_heads(model: nn.Module, arguments: tuple) -> object:
    """What comes before proposals and boxes are sorted and suppressed, where little differences become great ones: the
    maps, the heads on them (all levels in one, as the network itself goes on), and the heads of the regions on drawn
    ones, which stand in for those that were cut out."""
    import torch

    generator = torch.Generator().manual_seed(0)
    maps = model.backbone(model.transform(list(arguments[0]))[0].tensors)
    proposed = [torch.cat([level.flatten(1) for level in levels], 1) for levels in model.rpn.head(list(maps.values()))]
    heads = model.roi_heads
    boxes = heads.box_predictor(heads.box_head(torch.randn(5, 256, 7, 7, generator=generator)))
    if not heads.has_keypoint():
        return maps, proposed, boxes
    points = heads.keypoint_predictor(heads.keypoint_head(torch.randn(5, 256, 14, 14, generator=generator)))
    return maps, proposed, boxes, points


def _single_shot_heads(model: nn.Module, arguments: tuple) -> object:
    """What comes before the boxes are sorted and suppressed."""
    maps = model.backbone(model.transform(list(arguments[0]))[0].tensors)
    return maps, model.head(list(maps.values()))


_DETECTORS = {
    "fasterrcnn_resnet50_fpn": _rcnn_heads,
    "keypointrcnn_resnet50_fpn": _rcnn_heads,
    "retinanet_resnet50_fpn": _single_shot_heads,
    "ssd300_vgg16": _single_shot_heads,
}
_READS = _DETECTORS


def _pairs(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Two inputs: each picture, and the same one moved by 2 pixels and a little darker."""
    return pictures, 0.8 * pictures.roll((1, 2), (2, 3))


def _latents(pictures: Tensor) -> tuple[Tensor]:
    """What a generator reads instead of pictures: 64 numbers for each."""
    import torch

    return (torch.nn.functional.adaptive_avg_pool2d(pictures, (4, 8))[:, :2].flatten(1),)


_INPUTS = {"raft_small": _pairs, "siamese": _pairs, "siamese_distance": _pairs, "gan_generator": _latents}
