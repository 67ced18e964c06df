"""Pictures of what a VAE has learned: samples, reconstructions, ways through its latent space, its outliers."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib.figure
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor

from accel.mc.sampling import draw
from accel.vae import VAE
from accel.vae.paths import between, torus
from accel.vae.pictures import BitPictures

_GAP, _LINE = 3, 18  # pixels: between tiles, of a line of text
_SIDE = 44  # pixels that a tile's side has at least
_TEXT, _NOISE = (40, 44, 52), (190, 30, 45)
_COLUMNS, _ROWS = 16, 6
_AROUND = 20  # tiles along each angle of the torus


def samples(vae: VAE, generator: torch.Generator) -> PIL.Image.Image:
    """Means of x for latents drawn from the prior."""
    return sheet(_tiles(vae.sample(_ROWS * _COLUMNS, generator)).unflatten(0, (_ROWS, _COLUMNS)))


def reconstructions(vae: VAE, x: Tensor, generator: torch.Generator) -> PIL.Image.Image:
    """Rows in pairs: examples, and below them what comes back of them."""
    columns = min(_COLUMNS, len(x))
    shown = x[: min(_ROWS // 2, len(x) // columns) * columns]
    pairs = torch.stack([_tiles(shown), _tiles(vae.reconstruct(shown, generator))])
    return sheet(pairs.unflatten(1, (-1, columns)).transpose(0, 1).flatten(0, 1))


@torch.no_grad()
def ways(vae: VAE, x: Tensor | None, generator: torch.Generator) -> PIL.Image.Image:
    """A row a way: means of x between two points of the latent space, of examples if there are any, else of the prior.

    Raises:
        ConfigError: a discrete latent.
    """
    count = 2 * _ROWS
    if x is None:
        points = [draw(latent.prior().expand((count,)), generator) for latent in vae.latents]
    else:
        points = [draw(q, generator) for q in vae.posterior(x[:count])]
    half = len(points[0]) // 2
    on_the_way = between(vae, [z[:half] for z in points], [z[half : 2 * half] for z in points], _COLUMNS)
    means = vae.likelihood.mean(vae.decode(on_the_way)).transpose(0, 1)
    return sheet(_tiles(means.flatten(0, 1)).unflatten(0, (half, _COLUMNS)))


def around_the_torus(vae: VAE) -> PIL.Image.Image:
    """Means of x over two angles from 0 to 2 pi, the first downwards: opposite borders meet.

    Raises:
        ConfigError: the latents are no such angles.
    """
    return sheet(_tiles(torus(vae, _AROUND).flatten(0, 1)).unflatten(0, (_AROUND, _AROUND)), gap=1)


def ranking(examples: BitPictures, evidence: Tensor) -> PIL.Image.Image:
    """Examples at equal distances in the ranking by evidence, the likeliest first; captions in nats, noise in red."""
    order = evidence.argsort(descending=True)
    columns = min(_COLUMNS, len(order))
    count = min(_ROWS, len(order) // columns) * columns
    chosen = order[torch.linspace(0, len(order) - 1, count, device="cpu").round().long()].cpu()
    captions = [[f"{value:.0f}" for value in row] for row in evidence[chosen].view(-1, columns).tolist()]
    noise = examples.is_noise(chosen).view(-1, columns)
    return sheet(_tiles(examples.take(chosen)).unflatten(0, (-1, columns)), captions, noise)


def histogram(evidence: Tensor, noise: Tensor, log_alpha: float) -> PIL.Image.Image:
    """How the evidence of data and of noise is spread, and where log alpha lies."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.2), dpi=90, layout="compressed")
    axis = figure.subplots()
    edges = torch.linspace(float(evidence.min()), float(evidence.max()) + 1e-3, 61).tolist()
    for name, values, colour in (("data", evidence[~noise], "#0b6bcb"), ("noise", evidence[noise], "#be1e2d")):
        if len(values):
            axis.hist(values.tolist(), bins=edges, alpha=0.65, color=colour, label=f"{name}, {len(values)} examples")
    if log_alpha > -float("inf"):
        axis.axvline(log_alpha, color="#282c34", linestyle="--", label=f"log alpha {log_alpha:g}")
    axis.set_xlabel("log p(x) by importance sampling, nats")
    axis.set_ylabel("examples")
    axis.legend(frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return PIL.Image.open(data)


def sheet(
    tiles: Tensor, captions: Sequence[Sequence[str]] | None = None, marked: Tensor | None = None, gap: int = _GAP
) -> PIL.Image.Image:
    """Tiles [rows, columns, H, W] in [0, 1] side by side on white, enlarged; captions of marked ones are red."""
    rows, columns, height, width = tiles.shape
    zoom = max(1, round(_SIDE / max(height, width)))
    down, across = height * zoom + gap + (_LINE if captions else 0), width * zoom + gap
    found = PIL.Image.new("RGB", (columns * across + gap, rows * down + gap), "white")
    paint, font = PIL.ImageDraw.Draw(found), PIL.ImageFont.load_default(size=12)
    large = tiles.clamp(0, 1).mul(255).round().byte().repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).cpu()
    for row in range(rows):
        for column in range(columns):
            left, top = gap + column * across, gap + row * down
            found.paste(PIL.Image.fromarray(large[row, column].contiguous().numpy()), (left, top))
            if captions:
                colour = _NOISE if marked is not None and marked[row, column] else _TEXT
                place = (left + width * zoom // 2, top + height * zoom + 2)
                paint.text(place, captions[row][column], fill=colour, font=font, anchor="ma")
    return found


def _tiles(x: Tensor) -> Tensor:
    """[n, C, H, W] -> [n, H, W]: the channels' mean."""
    return x.mean(1)
