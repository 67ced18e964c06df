"""Mask generators: their shares, what they may hide, and what they refuse."""

import json
import math

import pytest
import torch

from accel.errors import ConfigError
from accel.tests.vae.models import seeded
from accel.vae.mask_generators import MAR, MCAR, Groups, MaskList, Mixture, Monotone, Patterns, mask_generator

ROWS = 4000


def cells(width=4):
    return torch.randn(ROWS, width, generator=seeded())


def test_mcar_hides_its_share():
    for share in (0.0, 0.3, 1.0):
        hidden = MCAR(share)(cells(), seeded(1))
        assert hidden.dtype == torch.bool and hidden.shape == (ROWS, 4)
        assert abs(hidden.float().mean() - share) <= 4 * math.sqrt(share * (1 - share) / hidden.numel())
    of_rows = MCAR((0.2, 0.8))(cells(200), seeded(1)).float().mean(1)
    assert of_rows.min() < 0.25 and of_rows.max() > 0.75 and abs(of_rows.mean() - 0.5) < 0.01


def test_mar_hangs_on_its_drivers_and_leaves_them_visible():
    x = cells()
    x[:100, 0] = math.nan  # a driver that is missing says nothing
    hidden = MAR(0.3, drivers=(0,))(x, seeded(1))
    assert not hidden[:, 0].any() and abs(hidden[:, 1:].float().mean() - 0.3) < 0.02
    high, low = (hidden[chosen][:, 1:].float().mean() for chosen in (x[:, 0] > 1, x[:, 0] < -1))
    assert high > low + 0.3


def test_monotone_never_comes_back():
    hidden = Monotone()(cells(), seeded(1))
    assert not hidden[:, 0].any() and hidden[:, 3].all() and (hidden[:, 1:] >= hidden[:, :-1]).all()
    assert abs(hidden[:, 1].float().mean() - 1 / 3) < 0.04
    turned = Monotone((3, 2, 1, 0))(cells(), seeded(1))
    assert torch.equal(turned, hidden.flip(1))


def test_a_list_comes_by_its_weights():
    masks = ((True, False, False, False), (False, True, True, False), (False, False, False, True))
    hidden = MaskList(masks, (1, 3, 0))(cells(), seeded(1))
    counts = [int((hidden == torch.tensor(mask)).all(1).sum()) for mask in masks]
    assert sum(counts) == ROWS and counts[2] == 0 and abs(counts[1] / ROWS - 0.75) < 0.03


def test_groups_stay_together():
    hidden = Groups(((0, 3), (1, 4)), MCAR(0.5))(cells(6), seeded(1))
    assert torch.equal(hidden[:, 0], hidden[:, 3]) and torch.equal(hidden[:, 1], hidden[:, 4])
    assert not torch.equal(hidden[:, 2], hidden[:, 5]) and not torch.equal(hidden[:, 0], hidden[:, 1])
    assert abs(hidden.float().mean() - 0.5) < 0.03


def test_patterns_are_those_of_the_table():
    x = cells()
    x[::2, :2] = math.nan
    hidden = Patterns()(x, seeded(1))
    assert hidden[:, :2].sum() == ROWS and not hidden[:, 2:].any() and torch.equal(hidden[:, 0], hidden[:, 1])


def test_a_mixture_draws_by_its_weights():
    hidden = Mixture((MCAR(0.0), MCAR(1.0)), (1, 3))(cells(), seeded(1))
    assert torch.equal(hidden.any(1), hidden.all(1)) and abs(hidden[:, 0].float().mean() - 0.75) < 0.03


def test_they_go_through_json():
    made = Mixture(
        (Groups(((0, 1),), MCAR((0.1, 0.4))), MAR(0.2, (0,)), MaskList(((True, False),), (2.0,))), (1.0, 2.0, 3.0)
    )
    assert mask_generator(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MCAR(1.5), "MCAR needs a share"),
        (lambda: MCAR((0.5, 0.2)), "MCAR needs a share"),
        (lambda: MAR(0.3, ()), "MAR needs a share in"),
        (lambda: MAR(0.3, (7,))(cells()), "different column numbers from 0 to 3"),
        (lambda: Monotone((0, 1))(cells()), "each of the 4 columns once"),
        (lambda: MaskList(()), "masks of one length"),
        (lambda: MaskList(((True,), (True, False))), "masks of one length"),
        (lambda: MaskList(((True,),), (0.0,)), "weights from 0, not all 0"),
        (lambda: MaskList(((True,),))(cells()), "for 1 columns, the table has 4"),
        (lambda: Groups(((0, 1), (1, 2)))(cells()), "different column numbers"),
        (lambda: Mixture(()), "needs a mask generator"),
        (lambda: Mixture((MCAR(),), (1, 2)), "need 1 weights"),
        (lambda: mask_generator({"kind": "Eval"}), "no mask generator is called 'Eval'"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
