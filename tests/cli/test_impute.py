"""`accel impute`: a file in, completed files and a report out, every cell that was there as it was written."""

import json
import re

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra impute brings pandas")
pytest.importorskip("sklearn", reason="the extra impute brings scikit-learn")

from accel.cli import impute  # noqa: E402
from accel.cli.main import main  # noqa: E402
from accel.vae import Imputer, memory  # noqa: E402

QUICK = ["--epochs", "2", "--quiet"]


def lines(separator=",", rows=60):
    rng = np.random.default_rng(0)
    found = [separator.join(("id", "size", "count", "colour", "note"))]
    for one in range(rows):
        size, count = f"{rng.normal():.2f}0", str(rng.poisson(3))  # trailing zeros are kept as written
        colour = str(rng.choice(["red", "blue"]))
        cells = [str(cell) if rng.random() > 0.2 else "" for cell in (size, count, colour)]
        found.append(separator.join((f"00{one}", *cells, '"a, b"')))
    return found


@pytest.fixture
def table(tmp_path):
    (path := tmp_path / "t.csv").write_text("\n".join(lines()) + "\n")
    return path


def test_csv_in_csv_and_report_out(table, tmp_path, capsys):
    out = tmp_path / "out"
    call = ["impute", str(table), "-o", str(out), "-m", "3", "--kind", "id=pass", "--format", "json", *QUICK]
    assert main(call) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["column"] for row in rows} == {"size", "count", "colour"}
    given = pd.read_csv(table, dtype=str)
    names = ["completed.csv", *(f"imputed_0{one}.csv" for one in (1, 2, 3))]
    for name in names:
        filled = pd.read_csv(out / name, dtype=str)
        assert list(filled.columns) == list(given.columns) and filled.notna().all(axis=None)
        assert (filled.where(given.notna()).fillna("") == given.fillna("")).all(axis=None)
        assert filled["colour"].isin(["red", "blue"]).all()
    assert all(re.fullmatch(r"\d+", count) for count in pd.read_csv(out / names[1], dtype=str)["count"])
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "handed through" in page and "http" not in page
    assert len(pd.read_csv(out / "calibration.csv")) == 3
    assert [column.name for column in Imputer.load(out / "imputer.safetensors").columns_] == list(given.columns)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(call) == 0  # a folder of its own is replaced, by the same
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".csv"} == {
        name: content for name, content in first.items() if name.endswith(".csv")
    }


def test_tsv_markers_and_no_check(tmp_path, capsys):
    (path := tmp_path / "t.tsv").write_text("\n".join(lines("\t")).replace("\t\t", "\t?\t") + "\n")
    out = tmp_path / "out"
    call = ["impute", str(path), "-o", str(out), "-m", "1", "--missing", "?", "--kind", "id=pass", "--no-check", *QUICK]
    assert main(call) == 0 and capsys.readouterr().out == ""
    filled = (out / "imputed_01.tsv").read_text()
    assert "?" not in filled and filled.splitlines()[0] == "\t".join(("id", "size", "count", "colour", "note"))
    assert not (out / "calibration.csv").exists() and "How far to trust" not in (out / "report.html").read_text()


@pytest.mark.parametrize("ending", ["parquet", "feather"])
def test_binary_tables_keep_their_types(ending, tmp_path):
    pytest.importorskip("pyarrow", reason="parquet and feather are read by pyarrow")
    frame = pd.DataFrame({"a": pd.array([1, 2, None, 4] * 10, dtype="Int16"), "b": pd.Categorical(["x", None] * 20)})
    getattr(frame, f"to_{ending}")(path := tmp_path / f"t.{ending}")
    assert main(["impute", str(path), "-o", str(tmp_path / "out"), "-m", "1", "--no-check", *QUICK]) == 0
    filled = getattr(pd, f"read_{ending}")(tmp_path / "out" / f"imputed_01.{ending}")
    assert filled.dtypes.equals(frame.dtypes) and filled.notna().all(axis=None)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("absent.csv", None, "there is no file"),
        ("t.xlsx", "a,b", "its name must end in .csv, .tsv, .parquet, .feather"),
        ("empty.csv", "", "is empty"),
        ("heads.csv", "a,b\n", "holds no rows"),
        ("one.csv", "a,b\n1,2\n", "the table has 1 rows"),
        ("twice.csv", "a,a\n1,2\n3,4\n", "two columns called 'a'"),
        ("ragged.csv", "a,b\n1,2\n3,4,5\n", "is no table of text"),
        ("binary.csv", b"\xff\xfe\x00\x81", "is no table of text"),
        ("t.parquet", "no parquet", "is no parquet file"),
        ("t.feather", "no feather", "is no feather file"),
        ("gap.csv", "a,b\n1,\n3,\n", "column 'b' holds no value"),
        ("inf.csv", "a,b\n1,inf\n3,4\n", "column 'b' holds an infinite value"),
        ("mixed.csv", "a,b\n1,x\n3,4\n", None),
    ],
)
def test_files_that_cannot_be_imputed_are_said_in_one_line(name, content, message, tmp_path, capsys):
    path, out = tmp_path / name, tmp_path / "out"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code = main(["impute", str(path), "-o", str(out), "-m", "1", "--no-check", *QUICK])
    error = capsys.readouterr().err
    if message is None:  # text that reads 4 is text
        assert code == 0
        return
    assert code == 1 and message in error and error.count("\n") == 1 and not out.exists()


def test_a_file_larger_than_memory_is_not_tried(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    assert main(["impute", str(table), "-o", str(tmp_path / "out"), *QUICK]) == 1
    assert "GB are free" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_bad_usage(table, tmp_path, capsys):
    assert main(["impute", str(table), "-o", str(tmp_path / "out"), "--kind", "colour"]) == 2
    assert main(["impute", str(table)]) == 2
    assert main(["impute", str(table), "-o", str(tmp_path / "out"), "--kind", "colour=tint", *QUICK]) == 1
    assert "cannot be 'tint'" in capsys.readouterr().err
    assert impute.column_kind("a=b=ordinal:x,y") == ("a=b", {"kind": "ordinal", "classes": ["x", "y"]})
