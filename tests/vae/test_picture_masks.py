"""Masks of pictures: what each hides, at any size, and that all channels of a pixel go together."""

import pytest
import torch

from accel.errors import ConfigError
from accel.tests.vae.models import seeded
from accel.vae.mask_generators import mask_generator
from accel.vae.picture_masks import (
    CENTRE,
    FACE_PARTS,
    PICTURE_MASKS,
    FixedRectangle,
    Half,
    Pixels,
    RandomPattern,
    Rectangle,
)

SIZES = pytest.mark.parametrize("size", [(28, 28), (128, 128), (33, 50)])


def hide(masks, size, count=64, seed=0):
    hidden = masks(torch.zeros(count, 3, *size), seeded(seed))
    assert hidden.dtype == torch.bool and hidden.shape == (count, 3, *size)
    assert (hidden == hidden[:, :1]).all()
    return hidden[:, 0]


@SIZES
@pytest.mark.parametrize("name", PICTURE_MASKS)
def test_every_kind_hides_whole_pixels_and_is_drawn_from_the_seed(name, size):
    masks = PICTURE_MASKS[name]
    first = hide(masks, size)
    assert first.any() and torch.equal(first, hide(masks, size))
    assert torch.equal(first, hide(mask_generator(masks.to_dict()), size))


@SIZES
def test_rectangles_cover_what_they_should(size):
    for one in hide(Rectangle(0.3, 0.9), size):
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == rows * columns
        assert 0.3 * one.numel() <= one.sum() <= 0.9 * one.numel()


@SIZES
def test_patterns_cover_what_they_should_in_blotches(size):
    hidden = hide(RandomPattern(), size)
    share = hidden.flatten(1).float().mean(1)
    pixel = 1 / (size[0] * size[1])
    assert ((share >= 0.2 - pixel) & (share <= 0.3 + pixel)).all() and share.std() > 0.01
    alike = (hidden[:, :, 1:] == hidden[:, :, :-1]).float().mean()
    assert alike > 0.85  # independent pixels of a quarter: 0.62


def test_pixels_are_independent():
    share = hide(Pixels(0.9), (128, 128)).float().mean()
    assert abs(share - 0.9) < 4 * (0.09 / (64 * 128 * 128)) ** 0.5


def test_halves_are_all_four():
    found = {tuple(one.float().mean((0,)).tolist() + one.float().mean(1).tolist()) for one in hide(Half(), (4, 6))}
    assert len(found) == 4


def test_the_face_parts_are_the_published_pixels():
    """Li et al. 2017 as the authors of VAEAC have them: half-open rows and columns on 128 x 128."""
    found = {
        tuple(one.nonzero().aminmax(dim=0).min.tolist() + (one.nonzero().amax(0) + 1).tolist())
        for one in hide(FACE_PARTS, (128, 128), 200)
    }
    published = {(52, 33, 116, 71), (52, 57, 116, 95), (52, 29, 74, 99), (52, 29, 74, 67), (52, 61, 74, 99)}
    assert found == published | {(86, 40, 124, 88)}
    assert torch.equal(hide(CENTRE, (128, 128))[0].nonzero().amin(0), torch.tensor([32, 32]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pixels(1.5), "share in"),
        (lambda: FixedRectangle(0.5, 0, 0.5, 1), "top < bottom"),
        (lambda: Rectangle(0.9, 0.3), "least < most"),
        (lambda: RandomPattern(cells=0), "cells above 0"),
        (lambda: Pixels(0.5)(torch.zeros(3, 4)), r"hides pixels of \[N, C, H, W\]"),
        (lambda: Rectangle(0.999, 0.9995)(torch.zeros(1, 1, 7, 7)), "no rectangle of 7x7"),
    ],
)
def test_what_cannot_be_is_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
