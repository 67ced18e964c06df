"""An FCN on a ResNet trunk that is adaptive: where it computes longer in drawn pictures, beside where the object is.

torchvision's FCN on its ResNet-18 up to the second stage, both stages under SACT or PACT: features out, nothing else of
the segmentation model changed. The same rules make the trunk of torchvision's Faster R-CNN adaptive
("backbone.body.layer1": SACT(), ...).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.config import Halting
from accel.nn.adaptive import AdaptiveOutput, make_adaptive
from accel.zoo.shapes import CLASSES, Shapes, normalise

TRUNK = ("backbone.layer1", "backbone.layer2")


def build_fcn() -> nn.Module:
    """[N, 3, H, W] -> {"out": [N, classes + background, H, W]}, with drawn weights."""
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    trunk = IntermediateLayerGetter(resnet18(weights=None), {"layer2": "out"})
    return FCN(trunk, FCNHead(128, len(CLASSES) + 1))


def adaptive_fcn(config: Halting) -> nn.Module:
    """The same with an adaptive trunk, in channels_last; its output is an AdaptiveOutput."""
    net = make_adaptive(build_fcn(), dict.fromkeys(TRUNK, config))
    return net.to(memory_format=torch.channels_last)


def targets(drawn: Shapes) -> Tensor:
    """The class of every pixel, int64 [N, H, W], 0 for the background."""
    return (drawn.masks[:, 0] * (drawn.labels[:, None, None] + 1)).long()


def inputs(drawn: Shapes) -> Tensor:
    """What the network reads of drawn pictures."""
    return normalise(drawn.images).contiguous(memory_format=torch.channels_last)


def object_correlation(net: nn.Module, drawn: Shapes) -> float:
    """Mean Spearman correlation, picture by picture, of the summed ponder map with the mask of the drawn object."""
    from scipy.stats import spearmanr

    with torch.inference_mode():
        maps = summed_ponder(net(inputs(drawn)), drawn.masks.shape[2:])
    found = []
    for ponder, mask in zip(maps.cpu().numpy(), drawn.masks[:, 0].numpy()):
        follows = ponder.min() < ponder.max()  # a constant map follows nothing
        found.append(spearmanr(ponder.flatten(), mask.flatten()).statistic if follows else 0.0)
    return float(sum(found) / len(found))


def summed_ponder(out: AdaptiveOutput, size: tuple[int, int]) -> Tensor:
    """[N, *size]: the ponder costs of all stages at the size of the picture, by nearest position, added."""
    return sum(F.interpolate(stage.ponder_cost[:, None], size=size, mode="nearest-exact")[:, 0] for stage in out.stages)
