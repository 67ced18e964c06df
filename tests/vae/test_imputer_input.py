"""Tables that cannot be imputed, or not so: one clear line each, never a silent NaN, never a dropped column."""

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra impute brings pandas")
pytest.importorskip("sklearn", reason="the extra impute brings scikit-learn")

from accel.errors import ConfigError, DataError  # noqa: E402
from accel.vae import MCAR, Imputer, memory  # noqa: E402

SMALL = {"epochs": 2, "width": 8, "depth": 1, "latent": 2, "random_state": 0}


def frame(**columns):
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"x": rng.normal(size=40), "c": rng.choice(["u", "v"], 40)} | columns)
    made.loc[::7, "x"] = np.nan
    return made


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize(
    "column, message",
    [
        ([None] * 40, "column 'y' holds no value"),
        ([np.nan] * 40, "column 'y' holds no value"),
        (pd.array([pd.NA] * 40, dtype="Int64"), "column 'y' holds no value"),
        (pd.Categorical([None] * 40, categories=["a"]), "column 'y' holds no value"),
        ([1.0, np.inf] * 20, "column 'y' holds an infinite value"),
        (pd.array([1.0, -np.inf] * 20, dtype="Float64"), "column 'y' holds an infinite value"),
        ([1, "a"] * 20, "column 'y' mixes types, int and str"),
        ([True, "a"] * 20, "column 'y' mixes types, bool and str"),
        ([(1, 2), (3, 4)] * 20, "column 'y' mixes types, tuple"),
        ([f"name {one}" for one in range(40)] * 1, None),
        ([1e308, -1e308] * 20, "too large for a mean"),
        ([1j, 2j] * 20, "complex"),
    ],
)
def test_columns_that_cannot_be_read(column, message):
    if message is None:  # forty names are still classes
        assert Imputer(**SMALL).fit_transform(frame(y=column)).notna().all(axis=None)
        return
    with pytest.raises(DataError, match=message) as error:
        Imputer(**SMALL).fit(frame(y=column))
    assert one_line(error)
    handed = Imputer({"y": "pass"}, **SMALL).fit_transform(frame(y=column))
    pd.testing.assert_series_equal(handed["y"], frame(y=column)["y"])


def test_more_classes_than_can_be_told_apart():
    rows = pd.DataFrame({"x": np.arange(300.0), "y": [f"name {one}" for one in range(300)]})
    with pytest.raises(DataError, match="column 'y' holds 300 different classes, more than 200"):
        Imputer(**SMALL).fit(rows)


def test_constant_columns_are_filled_with_their_value():
    values = frame(
        number=0.1, count=[3, None] * 20, word=["w", None] * 20, flag=pd.array([True, None] * 20, dtype="boolean")
    )
    values.loc[::3, "number"] = np.nan
    imputer = Imputer(**SMALL).fit(values)
    for filled in (imputer.transform(values), *imputer.impute(values, 2)):
        assert (filled["number"] == 0.1).all() and (filled["count"] == 3).all() and filled["flag"].all()
        assert (filled["word"] == "w").all()
    lower, upper = imputer.intervals(values)
    assert (lower["number"] == 0.1).all() and (upper["number"] == 0.1).all()
    assert (imputer.class_probabilities(values)["word"] == 1).all(axis=None)
    only = pd.DataFrame({"a": [1.0, None, 1.0]})
    assert (Imputer(**SMALL).fit(only).impute(only, 1)[0]["a"] == 1).all()


def test_constant_and_empty_columns_of_arrays():
    x = np.column_stack([np.full(30, 2.5), np.arange(30.0)])
    x[::4, 0] = np.nan
    assert (Imputer(**SMALL).fit_transform(x)[:, 0] == 2.5).all()
    x[:, 0] = np.nan
    with pytest.raises(DataError, match="column '0' holds no value"):
        Imputer(**SMALL).fit(x)


def test_classes_that_were_not_there_when_it_was_fitted():
    imputer = Imputer(**SMALL).fit(frame())
    with pytest.raises(DataError, match="column 'c' holds 'w', which no row had when it was fitted") as error:
        imputer.transform(frame(c=["u", "w"] * 20))
    assert one_line(error)
    with pytest.raises(DataError, match="column 'c' holds 'w'"):
        imputer.partial_fit(frame(c=["u", "w"] * 20))


def test_classes_that_are_absent_when_it_imputes():
    """A frame of one class is imputed; a categorical dtype that cannot hold what is drawn is refused."""
    both = frame(c=pd.Categorical(["u", "v"] * 20))
    imputer = Imputer(**SMALL).fit(both)
    one = frame(c=pd.Categorical(["u"] * 39 + [None], categories=["u", "v"]))
    assert imputer.transform(one)["c"].notna().all()
    narrow = frame(c=pd.Categorical(["u"] * 20 + [None] * 20, categories=["u"]))
    with pytest.raises(DataError, match=r"categories of column 'c' lack 'v'.*add_categories"):
        for _ in imputer.impute(narrow, 20):
            pass


def test_tables_of_another_shape():
    with pytest.raises(DataError, match="two columns are called 'x'"):
        Imputer(**SMALL).fit(pd.DataFrame(np.zeros((9, 2)), columns=["x", "x"]))
    with pytest.raises(DataError, match="the table has no columns"):
        Imputer(**SMALL).fit(pd.DataFrame(index=range(4)))
    for rows in (0, 1):
        with pytest.raises(DataError, match=f"the table has {rows} rows"):
            Imputer(**SMALL).fit(frame()[:rows])
        with pytest.raises(ValueError, match=f"{rows} sample"):
            Imputer(**SMALL).fit(np.zeros((rows, 3)))
    imputer = Imputer(**SMALL).fit(frame())
    with pytest.raises(DataError, match="the table has 0 rows"):
        imputer.transform(frame()[:0])
    for other in (frame()[["x"]], frame()[["c", "x"]], frame(z=1.0)):
        with pytest.raises(ValueError, match="feature names"):
            imputer.transform(other)
    assert imputer.transform(frame()[:1]).notna().all(axis=None)


def test_a_single_gap_and_none_at_all():
    rows = frame().fillna({"x": 0.0})
    imputer = Imputer(**SMALL).fit(rows)
    pd.testing.assert_frame_equal(imputer.transform(rows), rows)
    rows.loc[5, "x"] = np.nan
    filled = Imputer(**SMALL).fit_transform(rows)
    assert filled.notna().all(axis=None) and filled.drop(index=5).equals(rows.drop(index=5))
    empty = pd.DataFrame({"x": [np.nan], "c": [None]})
    assert imputer.transform(empty).notna().all(axis=None)  # a row of gaps is drawn as a whole


def test_masks_of_another_size():
    imputer = Imputer(**SMALL).fit(frame())
    for mask in (np.zeros((40, 3), bool), np.zeros((7, 2), bool), np.zeros((40, 2)), np.zeros((2, 3, 2), bool), [True]):
        with pytest.raises(DataError, match="a mask for 40 rows of 2 columns must be bool") as error:
            imputer.sample_conditional(frame(), mask, 2)
        assert one_line(error)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"columns": {"z": "real"}}, "columns names 'z', which the table does not have"),
        ({"columns": {"x": "complex"}}, "column 'x' cannot be 'complex'"),
        ({"columns": {"x": {"type": "real"}}}, "takes kind, low, high and classes"),
        ({"columns": {"x": {"low": 2.0, "high": 1.0}}}, "needs low < high"),
        ({"columns": {"c": "ordinal"}}, "holds text: give its order"),
        ({"scale": "auto"}, "scale must be 'learned' or 'fixed'"),
        ({"masks": 0.3}, "masks must be a MaskGenerator"),
        ({"epochs": 0}, "epochs must be a whole number"),
        ({"width": 2.5}, "width must be a whole number"),
        ({"validation": 1.0}, "validation must lie in"),
    ],
)
def test_settings_that_cannot_be_obeyed(settings, message):
    with pytest.raises(ConfigError, match=message):
        Imputer(**(SMALL | settings)).fit(frame())


@pytest.mark.parametrize(
    "kind, message",
    [
        ("nonnegative", "holds -"),
        ("count", "holds -"),
        ({"kind": "real", "high": 0.5}, "another kind or other bounds"),
        ({"kind": "integer"}, "holds whole numbers and"),
    ],
)
def test_values_that_their_kind_excludes(kind, message):
    with pytest.raises(DataError, match=message):
        Imputer({"x": kind}, **SMALL).fit(frame())
    with pytest.raises(DataError, match=r"column 'c' is str, not numbers|column 'c'.*no number"):
        Imputer({"c": kind}, **SMALL).fit(frame())


def test_bounds_are_kept():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(200, 2))
    x[rng.random(x.shape) < 0.5] = np.nan
    imputer = Imputer({0: {"kind": "real", "low": 0.0, "high": 1.0}, 1: "nonnegative"}, **SMALL).fit(x)
    for filled in (imputer.transform(x), *imputer.impute(x, 20)):
        assert filled.min() >= 0 and filled[:, 0].max() <= 1
    grades = pd.DataFrame({"g": ["low", "high", None, "low"] * 10, "x": rng.normal(size=40)})
    ordered = Imputer({"g": {"kind": "ordinal", "classes": ["low", "mid", "high"]}}, **SMALL).fit(grades)
    assert ordered.columns_[0].classes == ("low", "mid", "high")


def test_tables_larger_than_memory_are_said_before(monkeypatch):
    imputer = Imputer(**SMALL).fit(frame())
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    for call in (
        lambda: imputer.impute(frame(), 10),
        lambda: imputer.sample_conditional(frame(), np.zeros((40, 2), bool), 100),
        lambda: Imputer(**SMALL).fit(frame().loc[np.arange(40).repeat(2)].reset_index(drop=True)),
    ):
        with pytest.raises(DataError, match=r"0\.0 GB are free"):
            call()
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert len(imputer.impute(frame(), 2)) == 2


def test_memory_is_read_from_the_machine():
    available = memory.available_bytes()
    assert available is None or 1e6 < available < 1e15


def test_how_many_must_be_a_number():
    imputer = Imputer(masks=MCAR(0.2), **SMALL).fit(frame())
    for call in (lambda: imputer.impute(frame(), 0), lambda: imputer.intervals(frame(), 1.5)):
        with pytest.raises(ConfigError, match=r"whole number of at least 1|between 0 and 1"):
            call()
