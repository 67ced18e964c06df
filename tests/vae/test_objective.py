"""The bound a recipe names is the one that is trained."""

import math

import pytest
import torch

from accel.errors import ConfigError
from accel.tests.vae.models import linear_gaussian, seeded
from accel.vae import elbo, iwae, robust_elbo
from accel.vae.objective import Bound, Objective

X = torch.randn(6, 3, generator=seeded(1))


def test_the_loss_is_minus_the_mean_of_the_named_bound():
    vae, _ = linear_gaussian()
    named = {
        Bound(): elbo(vae, X, generator=seeded(2)),
        Bound(num_samples=3, gradient="stl"): elbo(vae, X, 3, gradient="stl", generator=seeded(2)),
        Bound(kind="iwae", num_samples=4): iwae(vae, X, 4, generator=seeded(2)),
        Bound(kind="robust", log_alpha=-5.0): robust_elbo(vae, X, -5.0, generator=seeded(2)),
        Bound(kind="robust", log_alpha=-5.0, num_samples=4, variant="iwae"): robust_elbo(
            vae, X, -5.0, 4, variant="iwae", generator=seeded(2)
        ),
    }
    for bound, expected in named.items():
        torch.testing.assert_close(Objective(vae, bound)(X, 0, seeded(2)), -expected.mean())


def test_log_alpha_rises_and_is_left_to_the_vae():
    vae, _ = linear_gaussian()
    bound = Bound(kind="robust", log_alpha=-4.0, log_alpha_start=-8.0, anneal_steps=4)
    objective = Objective(vae, bound)
    assert [bound.log_alpha_at(step) for step in (0, 2, 4, 9)] == [-8.0, -6.0, -4.0, -4.0]
    expected = -robust_elbo(vae, X, -6.0, generator=seeded(3)).mean()
    torch.testing.assert_close(objective(X, 2, seeded(3)), expected)
    assert vae.log_alpha == -4 and vae.outlier_score(X).shape == (6,)
    Objective(vae, Bound())
    assert vae.log_alpha == -math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "vimco"}, "kind of a bound vimco must be one of elbo, iwae, robust, beta, halting, got 'vimco'"),
        ({"kind": "iwae", "gradient": "arm"}, "gradient of a bound iwae must be one of plain, stl, dreg, got 'arm'"),
        ({"gradient": "dreg"}, "gradient of a bound elbo must be one of plain, stl, got 'dreg'"),
        ({"kind": "robust"}, "log_alpha is a finite number of nats"),
        ({"log_alpha": -5.0}, "and for no other: got -5.0 for elbo"),
        ({"kind": "robust", "log_alpha": math.nan}, "finite number"),
        (
            {"kind": "robust", "log_alpha": -5.0, "gradient": "stl"},
            "gradient of a bound robust must be one of plain, got 'stl'",
        ),
        ({"kind": "robust", "log_alpha": -5.0, "variant": "b2"}, "variant of a bound robust must be one of elbo"),
        ({"kind": "robust", "log_alpha": -5.0, "log_alpha_start": -1.0, "anneal_steps": 5}, "annealed upwards"),
        ({"num_samples": 0}, "at least one sample"),
        ({"kind": "iwae", "anneal_steps": 5}, "for no other"),
    ],
)
def test_bounds_that_cannot_be_are_one_line(options, message):
    with pytest.raises(ConfigError, match=message):
        Bound(**options)
