"""What the tests of the ops share: the backends present, random position sets, a comparison by RMS."""

from __future__ import annotations

import contextlib

import pytest
import torch

from accel.kernels import dispatch
from accel.kernels.positions import PositionSet
from accel.tests.drawn_sets import draw_set

try:
    from accel.kernels.cpu import _engine
except ImportError:  # the files that need it say so when they are skipped
    _engine = None


@pytest.fixture(params=_engine.isas() if _engine else [])
def isa(request):
    """Every instruction set of the C engine that this machine can run, in turn."""
    before = _engine.isa()
    _engine.set_isa(request.param)
    yield request.param
    _engine.set_isa(before)


@pytest.fixture(params=dispatch.BACKENDS)
def backend(request, monkeypatch):
    """Every backend in turn, forced; what it allocates without filling starts as NaN."""
    name = request.param
    if name not in dispatch.available_backends():
        pytest.skip(f"the {name} backend cannot run here")
    if name == "triton" and not torch.cuda.is_available():
        tools = pytest.importorskip("accel.tests.triton_tools.interp_switch", reason="no interpreter tools")
        interpreter = tools.interpret()
    else:
        interpreter = contextlib.nullcontext()
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
    with interpreter, dispatch.use_backend(name):
        yield name


@pytest.fixture
def needs(backend):
    """(op, module) -> skip the test where the forced backend has no such op."""

    def check(op: str, module: str) -> None:
        if dispatch.find(backend, op, module) is None:
            pytest.skip(f"the {backend} backend has no {op}")

    return check


@pytest.fixture
def device(backend):
    """Where the tensors of the forced backend live."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


@pytest.fixture
def random_set():
    """(height, width, keep, seed=0) -> a set in random order, with a random stand-in for each position left out."""

    def draw(height: int, width: int, keep: float, seed: int = 0) -> PositionSet:
        return draw_set(height, width, max(1, round(keep * height * width)), torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def assert_close():
    """(got, expected, ratio=1e-5): same shape, and the RMS of the difference at most `ratio` of the expected RMS."""

    def check(got: torch.Tensor, expected: torch.Tensor, ratio: float = 1e-5) -> None:
        assert got.shape == expected.shape
        if not expected.numel():
            return  # no values, and their mean is NaN
        error = (got.cpu().double() - expected.cpu().double()).square().mean().sqrt()
        scale = expected.double().square().mean().sqrt()
        assert error <= ratio * scale + 1e-30, f"RMS of the difference is {error:.2e}, of the values {scale:.2e}"

    return check
