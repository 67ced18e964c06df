"""Inpainting: samples of what a mask hides of a picture, computed only where the mask can influence it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.errors import DataError
from accel.ops import active_positions
from accel.vae.vaeac import VAEAC


def inpaint(
    vaeac: VAEAC,
    pictures: Tensor,
    hidden: Tensor,
    num_samples: int = 1,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Completed pictures [N, num_samples, C, H, W]: one is the decoder's mean for one draw of the latents.

    Args:
        vaeac: made by `accel.vae.picture_networks.picture_vaeac`.
        pictures: floating [N, C, H, W] in 0..1, of any size; what stands in hidden pixels changes nothing.
        hidden: bool [N, H, W].

    Raises:
        DataError: a mask of another size or type than the pictures, or NaN or values outside 0..1 where one sees.
    """
    return Inpainting(vaeac, pictures, hidden).draw(num_samples, generator)


class Inpainting:
    """Pictures whose seen part has been looked at, once for all samples. Arguments and errors as in `inpaint`."""

    @torch.no_grad()
    def __init__(self, vaeac: VAEAC, pictures: Tensor, hidden: Tensor) -> None:
        _check(pictures, hidden)
        self.decoder, self.pictures, self.hidden = vaeac.decoder, pictures, hidden
        cells, unknown = _padded(pictures, hidden, 2 ** (len(self.decoder.levels) - 1))
        (self.mean, self.scale), layers = vaeac.seen(cells, unknown)
        self.read = self.decoder.read(layers)
        wanted = F.pad(hidden, (0, cells.shape[3] - hidden.shape[2], 0, cells.shape[2] - hidden.shape[1]))
        self.shape, self.wanted, self.needed = wanted.shape, active_positions(wanted), self.decoder.needed(wanted)

    def draw(self, num_samples: int, generator: torch.Generator | None = None, sparse: bool = True) -> Tensor:
        """As `inpaint`; `sparse`: see `decode`."""
        if num_samples < 1:
            raise DataError(f"inpaint draws at least one sample, got num_samples={num_samples}")
        shape, dtype, device = self.mean.shape, self.mean.dtype, self.mean.device
        found = []
        for _ in range(num_samples):
            noise = torch.randn(shape, dtype=dtype, device=device, generator=generator)
            found.append(torch.where(self.hidden[:, None], self.decode(noise, sparse), self.pictures))
        return torch.stack(found, 1)

    @torch.no_grad()
    def decode(self, noise: Tensor | float = 0.0, sparse: bool = True) -> Tensor:
        """Means [N, C, H, W] in 0..1 for normal noise of the latents' shape.

        Args:
            sparse: only what hidden pixels depend on is computed, and the others are 0.5; False: everything.
        """
        z = self.mean + self.scale * noise
        means = self._at_hidden(z) if sparse else self.decoder.decode(z, self.read).chunk(2, 1)[0]
        return (means[:, :, : self.hidden.shape[1], : self.hidden.shape[2]] / 2 + 0.5).clamp(0, 1)

    def _at_hidden(self, z: Tensor) -> Tensor:
        rows = self.decoder.decode_at(z, self.read, self.wanted, self.needed).chunk(2, 1)[0]
        found = rows.new_zeros(self.shape.numel(), rows.shape[1])
        found[self.wanted.positions[: len(rows)].long()] = rows
        return found.unflatten(0, self.shape).permute(0, 3, 1, 2)


def _padded(pictures: Tensor, hidden: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """(values -1..1, hidden of the shape of the values), with hidden pixels added below and to the right."""
    height, width = pictures.shape[2:]
    pad = (0, -width % multiple, 0, -height % multiple)
    cells = F.pad(torch.where(hidden[:, None], 0.0, pictures * 2 - 1), pad)
    return cells, F.pad(hidden, pad, value=True)[:, None].expand_as(cells)


def _check(pictures: Tensor, hidden: Tensor) -> None:
    if pictures.dim() != 4 or not pictures.is_floating_point():
        raise DataError(f"pictures must be floating [N, C, H, W] in 0..1, got {pictures.dtype} {tuple(pictures.shape)}")
    wanted = (len(pictures), *pictures.shape[2:])
    if hidden.dtype != torch.bool or tuple(hidden.shape) != wanted:
        raise DataError(
            f"the mask must be bool {wanted}, of the pictures' size: got {hidden.dtype} {tuple(hidden.shape)}"
        )
    seen = torch.where(hidden[:, None], 0.5, pictures)
    if not ((seen >= 0) & (seen <= 1)).all():
        raise DataError("pictures must lie in 0..1 where they are seen, without NaN: divide bytes by 255")


def psnr(found: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, [N], of pictures [N, C, H, W] in 0..1 over the pixels `where` [N, H, W].

    A picture without such a pixel, or without error, has infinity.
    """
    weight = where[:, None].expand_as(found).to(found)
    squared = (weight * (found - truth) ** 2).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)
    return -10 * squared.log10()
