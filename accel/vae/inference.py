"""Cells drawn from a trained VAEAC, or their means: of each row by itself, reproducible to the bit.

A row's numbers come in double precision and are rounded to single: the last bits of a matrix product hang on the shape
of the batch, those that are left do not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch

from accel.vae.noise import row_keys, uniforms
from accel.vae.vaeac import VAEAC

_AT_ONCE = 4096  # rows times samples in one pass of the decoder: some 100 MB, and matrices large enough for a core


class Sampler:
    """Samples of the missing cells of rows.

    Args:
        model: trained; its likelihood is a `TableLikelihood`.
        seed: of all draws.
    """

    def __init__(self, model: VAEAC, seed: int) -> None:
        self.model = copy.deepcopy(model).double().eval()
        self.likelihood, self.seed = self.model.likelihood, seed
        self.device = next(self.model.parameters()).device

    @torch.inference_mode()
    def samples(self, cells: np.ndarray, first: int, count: int) -> np.ndarray:
        """Draws first .. first + count - 1 of all cells: [N, D], NaN where missing -> float64 [N, count, D]."""
        found = np.empty((len(cells), count, cells.shape[1]))
        for rows, draws, outputs, noise in self._outputs(cells, first, count):
            found[rows, draws] = self.likelihood.sample(outputs, noise).float().cpu().numpy()
        return found

    @torch.inference_mode()
    def means(self, cells: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(means of the numeric columns [N, Dn], class probabilities [N, Dd, K]) over `count` latents."""
        likelihood = self.likelihood
        means = np.zeros((len(cells), len(likelihood.numeric)))
        chances = np.zeros((len(cells), len(likelihood.discrete), likelihood.most))
        for rows, _, outputs, _ in self._outputs(cells, 0, count):
            mean, chance = likelihood.mean(outputs)
            means[rows] += mean.sum(1).cpu().numpy()
            chances[rows] += chance.sum(1).cpu().numpy()
        return np.float64(np.float32(means / count)), np.float64(np.float32(chances / count))

    def _outputs(self, cells: np.ndarray, first: int, count: int) -> Iterator[tuple]:
        """(rows, draws, decoder outputs [R, S, P], uniforms for the cells [R, S, D]), some rows and draws at a time."""
        keys = row_keys(cells, self.seed)
        for start in range(0, len(cells), max(1, _AT_ONCE // count)):
            rows = slice(start, start + max(1, _AT_ONCE // count))
            part = torch.from_numpy(cells[rows]).to(self.device)
            (mean, scale), layers = self.model.seen(part, part.isnan())
            for begin in range(0, count, _AT_ONCE):
                draws = slice(begin, min(begin + _AT_ONCE, count))
                numbers = first + np.arange(draws.start, draws.stop)
                noise = uniforms(keys[rows], numbers, mean.shape[1] + cells.shape[1])
                latent, cell_noise = torch.from_numpy(noise).to(self.device).split([mean.shape[1], cells.shape[1]], 2)
                z = mean[:, None] + scale[:, None] * torch.special.ndtri(latent)
                yield rows, draws, self.model.decoder(z, layers), cell_noise
