"""The imputer: scikit-learn's contract, what comes back unchanged, draws that belong to rows, files."""

import copy
import json
import math
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

pd = pytest.importorskip("pandas", reason="the extra impute brings pandas")
pytest.importorskip("sklearn", reason="the extra impute brings scikit-learn")

from safetensors.torch import save_file  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from accel.errors import WeightsError  # noqa: E402
from accel.vae import MAR, MCAR, Groups, Imputer, MaskList, Mixture, Monotone  # noqa: E402
from accel.vae.mask_generators import OfTable  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {"epochs": 5, "width": 16, "depth": 1, "latent": 4, "random_state": 0}


@parametrize_with_checks([Imputer(epochs=1, width=8, depth=1, latent=2, random_state=0)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def mixed(rows=200, gaps=0.3, seed=0):
    """A frame of every kind of column; `load` says a lot about `speed` and `grade`."""
    rng = np.random.default_rng(seed)
    load = rng.normal(size=rows)
    frame = pd.DataFrame(
        {
            "load": load.astype(np.float32),
            "speed": 2 * load + 0.1 * rng.normal(size=rows),
            "visits": pd.array(rng.poisson(3, rows), dtype="Int64"),
            "change": pd.array(rng.integers(-5, 6, rows), dtype="Int16"),
            "city": pd.array(rng.choice(["Rome", "Oslo", "Bern"], rows), dtype="string"),
            "word": rng.choice(["yes", "no"], rows).astype(object),
            "grade": pd.Categorical.from_codes(
                (load > 0).astype(int) + (load > 1), ["low", "mid", "high"], ordered=True
            ),
            "colour": pd.Categorical(rng.choice(["red", "blue"], rows)),
            "open": pd.array(rng.random(rows) < 0.4, dtype="boolean"),
            "when": pd.date_range("2024-01-01", periods=rows),
            "same": pd.array([7] * rows, dtype="Int64"),
            "id": np.arange(rows),
        },
        index=[f"row {one}" for one in range(rows)],
    )
    for name in frame.columns[:-1]:
        frame.loc[rng.random(rows) < gaps, name] = pd.NA if frame[name].dtype.kind not in "fM" else None
    return frame


@pytest.fixture(scope="module")
def frame():
    return mixed()


@pytest.fixture(scope="module")
def fitted(frame):
    return Imputer({"id": "pass"}, **SMALL).fit(frame)


def test_kinds_are_found(fitted):
    kinds = {column.name: column.kind for column in fitted.columns_}
    assert kinds == {
        "load": "real",
        "speed": "real",
        "visits": "count",
        "change": "integer",
        "city": "categorical",
        "word": "categorical",
        "grade": "ordinal",
        "colour": "categorical",
        "open": "boolean",
        "when": "pass",
        "same": "count",
        "id": "pass",
    }


def test_a_frame_comes_back_whole_with_its_dtypes_and_what_was_there(fitted, frame):
    for filled in (fitted.transform(frame), *fitted.impute(frame, 3)):
        assert list(filled.columns) == list(frame.columns) and filled.dtypes.equals(frame.dtypes)
        assert filled.index.equals(frame.index) and filled["when"].equals(frame["when"])
        for name in frame.columns.drop("when"):
            known = frame[name].notna()
            assert filled[name][known].equals(frame[name][known]) and filled[name].notna().all()
        assert (filled["visits"] >= 0).all() and (filled["same"] == 7).all()
    before = frame.copy()
    fitted.transform(frame)
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_array_comes_back_byte_for_byte(dtype):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(100, 3)) * [1e-9, 1, 1e9]).astype(dtype)
    x[0, 1] = -0.0
    x[rng.random(x.shape) < 0.3] = np.nan
    filled = Imputer(**SMALL).fit(x).transform(x)
    known = ~np.isnan(x)
    assert filled.dtype == dtype and filled[known].tobytes() == x[known].tobytes() and not np.isnan(filled).any()
    assert (np.abs(filled[:, 0]) < 1e-7).all()


def test_a_row_by_itself_gets_what_it_gets_among_others(fitted, frame):
    shuffled = frame.sample(frac=1, random_state=1)
    means, draws = fitted.transform(frame), fitted.impute(frame, 3)[2]
    pd.testing.assert_frame_equal(fitted.transform(shuffled), means.loc[shuffled.index])
    pd.testing.assert_frame_equal(fitted.impute(shuffled, 5)[2], draws.loc[shuffled.index])
    for one in range(0, 200, 40):
        pd.testing.assert_frame_equal(fitted.transform(frame.iloc[one : one + 1]), means.iloc[one : one + 1])
        pd.testing.assert_frame_equal(fitted.impute(frame.iloc[one : one + 1], 3)[2], draws.iloc[one : one + 1])


def test_files_bring_back_the_same(fitted, frame, tmp_path):
    path = tmp_path / "imputer.safetensors"
    fitted.save(path)
    loaded = Imputer.load(path)
    assert loaded.columns_ == fitted.columns_ and loaded.get_params() == fitted.get_params()
    pd.testing.assert_frame_equal(loaded.transform(frame), fitted.transform(frame))
    for one, other in zip(loaded.impute(frame, 3), fitted.impute(frame, 3)):
        pd.testing.assert_frame_equal(one, other)
    pickled = pickle.loads(pickle.dumps(fitted))
    pd.testing.assert_frame_equal(pickled.transform(frame), fitted.transform(frame))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_another_process_draws_the_same(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[::3, 0] = np.nan
    imputer = Imputer(**SMALL).fit(x)
    imputer.save(tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import numpy as np, sys; from accel.vae import Imputer\n"
        "np.save('y.npy', Imputer.load('m.safetensors').impute(np.load('x.npy')[:10], 2)[1])"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), imputer.impute(x, 2)[1][:10])


def test_masks_and_kinds_go_into_files(tmp_path):
    masks = Mixture(
        (MCAR(0.3), MAR(0.4, (0,)), Monotone(), Groups(((0, 1),)), MaskList(((True, False, False),), (1.0,)))
    )
    x = np.abs(np.random.default_rng(0).normal(size=(60, 3)))
    given = {0: "nonnegative", 2: {"kind": "real", "low": -1.0, "high": 9.0}}
    imputer = Imputer(given, masks=masks, **SMALL).fit(x)
    imputer.save(tmp_path / "m.safetensors")
    loaded = Imputer.load(tmp_path / "m.safetensors")
    assert loaded.masks == masks and loaded.columns == given and loaded.columns_[2].high == 9.0


def test_masks_number_the_columns_of_the_table():
    """Columns that are handed through or constant count, though the model never sees them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    x[:, 1] = 3.0
    given = {0: "pass"}
    for masks in (MaskList(((False, False, True, False),)), MAR(0.4, (3,)), Groups(((1, 3),)), Monotone((3, 2, 1, 0))):
        assert Imputer(given, masks=masks, **SMALL).fit(x).model_ is not None
    cells = torch.randn(50, 2)
    hidden = OfTable(MaskList(((False, False, True, False),)), (2, 3), 4)(cells)
    assert hidden[:, 0].all() and not hidden[:, 1].any()
    hidden = OfTable(MAR(0.5, (3,), strength=100.0), (2, 3), 4)(cells)
    assert not hidden[:, 1].any() and cells[hidden[:, 0], 1].min() > cells[~hidden[:, 0], 1].max() - 0.3


def test_damaged_and_foreign_files_are_refused(fitted, tmp_path):
    fitted.save(path := tmp_path / "m.safetensors")
    whole = path.read_bytes()
    with pytest.raises(WeightsError, match="cannot read"):
        Imputer.load(tmp_path / "absent")
    for content in (whole[: len(whole) // 2], b"", b"PK nonsense", pickle.dumps(fitted.columns_)):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"m\.safetensors"):
            Imputer.load(path)
    tensors = {name: tensor.contiguous() for name, tensor in fitted.model_.state_dict().items()}
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="holds another model"):
        Imputer.load(path)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(json.loads(whole[8 : 8 + length])["__metadata__"]["skimconv"])
    changes = (
        {"version": 99},
        {"columns": header["columns"][:3]},
        {"settings": {}},
        {"settings": header["settings"] | {"width": 8}},
    )
    for change in changes:
        save_file(tensors, path, {"skimconv": json.dumps(header | change)})
        with pytest.raises(WeightsError, match=r"version 99|damaged imputer"):
            Imputer.load(path)
    with pytest.raises(WeightsError, match="cannot write"):
        fitted.save(path / "in a file")


def test_new_rows_and_pipelines(fitted, frame):
    fresh = mixed(30, seed=5)
    assert fitted.transform(fresh).drop(columns="when").notna().all(axis=None)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    x[rng.random(x.shape) < 0.2] = np.nan
    assert np.isfinite(make_pipeline(Imputer(**SMALL), StandardScaler()).fit_transform(x)).all()
    named = Imputer(**SMALL).set_output(transform="pandas").fit(pd.DataFrame(x, columns=list("abc")))
    assert list(named.transform(pd.DataFrame(x, columns=list("abc"))).columns) == list("abc")
    assert clone(fitted).get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        Imputer().transform(x)


def test_fitting_twice_is_the_same_and_leaves_torch_alone(frame):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    imputer = Imputer({"id": "pass"}, **SMALL).fit(frame)
    first = imputer.transform(frame)
    pd.testing.assert_frame_equal(imputer.fit(frame).transform(frame), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_partial_fit_goes_on_from_the_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    x[:, 1] = 2 * x[:, 0]
    imputer = Imputer(**{**SMALL, "epochs": 20}).partial_fit(x)
    columns, first, looks = imputer.columns_, copy.deepcopy(imputer.model_.state_dict()), len(imputer.bounds_)
    for _ in range(3):
        imputer.partial_fit(x[:200])
    assert imputer.columns_ is columns and len(imputer.bounds_) > looks
    assert max(imputer.bounds_[looks:]) > imputer.bounds_[0]
    moved = [not (first[name] == tensor).all() for name, tensor in imputer.model_.state_dict().items()]
    assert any(moved)


def test_it_learns_what_there_is_to_learn():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=600)})
    frame["b"] = 3 * frame["a"] + 0.3 * rng.normal(size=600) + 10
    frame["c"] = np.where(frame["a"] > 0, "up", "down")
    lacking = frame.copy()
    lacking.loc[400:, "b"] = np.nan
    lacking.loc[400:, "c"] = None
    imputer = Imputer(epochs=150, width=32, depth=2, latent=4, learning_rate=3e-3, random_state=0).fit(lacking)
    assert max(imputer.bounds_) > imputer.bounds_[0] + 0.3  # nats
    filled = imputer.transform(lacking)[400:]
    error = np.sqrt(np.mean((filled["b"] - frame["b"][400:]) ** 2))
    assert error < 0.5 and (filled["c"] == frame["c"][400:]).mean() > 0.93  # of a deviation of 3; 0.3 at best
    lower, upper = imputer.intervals(lacking, 0.9)
    inside = ((lower["b"] <= frame["b"]) & (frame["b"] <= upper["b"]))[400:].mean()
    assert 0.8 < inside <= 1 and (lower["b"][:400] == frame["b"][:400]).all()
    chances = imputer.class_probabilities(lacking)["c"]
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-5)
    assert (chances.iloc[:400].max(axis=1) == 1).all() and (chances.idxmax(1)[400:] == filled["c"]).all()
    spread = np.stack([one["b"][400:] for one in imputer.impute(lacking, 20)]).std(0)
    assert 0.1 < spread.mean() < 0.8
    fixed = Imputer(epochs=5, width=32, depth=2, latent=4, scale="fixed", random_state=0).fit(lacking)
    assert fixed.impute(lacking, 2)[0].notna().all(axis=None)


def test_many_masks_of_one_row_at_once():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    imputer = Imputer(**SMALL).fit(x)
    masks = rng.random((100, 4)) < 0.5
    drawn = imputer.sample_conditional(x[:1], masks, 7)
    assert drawn.shape == (100, 7, 4)
    seen = np.broadcast_to(~masks[:, None], drawn.shape)
    assert (drawn[seen] == np.broadcast_to(x[0], drawn.shape)[seen]).all()
    assert drawn[~seen].std() > 0.1 and not np.isnan(drawn).any()
    single = imputer.sample_conditional(x[:1], masks[40:41], 7)[0]
    np.testing.assert_array_equal(single, drawn[40])
    grid = imputer.sample_conditional(x[:3], masks[None], 7)
    assert grid.shape == (3, 100, 7, 4)
    np.testing.assert_array_equal(grid[0], drawn)
    own = imputer.sample_conditional(x[:3], masks[:3], 7)
    np.testing.assert_array_equal(own, grid[np.arange(3), np.arange(3)])
    lacking = x[:1].copy()
    lacking[0, 0] = np.nan
    np.testing.assert_array_equal(
        imputer.sample_conditional(lacking, np.zeros((1, 4), bool), 7),
        imputer.sample_conditional(x[:1], np.eye(4, dtype=bool)[:1], 7),
    )


def test_conditional_samples_of_a_frame(fitted, frame):
    whole = frame.iloc[:2]
    masks = np.zeros((1, 3, 12), dtype=bool)
    masks[0, 1, 4], masks[0, 2, :] = True, True
    found = fitted.sample_conditional(whole, masks, 5)
    assert list(found.index.names) == ["row", "mask", "sample"] and len(found) == 2 * 3 * 5
    assert found.dtypes.equals(frame.dtypes) and found.drop(columns="when").notna().all(axis=None)
    seen = found.loc[("row 0", 0)]
    known = whole.columns[whole.iloc[0].notna()]
    assert all((seen[name] == whole.iloc[0][name]).all() for name in known)
    assert list(fitted.sample_conditional(whole, masks[0, :2], 5).index.names) == ["row", "sample"]


def test_rows_alike_are_drawn_alike_and_draws_differ():
    from accel.vae.noise import row_keys, uniforms

    table = np.array([[1.0, np.nan], [1.0, np.nan], [-0.0, 2.0], [0.0, 2.0], [2.0, 0.0]])
    keys = row_keys(table, 3)
    assert keys[0] == keys[1] and keys[2] == keys[3] and len({*keys}) == 3 and (row_keys(table, 4) != keys).all()
    drawn = uniforms(row_keys(np.arange(2000.0)[:, None], 0), np.arange(20), 5)
    assert drawn.min() > 0 and drawn.max() < 1 and len(np.unique(drawn)) == drawn.size
    assert abs(drawn.mean() - 0.5) < 4 / math.sqrt(12 * drawn.size)
    flat = drawn.reshape(2000, -1)
    assert np.abs(np.corrcoef(flat.T) - np.eye(100)).max() < 5 / math.sqrt(2000)
