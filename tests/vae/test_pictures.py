"""Pictures as bits: dynamic, static, grey; and noise of their mean intensity."""

import pytest
import torch

from accel.errors import ConfigError, DataError
from accel.tests.vae.models import seeded
from accel.vae.pictures import BitPictures


def pictures(count=40):
    """Left halves black, right halves of 204/255, all of 4x6."""
    found = torch.zeros(count, 1, 4, 6, dtype=torch.uint8)
    found[..., 3:] = 204
    return found


def test_dynamic_bits_are_drawn_anew_with_the_pictures_as_probabilities():
    data = BitPictures(pictures())
    rows = torch.arange(40)
    first, second = data.take(rows, seeded(0)), data.take(rows, seeded(1))
    assert first.dtype is torch.float32 and set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second) and torch.equal(first, data.take(rows, seeded(0)))
    assert first[..., :3].sum() == 0 and abs(first[..., 3:].mean() - 0.8) < 4 * (0.16 / 480) ** 0.5


def test_static_bits_are_the_same_whenever_and_in_whatever_order():
    data = BitPictures(pictures(), binarise="static", noise=0.5, seed=3)
    rows = torch.randperm(60, generator=seeded())
    found = data.take(rows)
    assert torch.equal(found, data.take(torch.arange(60))[rows])
    assert torch.equal(found, BitPictures(pictures(), binarise="static", noise=0.5, seed=3).take(rows))
    assert not torch.equal(found, BitPictures(pictures(), binarise="static", noise=0.5, seed=4).take(rows))


def test_grey_pictures_are_their_intensities():
    assert torch.equal(
        BitPictures(pictures(), binarise="none").take(torch.tensor([2]))[0, 0, 0, 2:4], torch.tensor([0, 0.8])
    )


@pytest.mark.parametrize("binarise", ["dynamic", "static"])
def test_noise_has_the_mean_intensity_everywhere_and_no_pattern(binarise):
    data = BitPictures(pictures(1000), binarise=binarise, noise=2.0)
    assert len(data) == 3000 and abs(data.intensity - 0.4) < 1e-9
    rows = torch.arange(3000)
    assert data.is_noise(rows).tolist() == [False] * 1000 + [True] * 2000
    noise = data.take(rows[1000:], seeded())
    error = (0.24 / 2000) ** 0.5
    assert ((noise.mean(0) - 0.4).abs() < 4.5 * error).all()
    bits = noise.flatten(1)
    correlation = torch.corrcoef(bits.T) - torch.eye(24)
    assert correlation.abs().max() < 5 / 2000**0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"binarise": "often"}, ConfigError, "one of dynamic, static, none, got 'often'"),
        ({"noise": -0.5}, ConfigError, "noise=-0.5"),
        ({"noise": float("nan")}, ConfigError, "noise=nan"),
        ({"noise": 1.0, "binarise": "none"}, ConfigError, "needs binarise"),
        ({"pictures": torch.zeros(0, 1, 2, 2, dtype=torch.uint8)}, DataError, "no picture"),
    ],
)
def test_what_cannot_be_is_one_line(options, error, message):
    with pytest.raises(error, match=message):
        BitPictures(**{"pictures": pictures(), **options})
