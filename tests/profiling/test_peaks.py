"""What a machine reaches at the most."""

import pytest
import torch

from accel.profiling.peaks import Peaks, measured_peaks


def test_the_lower_of_two_ceilings():
    peaks = Peaks({"fp32": 100.0, "int8": 400.0}, 10.0)
    assert [peaks.limit("fp32", intensity) for intensity in (1, 10, 50)] == [10, 100, 100]
    assert peaks.limit("int8", 20) == 200


def test_ceilings_are_measured():
    peaks = measured_peaks()
    assert set(peaks.gops) == {"fp32", "bf16", "int8"} and all(1 < rate < 1e6 for rate in peaks.gops.values())
    assert 0.5 < peaks.gbps < 1e4
    assert set(measured_peaks(torch.float64).gops) == {"fp32", "fp64", "bf16", "int8"}
    assert peaks.limit("fp32", 1e9) == pytest.approx(peaks.gops["fp32"])
