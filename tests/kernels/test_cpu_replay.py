"""Groups of images and the memory of a replay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

replay = pytest.importorskip("accel.kernels.cpu.replay", reason="the C engine was not built", exc_type=ImportError)

MB = 1 << 20


@pytest.mark.parametrize(
    "batch, held, weights, threads, expected",
    [
        (64, MB // 4, 0, 2, 8),
        (64, MB // 4, MB, 2, 4),  # the weights take their part of the cache
        (64, 3 * MB, 0, 2, 64),  # one image is too large
        (1, MB // 4, 0, 2, 1),
        (8, MB // 4, 0, 16, 8),  # fewer groups than threads: the threads inside of each call
        (7, MB // 4, 0, 2, 7),  # seven images one by one leave a thread idle for an eighth of the time
        (7, MB // 4, 0, 1, 7),
        (21, MB // 4, 0, 2, 1),  # 11 against 10
        (60, MB // 4, 0, 2, 6),
    ],
)
def test_group_size(batch, held, weights, threads, expected):
    assert replay.group_size(batch, held, weights, threads) == expected


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 8), st.integers(-1, 1)), min_size=1, max_size=12))
def test_no_two_buffers_in_use_overlap(drawn):
    buffers = [
        replay._Buffer(torch.empty(size), index, index + life, outside)
        for index, (size, life, outside) in enumerate(drawn)
    ]
    offsets, total = replay.arrange(buffers)
    inside = [(b, o, o + b.tensor.nbytes) for b, o in zip(buffers, offsets) if b.outside < 0]
    for index, (buffer, start, end) in enumerate(inside):
        assert start % 64 == 0 and end <= total
        for other, low, high in inside[:index]:
            if other.last >= buffer.first:
                assert end <= low or high <= start


def test_memory_of_what_is_done_with_serves_again():
    buffers = [replay._Buffer(torch.empty(64), index, index + 1) for index in range(10)]
    assert replay.arrange(buffers)[1] == 2 * 64 * 4
