"""Pictures with lines of text that the package draws itself, for a detector of text."""

from __future__ import annotations

import pathlib
import string

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
import torch.nn.functional as F
from torch import Tensor

POINTS = (12, 36)  # sizes of type
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono")
_LETTERS = string.ascii_lowercase * 3 + string.ascii_uppercase + string.digits


def draw_pages(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """uint8 RGB [count, 3, H, W]: lines of random words in matplotlib's fonts, light on dark clouds or dark on light.

    Every line lies whole in its picture; a word is of two to nine letters, a line of one to six words.
    """
    return torch.stack([_page(size, generator) for _ in range(count)])


def _page(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    coarse = torch.rand(1, 3, 4, 5, generator=generator)
    clouds = F.interpolate(coarse, size, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    dark = _number(0, 1, generator) == 1
    ground = (0.35 * clouds + (0.0 if dark else 0.65)).mul(255).byte().permute(1, 2, 0)
    picture = PIL.Image.fromarray(ground.contiguous().numpy())
    pen = PIL.ImageDraw.Draw(picture)
    top = _number(4, 40, generator)
    while top < size[0] - 1.5 * POINTS[0]:
        points = _number(*POINTS, generator)
        _line(pen, top, points, dark, generator)
        top += points * _number(15, 40, generator) // 10
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _line(pen: PIL.ImageDraw.ImageDraw, top: int, points: int, dark: bool, generator: torch.Generator) -> None:
    """One line of text from `top` on, if it has room."""
    width, height = pen.im.size
    font = _font(_FONTS[_number(0, len(_FONTS) - 1, generator)], points)
    left = _number(4, width // 2, generator)
    colour = tuple(_number(*((190, 255) if dark else (0, 90)), generator) for _ in range(3))
    text = ""
    for _ in range(_number(1, 6, generator)):
        longer = f"{text} {_word(generator)}".strip()
        if left + font.getlength(longer) > width - 4:
            break
        text = longer
    if top + 1.4 * points <= height:
        pen.text((left, top), text, fill=colour, font=font)


def _word(generator: torch.Generator) -> str:
    letters = torch.randint(len(_LETTERS), (_number(2, 9, generator),), generator=generator)
    return "".join(_LETTERS[each] for each in letters.tolist())


def _font(name: str, points: int) -> PIL.ImageFont.FreeTypeFont:
    import matplotlib

    return PIL.ImageFont.truetype(str(pathlib.Path(matplotlib.get_data_path(), "fonts/ttf", f"{name}.ttf")), points)


def _number(low: int, high: int, generator: torch.Generator) -> int:
    """Drawn of low to high, both among them."""
    return int(torch.randint(low, high + 1, (), generator=generator))
