"""The bench of inpainting: on a model of a few steps, against rivals whose answers are known."""

import pytest
import torch

from accel.bench import inpainting, runner
from accel.vae import picture_vaeac

cv2 = pytest.importorskip("cv2", reason="the extra bench brings OpenCV")

ONE_COLOUR = torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(3, 24, 24)


def test_rows_compare_with_fills_that_are_exact_on_one_colour(monkeypatch):
    torch.manual_seed(0)
    vaeac = picture_vaeac(3, (8, 8), (1, 1), latent=2).eval()
    monkeypatch.setattr("accel.zoo.inpainters.load_inpainter", lambda spec: (vaeac, {}))
    monkeypatch.setattr(inpainting, "_pictures", lambda case, seed: ONE_COLOUR.expand(4, 3, 24, 24).clone())
    case = {"model": "zoo:any", "masks": ["centre", "half"], "samples": 3, "count": 4, "shapes": 80}
    first, second = inpainting.rows(case, runner.Settings(quick=True))
    assert (first["masks"], second["masks"]) == ("centre", "half")
    for row in (first, second):
        assert row["correct"] and row["error"] < 1e-4 and row["speedup"] > 0
        assert row["mean_fill"] > 80 and row["telea"] > 40 and row["navier_stokes"] > 40 and row["fill"] > 80
        assert row["lead"] == pytest.approx(row["psnr"] - row["mean_fill"], abs=0.01) and row["lead"] < 0
        assert row["diversity"] > 0


def test_pictures_are_drawn_by_the_seed():
    first, again, other = (inpainting._pictures({"shapes": 80, "count": 2}, seed) for seed in (0, 0, 1))
    assert first.shape == (2, 3, 80, 80) and torch.equal(first, again) and not torch.equal(first, other)
