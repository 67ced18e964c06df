"""Convolutional networks of a VAEAC of pictures; the decoder also computes only where pixels are wanted.

After Ivanov et al. 2019 (arXiv 1806.02382, appendix): residual blocks between poolings, and the decoder reads every
level of the prior network. Latents are a map, one vector for each coarsest cell, so that pictures may have any size.
Unlike theirs, the prior network reads hidden pixels filled smoothly from those around, and means are differences from
that: colours need not be learned, and a hole may be larger than those of training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.kernels.positions import ActiveSet
from accel.ops import active_positions, masked_conv2d, masked_conv2d_
from accel.vae.pyramid_fill import pyramid_fill
from accel.vae.vaeac import VAEAC

_PAD = (1, 1, 1, 1)
_LEAST_SCALE = 1e-2  # of a pixel, as the authors have it


class Residual(nn.Module):
    """h + conv(act(conv(h))), both 3x3. Nothing bends the sum: an activation there shut the coarsest level for good."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Conv2d(width, width, 3, padding=1)
        self.outside = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outside(F.leaky_relu(self.inside(h)))

    def update(self, h: Tensor, inner: ActiveSet, wanted: ActiveSet) -> None:
        """The same in place, at the positions `wanted` of h; `inner` are those a 3x3 convolution at them reads."""
        t = masked_conv2d(h, self.inside.weight, self.inside.bias, inner, padding=_PAD, activation="leaky_relu")
        masked_conv2d_(
            h, t, self.outside.weight, self.outside.bias, wanted, padding=_PAD, accumulate=True, source=inner
        )


class Level(nn.Sequential):
    """Residual blocks at one resolution."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__(*(Residual(width) for _ in range(blocks)))


class PictureEncoder(nn.Module):
    """Raw latent parameters of every coarsest cell, flat [N, 2 Z h w]; and the levels, finest first."""

    def __init__(self, inputs: int, widths: Sequence[int], blocks: Sequence[int], latent: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(Level(width, count) for width, count in zip(widths, blocks))
        self.widen = nn.ModuleList(nn.Conv2d(width, next_, 1) for width, next_ in itertools.pairwise(widths))
        self.last = nn.Conv2d(widths[-1], 2 * latent, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        h, layers = F.leaky_relu(self.first(x)), []
        for index, level in enumerate(self.levels):
            h = level(self.widen[index - 1](F.avg_pool2d(h, 2)) if index else h)
            layers.append(h)
        return self.last(h).flatten(1), layers


class PicturePrior(PictureEncoder):
    """Reads seen pixels, mask, and hidden pixels filled smoothly; hands on its levels, finest first, and the fill."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        values, hidden = x.chunk(2, 1)
        fill = pyramid_fill(values, hidden > 0)
        raw, layers = self.encode(torch.cat([x, fill], 1))
        return raw, [*layers, fill]


class PictureProposal(PictureEncoder):
    """Keeps its levels to itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)[0]


Blocks = list[tuple[ActiveSet, ActiveSet]]  # of each block, where its first convolution is needed, and its second


class PictureDecoder(nn.Module):
    """From latents, the prior network's levels and its fill to the likelihood's outputs [N, K, H, W], coarsest level
    first. Means, the first of the outputs, are differences from the fill."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], latent: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(latent, widths[-1], 1)
        self.reads = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.levels = nn.ModuleList(Level(width, count) for width, count in zip(widths, blocks))
        self.narrow = nn.ModuleList(nn.Conv2d(next_, width, 1) for width, next_ in itertools.pairwise(widths))
        self.last = nn.Conv2d(widths[0], outputs, 3, padding=1)

    def forward(self, z: Tensor, layers: Sequence[Tensor]) -> Tensor:
        return self.decode(z, self.read(layers))

    def read(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """What the decoder takes of the prior network, the fill last: the same for all samples of z."""
        *levels, fill = layers
        return [*(read(layer) for read, layer in zip(self.reads, levels, strict=True)), fill]

    def decode(self, z: Tensor, read: Sequence[Tensor]) -> Tensor:
        """z [N, Z h w] -> outputs [N, K, H, W]."""
        *levels, fill = read
        h = self._enter(z, levels)
        for index in reversed(range(len(self.levels))):
            h = self.levels[index](h + levels[index])
            h = self._finer(h, index) if index else h
        return self.last(h) + self._offsets(fill)

    def needed(self, wanted: Tensor) -> list[Blocks]:
        """What outputs wanted at bool [N, H, W] depend on, of every level, finest first."""
        found, mask = [], _grown(wanted)  # the last convolution reads so far
        for index, level in enumerate(self.levels):
            mask = F.max_pool2d(mask.float(), 2).bool() if index else mask
            blocks = []
            for _ in level:
                inner = _grown(mask)
                blocks.append((active_positions(inner), active_positions(mask)))
                mask = _grown(inner)
            found.append(blocks[::-1])
        return found

    @torch.no_grad()
    def decode_at(self, z: Tensor, read: Sequence[Tensor], wanted: ActiveSet, needed: Sequence[Blocks]) -> Tensor:
        """The rows [P, K] of `decode` at the positions wanted, computed where `needed` says alone."""
        *levels, fill = read
        h = self._enter(z, levels)
        for index in reversed(range(len(self.levels))):
            h = (h + levels[index]).contiguous(memory_format=torch.channels_last)
            for block, (inner, at) in zip(self.levels[index], needed[index]):
                block.update(h, inner, at)
            h = self._finer(h, index) if index else h
        rows = masked_conv2d(h, self.last.weight, self.last.bias, wanted, padding=_PAD)[: wanted.total]
        at = wanted.positions[: len(rows)].long()
        return rows + self._offsets(fill).permute(0, 2, 3, 1).reshape(-1, rows.shape[1])[at]

    def _offsets(self, fill: Tensor) -> Tensor:
        """What is added to the outputs: to means the fill, to the rest nothing."""
        return F.pad(fill, (0, 0, 0, 0, 0, self.last.out_channels - fill.shape[1]))

    def _enter(self, z: Tensor, levels: Sequence[Tensor]) -> Tensor:
        return self.first(z.unflatten(1, (-1, *levels[-1].shape[2:])))

    def _finer(self, h: Tensor, index: int) -> Tensor:
        return F.interpolate(self.narrow[index - 1](h), scale_factor=2, mode="nearest")


def _grown(mask: Tensor) -> Tensor:
    """What a 3x3 convolution at the positions of a mask [N, H, W] reads."""
    return F.max_pool2d(mask.float(), 3, 1, 1).bool()


class PixelNormal(nn.Module):
    """Every value of a pixel is normal, its mean and deviation given by the decoder: outputs [N, 2 C, H, W]."""

    def features(self, cells: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden, 0.0, cells)

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        mean, raw = outputs.chunk(2, 1)
        return torch.distributions.Normal(mean, F.softplus(raw) + _LEAST_SCALE, validate_args=False).log_prob(cells)


def picture_vaeac(channels: int, widths: Sequence[int], blocks: Sequence[int], latent: int) -> VAEAC:
    """A VAEAC of pictures [N, channels, H, W] with values about -1 to 1, H and W multiples of 2^(levels - 1).

    Args:
        widths: channels of every level, finest first. blocks: of every level. latent: numbers in a coarsest cell.
    """
    prior = PicturePrior(3 * channels, widths, blocks, latent)
    proposal = PictureProposal(3 * channels, widths, blocks, latent)
    return VAEAC(prior, proposal, PictureDecoder(widths, blocks, latent, 2 * channels), PixelNormal())
