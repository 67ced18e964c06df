import pytest
import torch
from scipy import stats
from torch import distributions as td

from accel import mc
from accel.mc import sampling

ONE = torch.ones(20_000, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "estimator",
    [mc.ScoreFunction(), mc.MeasureValued(), mc.DisARM(), mc.REBAR(), mc.Concrete(), mc.StraightThrough(0.5)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_generator_fixes_the_estimate_and_spares_the_global_stream(estimator):
    q = td.Bernoulli(logits=torch.zeros(6, dtype=torch.float64, requires_grad=True))
    cost = lambda b: (b * torch.arange(6.0)).sum(-1) ** 2  # noqa: E731
    before = torch.get_rng_state()
    generator = seeded()
    first = mc.jacobians(cost, q, 8, estimator, generator=generator)["logits"]
    second = mc.jacobians(cost, q, 8, estimator, generator=generator)["logits"]
    again = mc.jacobians(cost, q, 8, estimator, generator=seeded())["logits"]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "q",
    [
        td.Normal(ONE, ONE),
        td.Gamma(ONE, ONE),
        td.Poisson(ONE),
        td.Categorical(logits=torch.zeros(50, 4)),
        td.MultivariateNormal(torch.zeros(9, 2), torch.eye(2)),
        td.MixtureSameFamily(td.Categorical(logits=torch.zeros(50, 2)), td.Normal(torch.zeros(50, 2), 1.0)),
    ],
    ids=lambda q: type(q).__name__,
)
def test_torch_distributions_obey_a_generator(q):
    generator = seeded(1)
    first, second = sampling.draw(q, generator), sampling.draw(q, generator)
    torch.manual_seed(1)
    assert torch.equal(first, q.sample())
    assert torch.equal(second, q.sample())


def test_the_global_stream_survives_an_error():
    class Broken(td.Normal):
        def sample(self, sample_shape=()):
            torch.rand(3)
            raise RuntimeError("no sample today")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no sample today"):
        sampling.draw(Broken(ONE, ONE), seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_a_generator_of_another_device_is_refused():
    with (
        pytest.raises(ValueError, match=r"generator is on cpu .* on meta.*torch.Generator\(device='meta'\)"),
        sampling.torch_draws_from(seeded(), torch.device("meta")),
    ):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize(
    ("noise", "law"),
    [
        (sampling.uniform, stats.uniform()),
        (sampling.normal, stats.norm()),
        (sampling.exponential, stats.expon()),
        (sampling.rayleigh, stats.weibull_min(2, scale=2**0.5)),  # Weibull(2, 1/2) of the papers
        (lambda like, generator: sampling.double_sided_maxwell(like, generator).abs(), stats.maxwell()),
        (lambda like, g: sampling.double_sided_maxwell(like, g) * sampling.uniform(like, g), stats.norm()),
    ],
    ids=["uniform", "normal", "exponential", "rayleigh", "maxwell", "uniform times maxwell is normal"],
)
def test_noise_laws(noise, law):
    sample = noise(ONE, seeded())
    assert sample.dtype == ONE.dtype and sample.shape == ONE.shape
    assert stats.kstest(sample.numpy(), law.cdf).pvalue > 1e-3


def test_signs_are_fair_and_uniforms_stay_inside():
    signs = sampling.random_sign(ONE, seeded())
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 4 / 20_000**0.5
    assert torch.isfinite(torch.logit(sampling.uniform(torch.ones(2_000_000), seeded()))).all()
