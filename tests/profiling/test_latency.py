import platform
import subprocess
import sys
import time

import pytest

from accel.errors import ConfigError
from accel.profiling.latency import Ratio, Timing, compare, ratio
from accel.profiling.machine import machine_record


def test_sides_take_turns_and_are_warmed_up():
    calls = []

    def side(name):
        def call():
            calls.append(name)
            time.sleep(0.0015)  # longer than the shortest sample, so one call a sample

        return call

    timings = compare({"a": side("a"), "b": side("b"), "c": side("c")}, repeats=3, warmup=2)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab"
    assert all(len(timing.samples_ms) == 3 and timing.median_ms >= 1.5 for timing in timings.values())


def test_short_calls_are_repeated_within_a_sample():
    timing = compare({"nothing": lambda: None}, repeats=2)["nothing"]
    assert timing.calls >= 100
    assert timing.median_ms < 0.1


def test_quantiles_and_ratios():
    slow, fast = Timing((8.0, 4.0, 6.0)), Timing((2.0, 2.0, 1.0))
    assert slow.median_ms == 6
    assert [slow.quantile_ms(q) for q in (0, 0.25, 0.5, 1)] == [4, 5, 6, 8]
    assert ratio(slow, fast) == Ratio(4.0, 2.0 + 0.2 * 2, 6.0 - 0.2 * 2)


@pytest.mark.parametrize(("sides", "repeats"), [({}, 3), ({"a": lambda: None}, 0)])
def test_nothing_to_time(sides, repeats):
    with pytest.raises(ConfigError, match="at least one side and one repeat"):
        compare(sides, repeats=repeats)


def test_errors_of_a_side_reach_the_caller():
    with pytest.raises(ZeroDivisionError):
        compare({"broken": lambda: 1 // 0}, repeats=1)


def test_machine_record_is_plain_and_complete():
    record = machine_record()
    assert {"cpu", "cores", "threads", "isa", "torch", "triton", "engine"} <= record.keys()
    assert record["cores"] >= 1 and record["threads"] >= 1
    assert record["engine"] in ("built", "not built")
    assert all(value is None or isinstance(value, (str, int)) for value in record.values())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the page faults are those of glibc's malloc")
def test_maps_of_a_settled_process_cost_no_page_faults():
    code = (
        "import resource, torch; from accel.profiling.latency import settle_allocator\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20): torch.zeros(1 << 22, dtype=torch.uint8)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "settle_allocator(); faults(); assert faults() < 1024, 'a fault for every page of every map'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
