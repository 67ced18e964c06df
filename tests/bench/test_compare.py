"""Two files of rows compared: the interval, and where no verdict is given."""

import json
import math

import pytest

from accel.bench.compare import compare, interval
from accel.cli import main
from accel.errors import ConfigError, DataError

MACHINE = {"cpu": "a", "threads": 2, "isa": "AVX2", "torch": "2.14"}


def write(path, rows, kind="networks", **machine):
    rest = {"error": 0.0, "correct": True}
    lines = [{**row, **rest, **times, "kind": kind, "machine": {**MACHINE, **machine}} for row, times in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def speeds(values, name="speedup"):
    return [({"case": "net", "batch": batch}, {name: value}) for batch, value in enumerate(values)]


def test_the_interval_is_students_over_the_pairs(tmp_path):
    old, new = write(tmp_path / "old", speeds([2, 2, 2])), write(tmp_path / "new", speeds([2.2, 2.3, 2.4]))
    (row,) = compare(old, new)
    logs = [math.log(ratio) for ratio in (1.1, 1.15, 1.2)]
    mean = sum(logs) / 3
    half = 4.302653 * math.sqrt(sum((log - mean) ** 2 for log in logs) / 2) / math.sqrt(3)  # t of 2 degrees, 97.5 %
    assert (row["column"], row["rows"], row["verdict"]) == ("speedup", 3, "faster")
    expected = [round(math.exp(value), 4) for value in (mean, mean - half, mean + half)]
    assert [row["ratio"], row["low"], row["high"]] == expected
    (back,) = compare(new, old)
    assert back["verdict"] == "slower" and back["ratio"] == pytest.approx(1 / row["ratio"], abs=1e-3)
    assert interval([0.0, 0.0]) == (1, 1, 1) and interval([0.5])[1:] == (0, math.inf)


def test_differences_inside_the_noise_are_no_verdict(tmp_path):
    old, new = write(tmp_path / "old", speeds([2, 2, 2, 2])), write(tmp_path / "new", speeds([2.2, 1.9, 2.1, 1.85]))
    (row,) = compare(old, new)
    assert row["verdict"] == "no verdict: inside the noise" and row["low"] < 1 < row["high"]


def test_milliseconds_count_where_nothing_was_measured_beside(tmp_path):
    old = write(tmp_path / "old", speeds([4.0, 8.0, 16.0], "ms"))
    (row,) = compare(old, write(tmp_path / "new", speeds([2.0, 4.0, 8.0], "ms")))
    assert (row["column"], row["ratio"], row["verdict"]) == ("ms", 2, "faster")


def test_rivals_and_wrong_rows_do_not_count(tmp_path):
    def rows(ours):
        forms = {"dense_nchw": 1.0, "openvino int8": 9.0, "whole int8": ours, "0.5 fitted int8": 2 * ours}
        return [({"case": "net", "batch": 1, "form": form}, {"speedup": value}) for form, value in forms.items()]

    old, new = (write(tmp_path / str(ours), rows(ours), "eight_bits") for ours in (2.0, 3.0))
    (row,) = compare(old, new)
    assert (row["rows"], row["ratio"], row["verdict"]) == (2, 1.5, "no verdict: fewer than 3 pairs of rows")


@pytest.mark.parametrize(
    ("rows", "more", "error", "said"),
    [
        (speeds([1.5, 2], "ms")[:1] * 2, {}, DataError, "two rows of {'case'"),
        ([({"case": "other"}, {"speedup": 2})], {}, DataError, "share no row"),
        (speeds([2, 2]), {"threads": 1}, ConfigError, "threads is 2 in the one file and 1 in the other"),
        (speeds([2, 2]), {"kind": "masked"}, ConfigError, "kind networks, .* of masked"),
        (speeds([2, 2]), {"kind": "drawn"}, DataError, "rows of drawn, expected of one kind"),
    ],
)
def test_what_cannot_be_compared(rows, more, error, said, tmp_path):
    old, new = write(tmp_path / "old", speeds([2, 2])), write(tmp_path / "new", rows, **more)
    with pytest.raises(error, match=said):
        compare(old, new)


def test_rows_that_do_not_say_whether_they_are_right(tmp_path):
    (tmp_path / "rows").write_text('{"case": "net", "kind": "networks", "speedup": 2}\n')
    with pytest.raises(DataError, match="holds no rows of 'accel bench --output'"):
        compare(tmp_path / "rows", tmp_path / "rows")


def test_the_command(tmp_path, capsys):
    old, new = write(tmp_path / "old", speeds([2, 2, 2])), write(tmp_path / "new", speeds([2.2, 2.3, 2.4]))
    assert main.main(["bench", "--compare", str(old), str(new), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["verdict"] == "faster"
    assert main.main(["bench", "--compare", str(old), str(tmp_path / "none")]) == 1
    assert "holds no rows of 'accel bench --output'" in capsys.readouterr().err
