"""What the Triton tests share: the checked interpreter on poisoned memory, random data, a comparison by RMS."""

from __future__ import annotations

import pytest
import torch

from accel.kernels.positions import PositionSet
from accel.kernels.triton.launch import Tile, clip, fitting_block
from accel.tests.drawn_sets import draw_set
from accel.tests.triton_tools.interp_switch import interpret


@pytest.fixture(autouse=True, scope="session")
def compiler_cache(tmp_path_factory):
    """What one test compiles, the others find; nothing from before, nothing left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture
def poisoned():
    """Every tensor that is allocated without being filled holds NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture
def interpreter(poisoned):
    """Kernels run in the interpreter, every access checked for bounds and races."""
    with interpret():
        yield


@pytest.fixture
def wide_tile(monkeypatch):
    """One config, as wide as shared memory allows: the interpreter takes as long for a small one."""
    tile = Tile(64, 128, 128, 8, 2)

    def tiles(where, family, out_channels, in_channels):
        return clip((tile,), tile._replace(out=fitting_block(out_channels), inner=fitting_block(in_channels)))

    monkeypatch.setattr("accel.kernels.triton.gather_conv.matrix_tiles", tiles)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def random_set(generator):
    """(height, width, count) -> a set in random order, with a random stand-in for each position left out."""

    def draw(height: int, width: int, count: int) -> PositionSet:
        return draw_set(height, width, count, generator)

    return draw


@pytest.fixture
def assert_close():
    """(got, expected in float64): same shape, and RMS of the difference within the rounding of got's dtype."""
    # one rounding of each output, on average a quarter of an ulp of relative size; float32 adds its sums' rounding
    ratio = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}

    def check(got: torch.Tensor, expected: torch.Tensor) -> None:
        assert got.shape == expected.shape
        error = (got.double() - expected.double()).square().mean().sqrt()
        scale = expected.double().square().mean().sqrt()
        assert error <= ratio[got.dtype] * scale, f"RMS of the difference is {error:.2e}, of the values {scale:.2e}"

    return check


@pytest.fixture
def cuda_autocast():
    """torch.autocast("cuda") turns itself off where there is no card; this is what it sets."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])
