"""What the live page makes of a table, without the page."""

import pathlib

import pytest

pytest.importorskip("sklearn", reason="tables are imputed with scikit-learn")
pd = pytest.importorskip("pandas", reason="tables are read with pandas")

from accel.cli import live_table  # noqa: E402
from accel.errors import DataError  # noqa: E402


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(live_table, "_STEPS", 5)


def test_gaps_are_filled_and_marked_and_the_rest_is_as_it_was(tmp_path):
    given = pathlib.Path(live_table.draw_example(tmp_path))
    found = live_table.impute_file(str(given), tmp_path)
    assert found.file == tmp_path / "completed_plots.csv"
    before, after = pd.read_csv(given, dtype=str), pd.read_csv(found.file, dtype=str)
    gaps = before.isna().to_numpy()
    assert gaps.any() and not after.isna().to_numpy().any()
    assert (before.to_numpy()[~gaps] == after.to_numpy()[~gaps]).all()
    shown = gaps[gaps.any(1)][: live_table._SHOWN_ROWS]
    assert found.page.count('class="filled"') == int(shown.sum())
    assert f"<b>{gaps.sum()}</b> of {gaps.size} cells" in found.page


def test_what_stands_in_a_table_is_no_html(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text("<b>a</b>,name\n" + "".join(f"{k},<script>{k % 2}\n" for k in range(20)) + ",<script>0\n")
    found = live_table.impute_file(str(path), tmp_path)
    assert "<script>" not in found.page and "<b>a" not in found.page and "&lt;script&gt;0" in found.page


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("full.csv", "a,b\n1,2\n3,4\n", r"^full\.csv has no gaps to fill: leave some cells empty$"),
        ("long.csv", "a,b\n" + "1,\n" * 30, r"^long\.csv has 30 rows of 2 columns, and this page takes 50 cells"),
        ("empty.csv", "a,b\n", r"^empty\.csv holds no rows"),
        ("notes.txt", "a,b\n1,2\n", r"^notes\.txt is no table that can be read"),
        ("fake.parquet", "a,b\n1,2\n", r"^fake\.parquet is no parquet file"),
    ],
)
def test_what_is_refused_is_refused_in_a_line(tmp_path, monkeypatch, name, text, said):
    monkeypatch.setattr(live_table, "MOST_CELLS", 50)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        live_table.impute_file(str(tmp_path / name), tmp_path)


def test_training_is_as_long_for_every_table(monkeypatch):
    monkeypatch.undo()
    for rows in (2, 100, 128, 5000, 100_000):
        steps = live_table.epochs_for(rows) * rows / min(rows, 128)
        assert 0.5 * live_table._STEPS <= steps <= 1.5 * live_table._STEPS
