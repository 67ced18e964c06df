"""`accel bench distributions`: accuracy against multiprecision, speed against torch, variance against score functions.

Rows of one JSON-lines file: `accuracy` (largest relative error over a grid of parameters and quantiles, with that of
torch), `speed` (a million draws and their backward, both sides interleaved), `variance` (von Mises, kappa = 50).
"""

from __future__ import annotations

import datetime
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from accel.files import write_rows

Row = dict[str, Any]

QUANTILES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.99)
QUANTILES += (0.999, 0.9999, 0.99999, 1 - 1e-6)
ALPHAS = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.7, 1.0, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0, 9.99, 10.01, 12.0, 14.0)
ALPHAS += (16.0, 20.0, 31.9, 50.0, 100.0, 300.0, 1e3, 1e4, 1e5)
BETAS = ((1e-3, 1e-3), (1e-3, 1.0), (0.01, 30.0), (0.1, 0.5), (0.5, 0.5), (0.999, 0.01), (1.5, 1e4), (3.0, 2.0))
BETAS += ((80.0, 3.0), (1e3, 1e3), (1e3, 0.01), (1e4, 1e5))
KAPPAS = (1e-4, 1e-2, 0.1, 0.5, 1.0, 2.0, 5.0, 10.4, 10.6, 20.0, 49.0, 51.0, 1e2, 1e3, 1e4, 1e5)
DFS = (0.1, 0.3, 1.0, 2.0, 3.0, 10.0, 30.0, 99.0, 101.0, 1e3, 1e4, 1e5, 1e6)
BARS = {"Gamma": {"float32": 1e-5, "float64": 1e-10}}
OTHER_BARS = {"float32": 1e-4, "float64": 1e-8}


def run(out_dir: pathlib.Path, seed: int = 0, quick: bool = False) -> list[Row]:
    """Measure everything, write `out_dir`/distributions.jsonl and return its rows.

    Args:
        out_dir: made if missing.
        seed: of the samples.
        quick: a coarse grid, few draws and repeats; too rough to publish.
    """
    import torch

    from accel.profiling.machine import machine_record

    stamp = {"seed": seed, "quick": quick, "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat()}
    stamp["machine"] = machine_record()
    rows = [*accuracy(quick), *variance(seed, 10_000 if quick else 1_000_000)]
    torch.manual_seed(seed)
    rows += speed(10_000 if quick else 1_000_000, 3 if quick else 7)
    rows = [{**row, **stamp} for row in rows]
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_rows(out_dir / "distributions.jsonl", rows)
    return rows


# ------------------------------------------------------------------------------------------------------- accuracy


def accuracy(quick: bool) -> Iterator[Row]:
    """One row per distribution and dtype; a case is (parameters..., sample), rounded to the dtype before both sides."""
    from accel.bench import distribution_oracles as oracle

    every = 6 if quick else 1
    for dtype in ("float32", "float64"):
        for name, cases, derivative, reference, rival in (
            ("Gamma", _gamma_cases, _gamma, oracle.gamma_derivative, _torch_gamma),
            ("Beta", _beta_cases, _beta, lambda a, b, x: oracle.beta_derivatives(a, b, x)[0], _torch_beta),
            ("StudentT", _student_cases, _student, oracle.student_derivative, None),
            ("VonMises", _von_mises_cases, _von_mises, oracle.von_mises_derivative, None),
        ):
            yield _accuracy_row(name, dtype, list(cases(dtype))[::every], derivative, reference, rival)
        yield _dirichlet_row(dtype, 5 if quick else 50)


def _accuracy_row(name: str, dtype: str, cases: list, derivative: Callable, reference: Callable, rival) -> Row:
    import torch

    expected = [float(reference(*case)) for case in cases]
    largest = torch.finfo(getattr(torch, dtype)).max
    cases = [case for case, value in zip(cases, expected) if abs(value) < largest]  # Student's overflows at 0.1 df
    expected = torch.tensor([value for value in expected if abs(value) < largest], dtype=torch.float64)
    inputs = [torch.tensor(column, dtype=getattr(torch, dtype)) for column in zip(*cases)]
    error = (derivative(*inputs).double() / expected - 1).abs()
    theirs = None if rival is None else float((rival(*inputs).double() / expected - 1).abs().max())
    bar = BARS.get(name, OTHER_BARS)[dtype]
    return {
        "row": "accuracy",
        "distribution": name,
        "dtype": dtype,
        "points": len(cases),
        "error": float(error.max()),
        "at": cases[int(error.argmax())],
        "torch_error": theirs,
        "bar": bar,
        "reached": bool(error.max() <= bar),
    }


def _dirichlet_row(dtype: str, draws: int) -> Row:
    """The whole Jacobian from rsample and autograd, against the marginal Beta's multiprecision derivative."""
    import torch

    from accel.bench.distribution_oracles import beta_derivatives
    from accel.distributions import Dirichlet

    worst, points = 0.0, 0
    for alpha in ((0.05, 0.5, 3.0), (1.0, 1.0, 1.0), (200.0, 30.0, 5.0)):
        concentration = torch.tensor(alpha, dtype=getattr(torch, dtype)).expand(draws, 3).clone().requires_grad_()
        x = Dirichlet(concentration).rsample(generator=torch.Generator().manual_seed(0))
        jacobian = torch.stack(
            [torch.autograd.grad(x[:, i].sum(), concentration, retain_graph=True)[0] for i in range(3)]
        )
        for n in range(draws):
            for j in range(3):
                own, total = concentration[n, j].item(), concentration[n].detach().double().sum().item()
                value = x[n].tolist()
                moved = float(beta_derivatives(own, total - own, value[j])[0]) / (1 - value[j])
                for i in range(3):
                    expected = moved * ((i == j) - value[i])
                    worst = max(worst, abs(jacobian[i, n, j].item() / expected - 1))
                    points += 1
    bar = OTHER_BARS[dtype]
    facts = {"row": "accuracy", "distribution": "Dirichlet", "dtype": dtype, "points": points}
    return {**facts, "error": worst, "torch_error": None, "bar": bar, "reached": worst <= bar}


def _gamma_cases(dtype: str) -> Iterator[tuple[float, ...]]:
    """Where the sample is a normal number of the dtype."""
    import numpy as np
    from scipy import special

    number = np.dtype(dtype).type
    for alpha in (float(number(alpha)) for alpha in ALPHAS):
        for q in QUANTILES:
            z = number(special.gammaincinv(alpha, q) if q < 0.5 else special.gammainccinv(alpha, 1 - q))
            if z >= np.finfo(dtype).tiny:
                yield alpha, float(z)


def _beta_cases(dtype: str) -> Iterator[tuple[float, ...]]:
    """Where x and 1 - x are normal numbers, and x is not rounded to 1 by more than its last digits."""
    import numpy as np
    from scipy import special

    number, limits = np.dtype(dtype).type, np.finfo(dtype)
    for pair in (*BETAS, *(pair[::-1] for pair in BETAS)):
        a, b = (float(number(value)) for value in pair)
        for q in QUANTILES[::3]:
            x = number(special.betaincinv(a, b, q))
            if limits.tiny <= x <= 1 - limits.eps:
                yield a, b, float(x)


def _student_cases(dtype: str) -> Iterator[tuple[float, ...]]:
    import numpy as np
    from scipy import stats

    number = np.dtype(dtype).type
    for df in (float(number(df)) for df in DFS):
        for q in (0.5001, 0.55, *(q for q in QUANTILES if q > 0.5)):
            t = stats.t.ppf(q, df)
            if t < np.finfo(dtype).max:
                yield df, float(number(t))


def _von_mises_cases(dtype: str) -> Iterator[tuple[float, ...]]:
    import numpy as np
    from scipy import stats

    number = np.dtype(dtype).type
    for kappa in (float(number(kappa)) for kappa in KAPPAS):
        for q in QUANTILES[::2]:
            z = float(number(stats.vonmises.ppf(q, kappa)))
            if 0 < abs(z) < math.pi:
                yield kappa, z


def _gamma(alpha, z):
    from accel.kernels.gamma_gradient import gamma_gradient

    return gamma_gradient(alpha, z)


def _beta(a, b, x):
    """As `accel.distributions.Beta` computes it: in float64, from the given x."""
    from accel.kernels.beta_gradient import beta_gradient

    wide = x.double()
    logit = wide.log() - (-wide).log1p()
    return (wide * (1 - wide) * beta_gradient(a.double(), b.double(), logit)).to(x.dtype)


def _student(df, t):
    from accel.kernels.student_t_gradient import student_t_gradient

    return student_t_gradient(df, t)


def _von_mises(kappa, z):
    from accel.kernels.von_mises_gradient import von_mises_gradient

    return von_mises_gradient(kappa, z)


def _torch_gamma(alpha, z):
    import torch

    return torch._standard_gamma_grad(alpha, z)


def _torch_beta(a, b, x):
    import torch

    return torch._dirichlet_grad(x, a, a + b) * (1 - x)


# ------------------------------------------------------------------------------------------------ speed, variance


def speed(draws: int, repeats: int) -> Iterator[Row]:
    """Sample and backward of `draws` draws; torch's lower accuracy stands in the accuracy rows."""
    import torch

    import accel.distributions as ours
    from accel.profiling.latency import compare, ratio

    mixed = torch.exp(2 * torch.randn(draws, dtype=torch.float64))
    cases = [("Gamma", str(alpha), (alpha, 1.0)) for alpha in (0.05, 0.5, 1.0, 5.0, 20.0, 1000.0)]
    cases += [
        ("Gamma", "exp(2 N(0, 1)), one each", (mixed, 1.0)),
        ("Beta", "2, 3", (2.0, 3.0)),
        ("Beta", "0.5, 0.5", (0.5, 0.5)),
    ]
    cases += [("StudentT", "3", (3.0,)), ("VonMises", "0, 2", (0.0, 2.0))]
    for name, parameters, values in cases:
        for dtype in (torch.float32, torch.float64):
            leaves = [torch.as_tensor(value, dtype=dtype).expand(draws).clone().requires_grad_() for value in values]
            sides = {"accel": _step(getattr(ours, name), leaves)}
            if getattr(torch.distributions, name).has_rsample:
                sides["torch"] = _step(getattr(torch.distributions, name), leaves)
            timing = compare(sides, repeats=repeats, warmup=1)
            row = {
                "row": "speed",
                "distribution": name,
                "parameters": parameters,
                "dtype": str(dtype)[6:],
                "draws": draws,
            }
            row["accel_ms"] = timing["accel"].median_ms
            if "torch" in timing:
                times = ratio(timing["accel"], timing["torch"])
                row |= {"torch_ms": timing["torch"].median_ms, "accel_over_torch": times.median}
                row |= {"low": times.low, "high": times.high}
            if name == "Gamma":
                row |= {"bar": 2.0, "reached": row["accel_over_torch"] <= 2.0}
            yield row


def _step(distribution: type, leaves: list) -> Callable[[], object]:
    import torch

    def step() -> object:
        return torch.autograd.grad(distribution(*leaves, validate_args=False).rsample().sum(), leaves)

    return step


def variance(seed: int, draws: int) -> Iterator[Row]:
    """Per-sample variance of the score function without baseline over that of rsample, for E cos z, von Mises."""
    import torch

    from accel.distributions import VonMises

    generator = torch.Generator().manual_seed(seed)
    loc = torch.zeros(draws, dtype=torch.float64, requires_grad=True)
    kappa = torch.full((draws,), 50.0, dtype=torch.float64, requires_grad=True)
    q = VonMises(loc, kappa)
    z = q.rsample(generator=generator)
    implicit = torch.autograd.grad(z.cos().sum(), (loc, kappa))
    scores = torch.autograd.grad(q.log_prob(z.detach()).sum(), (loc, kappa))
    for name, ours, score in zip(("loc", "concentration"), implicit, scores):
        gain = float((score * z.detach().cos()).var() / ours.var())
        row = {"row": "variance", "distribution": "VonMises", "concentration": 50.0, "parameter": name, "draws": draws}
        row["score_over_rsample"] = gain
        if name == "concentration":
            row |= {"bar": 500.0, "reached": gain >= 500}
        yield row
