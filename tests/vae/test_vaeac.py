"""VAEAC: its bound against closed forms, cells without a value, and a Gaussian whose conditional means are known."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from accel.errors import ConfigError, DataError
from accel.tests.vae.models import seeded
from accel.vae.columns import Column
from accel.vae.imputer_training import Training, train
from accel.vae.mask_generators import MCAR
from accel.vae.table_likelihood import TableLikelihood
from accel.vae.vaeac import divergence, regulariser, table_vaeac

COLUMNS = [
    Column("a", "real"),
    Column("b", "categorical", ("x", "y", "z")),
    Column("c", "nonnegative", low=0.0, mean=1.0, scale=2.0, sticky=True),
    Column("d", "count", low=0.0, mean=3.0, scale=2.0),
    Column("e", "ordinal", (0, 1, 2, 3)),
    Column("f", "boolean", (False, True)),
]


def model(columns=COLUMNS, **options):
    torch.manual_seed(0)
    return table_vaeac(TableLikelihood(columns, **options), width=16, depth=2, latent=3)


def cells(count=8):
    g = seeded(1)

    def pick(most):
        return torch.randint(most, (count, 1), generator=g).float()

    real = torch.randn(count, 1, generator=g)
    amount = torch.randn(count, 1, generator=g).clamp(min=-0.5)
    return torch.cat([real, pick(3), amount, (pick(9) - 3) / 2, pick(4), pick(2)], 1)


def test_nothing_hidden_nothing_judged():
    vae, x = model(), cells()
    nothing = torch.zeros_like(x, dtype=torch.bool)
    fit, divergences, _ = vae._terms(x, nothing, None, seeded())
    assert (fit == 0).all() and (divergences >= 0).all()
    torch.testing.assert_close(vae.bound(x, nothing, generator=seeded()), -divergences)


def test_all_hidden_is_a_plain_vae_with_a_learned_prior():
    """The prior sees no cell, so it is the same for all rows, and its outputs do not depend on x."""
    vae, x = model(), cells()
    (mean, scale), layers = vae.seen(x, torch.ones_like(x, dtype=torch.bool))
    assert (mean == mean[0]).all() and (scale == scale[0]).all() and all((one == one[0]).all() for one in layers)
    judged = vae._judged(mean, layers, x, torch.ones_like(x, dtype=torch.bool))
    torch.testing.assert_close(judged, vae.likelihood.log_prob(vae.decoder(mean, layers), x).sum(1))


@pytest.mark.parametrize("learned", [True, False])
def test_what_stands_in_missing_cells_changes_nothing(learned):
    vae, x = model(learned=learned), cells()
    missing = torch.rand(x.shape, generator=seeded(2)) < 0.4
    hidden = torch.rand(x.shape, generator=seeded(3)) < 0.4
    found = []
    for filler in (math.nan, 0.0, 1e30, -math.inf):
        filled = torch.where(missing, filler, x)
        vae.zero_grad()
        loss = vae.loss(filled, hidden, missing, seeded())
        loss.backward()
        gradients = torch.cat([one.grad.flatten() for one in vae.parameters() if one.grad is not None])
        bounds = torch.stack(
            [vae.bound(filled, hidden, missing, seeded()), vae.iwae(filled, hidden, 3, missing, seeded())]
        )
        found.append((loss.detach(), gradients, bounds.detach()))
    for loss, gradients, bounds in found:
        assert loss.isfinite() and gradients.isfinite().all() and gradients.abs().sum() > 0
        assert (
            torch.equal(loss, found[0][0]) and torch.equal(gradients, found[0][1]) and torch.equal(bounds, found[0][2])
        )


def test_nan_means_missing():
    vae, x = model(), cells()
    missing = torch.rand(x.shape, generator=seeded(2)) < 0.4
    hidden = torch.zeros_like(missing)
    given = vae.loss(x, hidden, missing, seeded())
    assert torch.equal(vae.loss(torch.where(missing, math.nan, x), hidden, None, seeded()), given)


def test_several_latents_of_a_row_are_decoded_at_once():
    vae, x = model().double(), cells().double()
    (mean, _), layers = vae.seen(x, torch.rand(x.shape, generator=seeded(3)) < 0.5)
    z = torch.randn(len(x), 5, mean.shape[1], generator=seeded(4), dtype=torch.float64)
    found = vae.decoder(z, layers)
    for number in range(5):
        torch.testing.assert_close(found[:, number], vae.decoder(z[:, number], layers), rtol=1e-12, atol=1e-12)


def test_importance_weighting_only_raises_the_bound():
    vae, x = model(), cells(4)
    hidden = torch.rand(x.shape, generator=seeded(3)) < 0.6
    many, masks = x.repeat(2000, 1), hidden.repeat(2000, 1)
    with torch.no_grad():
        draws = [vae.iwae(many, masks, count, generator=seeded(count)).view(2000, 4) for count in (1, 3, 20)]
        bound = vae.bound(many, masks, generator=seeded(9)).view(2000, 4)
    error = (bound.var(0) + draws[0].var(0)).sqrt() / math.sqrt(2000)
    assert ((bound.mean(0) - draws[0].mean(0)).abs() < 4.5 * error).all()  # both estimate the same with one sample
    assert (draws[0].mean(0) < draws[1].mean(0)).all() and (draws[1].mean(0) < draws[2].mean(0)).all()
    with pytest.raises(ConfigError, match="at least one sample"):
        vae.iwae(x, hidden, 0)


def test_divergence_and_regulariser():
    g = seeded()
    q, p = ((torch.randn(5, 3, generator=g), torch.rand(5, 3, generator=g) + 0.2) for _ in range(2))
    torch.testing.assert_close(divergence(q, p), kl_divergence(Normal(*q), Normal(*p)))
    mean, scale = torch.zeros(1, 4, requires_grad=True), torch.ones(1, 4, requires_grad=True)
    regulariser((mean, scale)).sum().backward()
    assert (mean.grad == 0).all() and (scale.grad == 0).all()
    away = regulariser((torch.full((1, 4), 1e5), torch.ones(1, 4))) - regulariser((torch.zeros(1, 4), torch.ones(1, 4)))
    torch.testing.assert_close(away, torch.tensor([-4 * 1e10 / (2 * 1e8)]))


def test_masks_of_another_shape_are_refused():
    vae, x = model(), cells()
    for mask in (torch.zeros(8, 5, dtype=torch.bool), torch.zeros(8, 6)):
        with pytest.raises(DataError, match="must be bool of the shape of the data"):
            vae.bound(x, mask)


def gaussian(dim, count, generator):
    """(covariance, draws): two factors and noise, unit variances."""
    factors = torch.randn(dim, 2, generator=generator)
    covariance = factors @ factors.T + 0.3 * torch.eye(dim)
    scale = covariance.diagonal().sqrt()
    covariance = covariance / scale[:, None] / scale
    return covariance, torch.randn(count, dim, generator=generator) @ torch.linalg.cholesky(covariance).T


def conditional(covariance, row, hidden):
    """(mean, covariance) of the hidden cells given the others."""
    seen = ~hidden
    gain = covariance[hidden][:, seen] @ covariance[seen][:, seen].inverse()
    return gain @ row[seen], covariance[hidden][:, hidden] - gain @ covariance[seen][:, hidden]


def test_a_small_gaussian_is_learned():
    """The bound stays below the exact conditional density; means come near the exact ones (NRMSE of the mean: 1)."""
    covariance, x = gaussian(5, 1000, seeded(4))
    columns = [Column(str(one), "real") for one in range(5)]
    torch.manual_seed(0)
    vae = table_vaeac(TableLikelihood(columns), width=32, depth=2, latent=4)
    train(vae, x, MCAR((0.0, 0.6)), Training(600, 128, 3e-3, 0.0, 20), seeded())
    _, fresh = gaussian(5, 200, seeded(4))
    fresh = torch.randn(200, 5, generator=seeded(5)) @ torch.linalg.cholesky(covariance).T
    hidden = torch.rand(fresh.shape, generator=seeded(6)) < 0.5
    with torch.no_grad():
        bound = vae.iwae(fresh, hidden, 50, generator=seeded())
        (mean, scale), layers = vae.seen(fresh, hidden)
        draws = torch.randn(50, *mean.shape, generator=seeded(7))
        found = torch.stack([vae.likelihood.mean(vae.decoder(mean + scale * z, layers))[0] for z in draws]).mean(0)
    exact, density = torch.zeros_like(fresh), torch.zeros(200)
    for one in range(200):
        if hidden[one].any():
            middle, spread = conditional(covariance, fresh[one], hidden[one])
            exact[one, hidden[one]] = middle
            density[one] = MultivariateNormal(middle, spread).log_prob(fresh[one, hidden[one]])
    assert bound.mean() < density.mean() and bound.mean() > density.mean() - 0.35  # nats
    errors = [((guess - fresh)[hidden] ** 2).mean().sqrt() for guess in (torch.zeros_like(fresh), found, exact)]
    assert errors[1] < 1.1 * errors[2] < 0.8 * errors[0]
