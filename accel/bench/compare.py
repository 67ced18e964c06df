"""`accel bench --compare OLD NEW`: whether the rows of one file are faster than those of another, or differ by noise.

Rows are paired by what they say before their `error`: the case, the layer, the batch. Of every column of speed-ups,
which each run measured beside its own rivals, and else of milliseconds, the logarithms of the pairs' ratios have a mean
and a 95 % interval (Student's t); an interval that holds 1 is no verdict.
"""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accel.bench.runner import KINDS, Row, load_kind
from accel.errors import ConfigError, DataError

FEWEST = 3  # pairs that a verdict takes
_MACHINE = ("cpu", "cores", "threads", "isa", "gpu", "torch")
Rows = Mapping[tuple, Row]


def compare(old: pathlib.Path, new: pathlib.Path) -> list[Row]:
    """A row for every column of times: how many pairs, `ratio` (how many times as fast the new rows are) with `low` and
    `high`, and the verdict.

    Raises:
        DataError: a file that holds no rows of one kind, or several rows of one thing; files that share none.
        ConfigError: rows of different kinds, machines or versions of torch.
    """
    (kind, before), (other, after) = _read(old), _read(new)
    if kind != other:
        raise ConfigError(f"{old} holds rows of kind {kind}, {new} of {other}: they are not to be compared")
    pairs = [(before[key], after[key]) for key in before if key in after]
    if not pairs:
        raise DataError(f"{old} and {new} share no row: the cases of both must have been measured")
    _check_machines(pairs)
    columns = dict.fromkeys(name for pair in pairs for row in pair for name in row)
    timed = [name for name in columns if name.startswith("speedup")] or [
        name for name in columns if name == "ms" or name.startswith("ms_")
    ]
    return [row for name in timed if (row := _verdict(name, pairs)) is not None]


def interval(logs: Sequence[float]) -> tuple[float, float, float]:
    """exp of the mean of logarithms, and the ends of its 95 % interval by Student's t; of one, no end."""
    from scipy import stats

    mean, spread = statistics.fmean(logs), math.inf
    if len(logs) > 1:
        spread = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - spread), math.exp(mean + spread)


def _read(path: pathlib.Path) -> tuple[str, Rows]:
    """(the kind, the right rows by what they say of themselves, without rivals')."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kinds = {line["kind"] for line in lines}
        right = [line for line in lines if line["correct"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no rows of 'accel bench --output' ({error!r})") from error
    if len(kinds) != 1 or not kinds <= set(KINDS):
        raise DataError(f"{path} holds rows of {', '.join(sorted(map(str, kinds))) or 'no kind'}, expected of one kind")
    (kind,) = kinds
    is_rival: Callable[[Row], bool] = getattr(load_kind(kind), "is_rival", lambda row: False)
    found: dict[tuple, Row] = {}
    for line in right:
        if is_rival(line):
            continue
        key = _key(line)
        if key in found:
            raise DataError(f"{path} holds two rows of {dict(key)}: measure into a new file")
        found[key] = line
    return kind, found


def _key(row: Row) -> tuple[tuple[str, Any], ...]:
    """What a row says before what was found."""
    names = list(row)
    end = min(names.index(name) for name in ("error", "correct") if name in names)
    return tuple((name, json.dumps(row[name])) for name in names[:end])


def _check_machines(pairs: Sequence[tuple[Row, Row]]) -> None:
    for left, right in pairs:
        for name in _MACHINE:
            one, other = (row.get("machine", {}).get(name) for row in (left, right))
            if one != other:
                raise ConfigError(f"{name} is {one} in the one file and {other} in the other: no verdict")


def _verdict(column: str, pairs: Sequence[tuple[Row, Row]]) -> Row | None:
    values = [(left[column], right[column]) for left, right in pairs if left.get(column) and right.get(column)]
    sign = 1 if column.startswith("speedup") else -1
    # what is 1 in both is the fastest dense form beside itself
    logs = [sign * math.log(new / old) for old, new in values if new != old or new != 1]
    if not logs:
        return None
    ratio, low, high = interval(logs)
    said = "faster" if low > 1 else "slower" if high < 1 else "no verdict: inside the noise"
    if len(logs) < FEWEST:
        said = f"no verdict: fewer than {FEWEST} pairs of rows"
    ends = (round(end, 4) if math.isfinite(end) else None for end in (low, high))
    return {"column": column, "rows": len(logs), "ratio": round(ratio, 4), **dict(zip(("low", "high"), ends))} | {
        "verdict": said
    }
