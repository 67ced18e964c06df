"""SACT in a fully convolutional network: does it look longer at the objects? A smoke training on drawn pictures.

The trunk is torchvision's ResNet-18 up to its second stage inside torchvision's FCN, both stages under SACT: features
out, ponder loss added, nothing else of the segmentation model changed. The same rules make the trunk of torchvision's
Faster R-CNN adaptive ("backbone.body.layer1": SACT(), ...).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.config import SACT
from accel.nn.adaptive import AdaptiveOutput, make_adaptive, ponder_loss
from accel.train.loop import FitSettings, fit
from accel.zoo.shapes import CLASSES, draw_shapes, normalise

SIZE = 96
TRUNK = ("backbone.layer1", "backbone.layer2")


def build_fcn() -> nn.Module:
    """torchvision's FCN on two stages of ResNet-18: [N, 3, H, W] -> {"out": [N, classes + background, H, W]}."""
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    trunk = IntermediateLayerGetter(resnet18(weights=None), {"layer2": "out"})
    return FCN(trunk, FCNHead(128, len(CLASSES) + 1))


def train_fcn(tau: float, steps: int, seed: int = 0, batch: int = 8, lr: float = 1e-3) -> nn.Module:
    """An FCN with an adaptive trunk, trained on drawn shapes: the class of every pixel, 0 for the background."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = make_adaptive(build_fcn(), dict.fromkeys(TRUNK, SACT(tau=tau)))
    net.to(memory_format=torch.channels_last)

    def loss_of_step(net: nn.Module, step: int) -> Tensor:
        drawn = draw_shapes(batch, SIZE, generator)
        target = (drawn.masks[:, 0] * (drawn.labels[:, None, None] + 1)).long()
        out = net(normalise(drawn.images).contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(out.logits["out"], target) + ponder_loss(out)

    return fit(net, loss_of_step, FitSettings(steps=steps, lr=lr, lr_factors={"*.halting.*": 10.0}))


def object_correlation(net: nn.Module, count: int, seed: int) -> float:
    """Mean Spearman correlation, picture by picture, of the summed ponder map with the mask of the drawn object."""
    from scipy.stats import spearmanr

    drawn = draw_shapes(count, SIZE, torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        maps = summed_ponder(net(normalise(drawn.images)), drawn.masks.shape[2:])
    found = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(maps.numpy(), drawn.masks[:, 0].numpy())]
    return float(torch.tensor(found).nan_to_num(0.0).mean())  # a constant map follows nothing


def summed_ponder(out: AdaptiveOutput, size: tuple[int, int]) -> Tensor:
    """[N, *size]: the ponder costs of all stages at the size of the picture, by nearest position, added."""
    return sum(F.interpolate(stage.ponder_cost[:, None], size=size, mode="nearest-exact")[:, 0] for stage in out.stages)
