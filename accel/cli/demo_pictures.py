"""The demo's pictures: the objects each network outlines, and the positions it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor, nn

from accel.zoo.shapes import CLASSES, Shapes

_GAP, _LINE, _MARGIN = 6, 22, 92  # pixels: between tiles, of a line of text, left of the rows
_TEXT, _WRONG = (40, 44, 52), (190, 30, 45)
_ZOOM = 5


def object_masks(shapes: Shapes, outputs: Mapping[str, tuple[Tensor, Tensor]]) -> PIL.Image.Image:
    """One column per class, one row per network: what it takes for the object, and what it calls it.

    Args:
        outputs: by network, (logits [N, classes], mask logits [N, 1, H, W]).
    """
    chosen = [int((shapes.labels == index).nonzero()[0]) for index in range(len(CLASSES)) if index in shapes.labels]
    images = shapes.images[chosen]
    rows = [("picture", images, [CLASSES[label] for label in shapes.labels[chosen]], None)]
    for name, (logits, masks) in outputs.items():
        found = logits[chosen].argmax(1)
        names = [CLASSES[label] for label in found]
        rows.append((name, cut_out(images, masks[chosen] > 0), names, found == shapes.labels[chosen]))
    return _sheet(rows)


def cut_out(images: Tensor, masks: Tensor) -> Tensor:
    """The pictures inside the masks, pale grey outside: [N, 3, H, W] and bool [N, 1, H, W]."""
    pale = 0.8 + 0.15 * images.mean(1, keepdim=True).expand_as(images)
    return torch.where(masks, images, pale)


def kept_positions(shapes: Shapes, converted: Mapping[str, nn.Module]) -> PIL.Image.Image:
    """The first picture as the maps of the first stage see it, one panel per network: skipped positions are dark."""
    image = torch.nn.functional.avg_pool2d(shapes.images[:1], 2)[0]
    height, width = image.shape[1:]
    panels, captions = [], []
    for name, net in converted.items():
        kept = net.stage1[0].conv1.position_set(height, width)
        seen = torch.zeros(height * width)
        seen[kept.positions.long()] = 1
        panels.append(image * seen.view(height, width).mul(0.9).add(0.1))
        captions.append(f"{name}: {len(kept)} of {height * width} positions computed")
    enlarged = torch.stack(panels).repeat_interleave(_ZOOM, 2).repeat_interleave(_ZOOM, 3)
    return _sheet([("", enlarged, captions, None)], margin=0)


def _sheet(rows: Sequence[tuple[str, Tensor, list[str], Tensor | None]], margin: int = _MARGIN) -> PIL.Image.Image:
    """Rows of (name, tiles [n, 3, h, w], captions, which captions are right or None for all) on white."""
    count, _, height, width = rows[0][1].shape
    step = height + _LINE + _GAP
    sheet = PIL.Image.new("RGB", (margin + count * (width + _GAP) - _GAP, len(rows) * step - _GAP), "white")
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=14)
    for line, (name, tiles, captions, right) in enumerate(rows):
        top = line * step
        draw.text((0, top + height // 2 - 8), name, fill=_TEXT, font=font)
        for place, (tile, caption) in enumerate(zip(tiles, captions)):
            left = margin + place * (width + _GAP)
            pixels = tile.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
            sheet.paste(PIL.Image.fromarray(pixels.contiguous().numpy()), (left, top))
            colour = _TEXT if right is None or right[place] else _WRONG
            draw.text((left + width // 2, top + height + 3), caption, fill=colour, font=font, anchor="ma")
    return sheet
