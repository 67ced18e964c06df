"""PACT's relaxed objective is continuous along a line in the heads' parameters, and ACT's is not."""

import pytest

from accel.bench import halting_continuity
from accel.bench.halting_continuity import largest_jump
from accel.bench.runner import Settings, read_cases

FILE = "profiles/cases/halting_continuity.toml"


def test_only_pact_is_continuous(request):
    (case,) = read_cases(request.config.rootpath / FILE)["case"]
    rows = {row["policy"]: row for row in halting_continuity.rows(case, Settings(quick=True))}
    assert all(row["correct"] for row in rows.values())
    assert rows["PACT, pictures"]["jump"] < 1e-7 and rows["PACT, positions"]["jump"] < 1e-7
    assert rows["ACT"]["jump"] > 1e-3 and rows["SACT"]["jump"] > 1e-3
    first, second = halting_continuity.draw(list(rows.values())).axes
    labels = [text.get_text().split(":")[0] for panel in (first, second) for text in panel.get_legend().get_texts()]
    assert labels == list(rows)


@pytest.mark.parametrize(("f", "expected"), [(lambda t: t**3, 0.0), (lambda t: 2.0 * (t > 0.3) + t, 2.0)])
def test_the_largest_jump_of_known_functions(f, expected):
    where = [k / 10 - 1 for k in range(21)]
    jump, place = largest_jump(f, where, [f(t) for t in where])
    assert jump == pytest.approx(expected, abs=1e-8)
    assert expected == 0 or place == pytest.approx(0.3, abs=1e-6)
