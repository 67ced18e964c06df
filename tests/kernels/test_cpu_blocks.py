"""Large tensors of the C engine: their memory serves the next one of the same size, and is given back in the end."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

binding = pytest.importorskip("accel.kernels.cpu.binding", reason="the C engine was not built", exc_type=ImportError)

from accel.kernels.cpu import _engine  # noqa: E402
from accel.kernels.cpu.arguments import LARGE, empty  # noqa: E402
from accel.kernels.geometry import CallGeometry  # noqa: E402
from accel.kernels.positions import PositionSet  # noqa: E402
from accel.profiling.memory import peak_activation_bytes  # noqa: E402
from accel.tests.threads import in_threads  # noqa: E402

SHAPE = (2, 64, 256, 384)  # 50 MB


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_is_what_torch_empty_gives(layout):
    large, expected = empty(SHAPE, layout), torch.empty(SHAPE, memory_format=layout)
    assert large.dtype is torch.float32 and large.shape == expected.shape and large.stride() == expected.stride()
    large.fill_(1)
    assert float(large.sum(dtype=torch.float64)) == large.numel()


def test_memory_serves_the_next_of_its_size_once_no_view_is_left():
    first = empty(SHAPE)
    place, view = first.data_ptr(), first[1:]
    del first
    second = empty(SHAPE)
    assert second.data_ptr() != place
    del view
    third = empty(SHAPE)
    assert third.data_ptr() == place


def test_keeps_no_more_than_twice_what_was_in_use():
    """In a process of its own, where no other test has used more."""
    script = """
from accel.kernels.cpu import _engine
from accel.kernels.cpu.arguments import LARGE, empty
both = [empty((LARGE // 4,)) for _ in range(2)]
assert _engine.kept_bytes() == 0
del both
assert _engine.kept_bytes() == 2 * LARGE
for i in range(1, 16):  # sizes that nobody asks for again
    empty((LARGE // 4 + i * 2**19,))
    assert 0 < _engine.kept_bytes() <= 4 * LARGE, (i, _engine.kept_bytes())
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_small_tensors_are_torchs_own():
    before = _engine.kept_bytes()
    del (small := [empty((4, 16, 8, 8))])[:]
    assert _engine.kept_bytes() == before and small == []


def test_a_meter_of_memory_sees_them():
    def two_maps():
        kept = empty(SHAPE)
        return kept, empty(SHAPE)

    assert peak_activation_bytes(two_maps) >= 2 * 4 * torch.Size(SHAPE).numel()


def test_a_large_map_is_a_convolution():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 700, 900, generator=g)
    weight = torch.randn(16, 3, 3, 3, generator=g)
    full = PositionSet.full(700, 900)
    for _ in range(2):  # in fresh memory, and in what the first one leaves
        geometry = CallGeometry((1, 700, 900), (700, 900), (1, 1), (1, 1, 1, 1), (1, 1), 1)
        out = binding.perforated_conv2d(
            x, weight, None, full.positions, full.nearest, None, None, geometry, "none", False
        )
        assert out.numel() * 4 >= LARGE
        assert torch.allclose(out, F.conv2d(x, weight, padding=1), atol=1e-4)
        del out


def test_threads_share_them():
    wrong = []

    def work(value: float) -> None:
        for _ in range(20):
            mine = empty((LARGE // 4,)).fill_(value)
            if not bool((mine == value).all()):
                wrong.append(value)

    in_threads(work, ((float(i),) for i in range(4)))
    assert not wrong
