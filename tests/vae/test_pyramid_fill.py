"""Smooth fills: seen pixels stay, colours and far holes come back exactly where they are known to."""

import math

import pytest
import torch

from accel.tests.vae.models import seeded
from accel.vae.picture_masks import PICTURE_MASKS, Pixels
from accel.vae.pyramid_fill import pyramid_fill


def masked(x, name):
    masks = {"everything": Pixels(1.0), "nothing": Pixels(0.0)}.get(name) or PICTURE_MASKS[name]
    return masks(x, seeded(2))


@pytest.mark.parametrize("size", [(24, 32), (23, 30), (1, 7), (64, 16)])
@pytest.mark.parametrize("name", ["random", "pattern", "half", "nothing", "everything"])
def test_seen_pixels_stay_and_the_rest_lies_between_them(name, size):
    x = torch.rand(3, 2, *size, generator=seeded()) * 2 - 1
    hidden = masked(x, name)
    found = pyramid_fill(torch.where(hidden, math.nan, x), hidden)
    assert torch.equal(found[~hidden], x[~hidden]) and found.isfinite().all()
    for one, seen in zip(found.flatten(0, 1), (~hidden).flatten(0, 1)):
        low, high = (one[seen].min(), one[seen].max()) if seen.any() else (0.0, 0.0)
        assert (one >= low - 1e-6).all() and (one <= high + 1e-6).all()


def test_a_single_seen_pixel_is_everywhere():
    x, hidden = torch.zeros(1, 1, 9, 13), torch.ones(1, 1, 9, 13, dtype=torch.bool)
    x[0, 0, 4, 11], hidden[0, 0, 4, 11] = 0.7, False
    torch.testing.assert_close(pyramid_fill(x, hidden), torch.full_like(x, 0.7))


def test_channels_and_pictures_do_not_mix():
    x = torch.tensor([0.1, 0.5, 0.9, 0.2])[:, None, None].expand(4, 16, 16).reshape(2, 2, 16, 16)
    hidden = masked(x, "half")
    torch.testing.assert_close(pyramid_fill(x, hidden), x)


def test_what_is_near_counts_more():
    """A ramp comes back in order, and better than by the mean of what is seen."""
    x = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    hidden = masked(x, "random")
    found = pyramid_fill(x, hidden)
    assert (found - x).abs().mean() < 0.25 * (x[~hidden].mean() - x).abs().mean()
