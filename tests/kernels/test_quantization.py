"""What bytes stand for: numbers that make no scale are refused; what is added to bytes may stand for itself."""

import pytest
import torch

from accel.kernels.quantization import NUMBERS, Affine, Requantization


def test_a_residual_of_numbers_stands_for_itself():
    made = Requantization.of(Affine(0.3, 0), torch.ones(2), None, Affine(0.5, 0), residual=NUMBERS)
    assert (made.levels.residual_zero, made.levels.residual_multiplier) == (0, 2.0)


@pytest.mark.parametrize("zero", [0, 100, 255])
def test_the_ends_are_what_the_extreme_bytes_stand_for(zero):
    affine = Affine(0.25, zero)
    assert affine.ends == tuple(affine.dequantize(torch.tensor([0, 255], dtype=torch.uint8)).tolist())


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="Affine: scale must be positive and finite, got") as refused:
        Affine(scale, 0)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="weight_scale must be positive and finite, got"):
        Requantization.of(Affine(1.0, 0), torch.tensor([1.0, scale]))


X = Affine(1.0, 0)
REFUSED = {
    "zero_point must be an int of 0 to 255, got 256": lambda: Affine(1.0, 256),
    "zero_point must be an int of 0 to 255, got 1.0": lambda: Affine(1.0, 1.0),
    "bounds must be bytes, the lower one first, got 9 and 3": lambda: Requantization.of(
        X, torch.ones(1), None, X, bounds=(9, 3)
    ),
    "bounds must be bytes, the lower one first, got -1 and 3": lambda: Requantization.of(
        X, torch.ones(1), None, X, bounds=(-1, 3)
    ),
    "bounds and residual are of bytes, but the output is fp32: give out=": lambda: Requantization.of(
        X, torch.ones(1), bounds=(0, 9)
    ),
    "a bias over the output's scale is NaN or infinite": lambda: Requantization.of(
        X, torch.ones(1), torch.tensor([float("nan")])
    ),
    "multipliers must be positive and at most 1.6e.29, got .* the scales are too far apart": lambda: Requantization.of(
        Affine(1e30, 0), torch.ones(1)
    ),
    "multipliers must be positive": lambda: Requantization.of(Affine(1e-30, 0), torch.tensor([1e-30])),
    "residual_multiplier .* scales too far apart": lambda: Requantization.of(
        X, torch.ones(1), None, X, residual=Affine(3e38, 0)
    ),
    "x holds a NaN or an infinity": lambda: X.quantize(torch.tensor([0.0, float("inf")])),
}


@pytest.mark.parametrize("message", REFUSED)
def test_numbers_that_cannot_be_are_refused(message):
    with pytest.raises(ValueError, match=message) as refused:
        REFUSED[message]()
    assert "\n" not in str(refused.value)
