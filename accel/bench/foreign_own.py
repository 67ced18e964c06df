"""Networks in the manner of others that no registry holds: restoration, generation, two inputs, and every way in which
users dress up a convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.utils.checkpoint import checkpoint


def dncnn() -> nn.Module:
    """Zhang et al. 2017, 12 layers: the noise is what is learnt, and taken off the input."""
    return _Denoiser()


class _Denoiser(nn.Module):
    def __init__(self, width: int = 48, depth: int = 12) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.net(x)


def esrgan() -> nn.Module:
    """Wang et al. 2018, two residual-in-residual dense blocks, four times as large."""
    return _Esrgan()


class _DenseBlock(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(4))
        self.last = nn.Conv2d(width + 4 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for conv in self.convs:
            seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2, inplace=True))
        return self.last(torch.cat(seen, 1)) * 0.2 + x


class _Esrgan(nn.Module):
    def __init__(self, width: int = 32, growth: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.trunk = nn.Sequential(*(_DenseBlock(width, growth) for _ in range(2)))
        self.trunk_conv = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.high = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.trunk_conv(self.trunk(x) * 0.2 + x)
        for conv in self.up:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2, inplace=True)
        return self.last(F.leaky_relu(self.high(x), 0.2, inplace=True))


def gan_generator() -> nn.Module:
    """64 numbers to a 32x32 picture: transposed convolutions, and convolutions behind a nearest upsampling."""
    return nn.Sequential(
        nn.Linear(64, 4 * 4 * 64),
        nn.Unflatten(1, (64, 4, 4)),
        nn.ConvTranspose2d(64, 48, 4, 2, 1, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(True),
        nn.Conv2d(48, 48, 3, padding=1, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU(True),
        nn.ConvTranspose2d(48, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.PReLU(),
        nn.Conv2d(32, 3, 3, padding=1),
        nn.Tanh(),
    )


def siamese() -> nn.Module:
    """Two pictures through one trunk; what is compared are the two maps side by side."""
    return _Siamese(distance=False)


def siamese_distance() -> nn.Module:
    """The same with a distance and a dot product of embeddings at the end."""
    return _Siamese(distance=True)


class _Siamese(nn.Module):
    def __init__(self, distance: bool) -> None:
        super().__init__()
        self.trunk = _trunk()
        self.head = nn.Conv2d(96, 16, 3, padding=1)
        self.distance = distance

    def forward(self, first: Tensor, second: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        a, b = self.trunk(first), self.trunk(second)
        if not self.distance:
            return F.relu(self.head(torch.cat([a, b], 1)))
        a, b = a.mean((2, 3)), b.mean((2, 3))
        return F.pairwise_distance(a, b), (a * b).sum(1)


def _trunk(dress=lambda conv: conv, norms: bool = True) -> nn.Sequential:
    """Four convolutions with a stride and a pooling between them; `dress` goes over each."""
    layers: list[nn.Module] = []
    for wide, (read, written, stride) in enumerate([(3, 24, 1), (24, 32, 2), (32, 48, 1), (48, 48, 1)]):
        layers += [dress(nn.Conv2d(read, written, 3, stride, 1, bias=not norms))]
        layers += [nn.BatchNorm2d(written)] if norms else []
        layers += [nn.ReLU(inplace=True), *([nn.MaxPool2d(2)] if wide == 2 else [])]
    return nn.Sequential(*layers)


def _classifier(trunk: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def weight_norm_old() -> nn.Module:
    """torch.nn.utils.weight_norm: a forward pre-hook computes the weight."""
    return _classifier(_trunk(old_weight_norm, norms=False))


def weight_norm_new() -> nn.Module:
    """torch.nn.utils.parametrizations.weight_norm: the weight is a property of a new class."""
    return _classifier(_trunk(parametrizations.weight_norm, norms=False))


def spectral_norm_old() -> nn.Module:
    """torch.nn.utils.spectral_norm."""
    return _classifier(_trunk(old_spectral_norm))


def spectral_norm_new() -> nn.Module:
    """torch.nn.utils.parametrizations.spectral_norm."""
    return _classifier(_trunk(parametrizations.spectral_norm))


def pruned() -> nn.Module:
    """torch.nn.utils.prune: weight = weight_orig * mask before every call; whole channels in every second layer."""
    model = _classifier(_trunk())
    for index, conv in enumerate(module for module in model.modules() if isinstance(module, nn.Conv2d)):
        if index % 2:
            prune.ln_structured(conv, "weight", amount=0.3, n=2, dim=0)
        else:
            prune.l1_unstructured(conv, "weight", amount=0.5)
    return model


def checkpointed() -> nn.Module:
    """torch.utils.checkpoint around the blocks, in evaluation too."""
    block = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
    return _Checkpointed(block=block, head=nn.Linear(48, 10))


class _OnTrunk(nn.Module):
    def __init__(self, **heads: nn.Module) -> None:
        super().__init__()
        self.trunk = _trunk()
        for name, head in heads.items():
            self.add_module(name, head)


class _Checkpointed(_OnTrunk):
    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.trunk, x, use_reentrant=False)
        x = x + checkpoint(self.block, x, use_reentrant=False)
        return self.head(x.mean((2, 3)))


def dict_output() -> nn.Module:
    """A dict of lists and tensors, and a number that is no tensor."""
    return _DictOutput(edges=nn.Conv2d(48, 1, 1), depth=nn.Conv2d(48, 4, 3, padding=1))


class _DictOutput(_OnTrunk):
    def forward(self, x: Tensor) -> dict[str, object]:
        x = self.trunk(x)
        return {"maps": [self.edges(x).sigmoid(), self.depth(x)], "mean": x.mean((2, 3)), "stride": 4}


NETWORKS = {
    function.__name__: function
    for function in (
        *(dncnn, esrgan, gan_generator, siamese, siamese_distance, weight_norm_old, weight_norm_new),
        *(spectral_norm_old, spectral_norm_new, pruned, checkpointed, dict_output),
    )
}
