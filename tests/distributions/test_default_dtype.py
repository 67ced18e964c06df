"""What torch's default dtype and device are does not matter: parameters decide."""

import pytest
import torch
from torch import distributions as td

import accel.distributions as ours
from accel import mc

CASES = {
    "Gamma": (2.0, 3.0),
    "InverseGamma": (2.5, 3.0),
    "Beta": (0.5, 2.0),
    "Dirichlet": ([0.5, 2.0, 3.0],),
    "StudentT": (3.0, 1.0, 2.0),
    "FisherSnedecor": (3.0, 5.0),
    "VonMises": (0.5, 2.0),
    "TruncatedNormal": (0.0, 1.0, -1.0, 2.0),
}
ESTIMATORS = [
    mc.ScoreFunction(mc.LeaveOneOut()),
    mc.MeasureValued(),
    mc.Enumerate(),
    mc.Concrete(),
    mc.DisARM(),
    mc.REBAR(),
]


def leaf(value, dtype):
    return torch.tensor(value, dtype=dtype, device="cpu", requires_grad=True)


def results(dtype):
    """Samples, densities and gradients of every distribution and estimator under a fixed seed."""
    found = []

    def add(*tensors):
        assert all(tensor.dtype == dtype and tensor.device.type == "cpu" for tensor in tensors)
        found.extend(tensor.detach() for tensor in tensors)

    torch.manual_seed(0)
    for name, values in CASES.items():
        rows = [leaf(value, dtype) for value in values]
        q = getattr(ours, name)(*rows)
        x = q.rsample((3,))
        add(x, q.log_prob(x.detach()), q.mean, q.variance, *torch.autograd.grad(x.sum(), rows))
    rows = [leaf(value, dtype) for value in ([0.0, 1.0], [0.0, 1.0], [1.0, 2.0])]
    for component in (td.Uniform(*rows[1:]), ours.Gamma(rows[2], rows[2])):
        q = ours.MixtureSameFamily(td.Categorical(logits=rows[0]), component)
        x = q.rsample((3,))
        add(x, q.log_prob(x.detach()), q.cdf(x.detach()))
    for estimator in ESTIMATORS:
        logits = leaf([0.1, 0.2, 0.3], dtype)
        value = mc.expectation(lambda b: b.square().sum(-1), td.Bernoulli(logits=logits), 4, estimator)
        add(value, *torch.autograd.grad(value, logits))
    return found


@pytest.fixture(params=[torch.bfloat16, torch.float64, "meta"], ids=str)
def default(request):
    """Sets the default while it is called; the test restores it."""
    yield request.param
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_do_not_depend_on_the_defaults(dtype, default):
    expected = results(dtype)
    torch.set_default_device(default) if default == "meta" else torch.set_default_dtype(default)
    found = results(dtype)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_parameters_of_a_control_are_float32(default):
    if default != "meta":
        torch.set_default_dtype(default)
    assert {parameter.dtype for parameter in mc.REBAR().parameters()} == {torch.float32}
