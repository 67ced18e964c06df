"""The report of a VAE: one HTML file with its pictures inside, and the pictures as PNG files beside it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from accel.cli import vae_pictures
from accel.reports.pages import picture_source, render
from accel.vae import VAE
from accel.vae.paths import has_torus
from accel.vae.pictures import BitPictures

REPORT_FILE = "report.html"
_SHOWN = 48  # test pictures in the report
_TEXTS = {
    "samples.png": ("Samples", "Means of pictures for latents drawn from the prior."),
    "torus.png": ("Around the torus", "Two angles from 0 to 2 pi, the first one downwards: opposite borders meet."),
    "ways.png": (
        "From one to another",
        "Every row goes from one point of the latent space to another, those of two test pictures where there are any; "
        "angles go the shorter way round.",
    ),
    "reconstructions.png": (
        "Reconstructions",
        "Rows in pairs: test pictures as the encoder reads them, and what one draw of their posteriors is decoded to.",
    ),
    "ranking.png": (
        "Ranked by the outlier score",
        "From the likeliest example to the unlikeliest, at equal distances in the ranking; below each its evidence in "
        "nats, in red where it is noise.",
    ),
    "evidence.png": (
        "Evidence",
        "What lies far below log alpha has no weight in the robust bound, and an outlier score near 1.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Judged:
    """Examples and what the VAE says of them. Attributes: examples, data first; evidence [N], in nats."""

    examples: BitPictures
    evidence: Tensor

    @property
    def noise(self) -> Tensor:
        """bool [N]."""
        return self.examples.is_noise(torch.arange(len(self.examples), device="cpu"))

    @property
    def data(self) -> int:
        """How many examples are none."""
        return len(self.examples.pictures)


def write_report(
    folder: pathlib.Path, vae: VAE, name: str, seed: int, row: Mapping[str, Any], judged: Judged | None
) -> list[str]:
    """Write report.html and the PNG files into a folder that is still private; returns the files' names.

    Args:
        row: what was measured, by name. judged: None where there are no data: then only what the prior draws is shown.
    """
    shown = []
    for file, make in _pictures(vae, seed, judged).items():
        picture = make()
        picture.save(folder / file, format="PNG")
        title, text = _TEXTS[file]
        source = picture_source(functools.partial(picture.save, format="PNG"))
        shown.append({"file": file, "title": title, "text": text, "source": source})
    page = render("vae.html", title=name, facts=_facts(vae, row), pictures=shown)
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    return [*(picture["file"] for picture in shown), REPORT_FILE]


def _pictures(vae: VAE, seed: int, judged: Judged | None) -> list[tuple[str, str, str, Callable[[], PIL.Image.Image]]]:
    """(file, title, text, how it is made) of every picture there may be."""

    def generator() -> torch.Generator:
        return torch.Generator(vae.log_alpha.device).manual_seed(seed)

    found = {"samples.png": lambda: vae_pictures.samples(vae, generator())}
    if has_torus(vae):
        found["torus.png"] = lambda: vae_pictures.around_the_torus(vae)
    shown = None if judged is None else judged.examples.take(torch.arange(min(_SHOWN, judged.data), device="cpu"))
    if not any(latent.discrete for latent in vae.latents):
        found["ways.png"] = lambda: vae_pictures.ways(vae, shown, generator())
    if judged is not None:
        found |= {
            "reconstructions.png": lambda: vae_pictures.reconstructions(vae, shown, generator()),
            "ranking.png": lambda: vae_pictures.ranking(judged.examples, judged.evidence),
            "evidence.png": lambda: vae_pictures.histogram(judged.evidence, judged.noise, float(vae.log_alpha)),
        }
    return found


def _facts(vae: VAE, row: Mapping[str, Any]) -> dict[str, Any]:
    kinds = ", ".join(f"{latent.kind} of {latent.sites}" for latent in vae.latents)
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    return {"latents": kinds, "parameters": f"{parameters:,}", **row}
