"""Every kind of bench case on small problems: right sides are timed, a wrong one is caught before the clock."""

import pytest

from accel import ops
from accel.bench import runner
from accel.errors import ConfigError

QUICK = runner.Settings(quick=True)
CASES = {
    "exactness": {"models": ["zoo:resnet20_cifar"], "tolerance": 1e-5},
    "layers": {
        "model": "torchvision:resnet18",
        "size": [64, 64],
        "distinct": True,
        "batch": [1],
        "keep": [0.5, 0.25],
        "mask": "lattice",
        "sides": ["nchw", "channels_last"],
    },
    "quantized": {
        "model": "torchvision:resnet18",
        "size": [64, 64],
        "batch": [1],
        "keep": [1.0, 0.5],
        "mask": "lattice",
        "channels": 64,
        "positions": 64,
    },
    "networks": {"model": "zoo:resnet20_cifar", "size": [32, 32], "batch": [1], "keep": [0.25], "mask": "lattice"},
    "masked": {"channels": 8, "size": [9, 7], "batch": 2, "active": 0.3},
    "backward": {
        "channels_in": 5,
        "channels_out": 6,
        "kernel": 3,
        "size": [9, 8],
        "batch": 2,
        "keep": 0.5,
        "mask": "lattice",
    },
    "adaptive": {
        "model": "zoo:resnet20_cifar",
        "size": [32, 32],
        "batch": [2],
        "active": [0.4],
        "maps": ["blobs", "noise"],
        "compiled": False,
    },
    "nearest": {"height": 16, "width": 24, "keep": 0.3, "mask": "uniform"},
    "sizes": {
        "model": "unet",
        "sizes": 3,
        "smallest": 17,
        "largest": 40,
        "batch": [1, 2],
        "threads": [1, 2],
        "keep": 0.5,
        "mask": "lattice",
    },
    "exported": {
        "model": "zoo:resnet14*",
        "size": [32, 32],
        "batch": [1],
        "keep": [0.5],
        "interpolate": ["nearest"],
        "mask": "lattice",
    },
    "leaks": {"cycles": 12, "warm": 4, "size": [17, 16]},
    "calls": {"model": "zoo:resnet20_cifar", "size": [32, 32], "keep": 0.5, "mask": "lattice"},
    "imputation_tables": {
        "table": "breast_cancer",
        "rows": 90,
        "test": 0.3,
        "mechanism": "MAR",
        "share": 0.3,
        "numpy_seed": 0,
        "imputations": 3,
        "rivals": [],
        "epochs": 1,
    },
    "imputation_pooling": {
        "table": "breast_cancer",
        "log": ["mean radius"],
        "target": "mean radius",
        "rows": 80,
        "mechanism": "MCAR",
        "share": 0.05,
        "numpy_seed": 0,
        "imputations": 2,
        "amputations": 2,
        "block": 0,
        "rivals": [],
        "epochs": 1,
    },
    "large": {"channels": [3, 8, 8, 1], "size": [301, 299], "keep": [1.0, 0.5], "mask": "lattice"},
    "conditional": {
        "toy": "burr",
        "features": 3,
        "rows": 60,
        "explained": 3,
        "coalitions": 3,
        "samples": 5,
        "rivals": [],
        "imputer": {"epochs": 1, "width": 8, "depth": 1, "latent": 2},
    },
}
ROWS = {"exactness": 1, "layers": 22, "networks": 1, "masked": 1, "backward": 1, "adaptive": 2, "nearest": 1}
ROWS |= {
    "exported": 1,
    "quantized": 4,
    "sizes": 1,
    "leaks": 1,
    "large": 2,
    "calls": 1,
    "conditional": 2,
    "imputation_tables": 3,
    "imputation_pooling": 2,
}


def test_every_kind_is_tried():
    elsewhere = {"gpu", "rivals", "frontier", "foreign", "foreign_sact", "search", "vae_gradients"}
    elsewhere |= {"halting_gradients", "halting_frontier", "halting_continuity", "inpainting", "imputation"}
    elsewhere |= {"repeats", "shape_fcn", "eight_bits", "vae_halting", "gpu_short"}  # the GPU's: tests/triton
    elsewhere |= {"vae_rivals", "vae_latents", "vae_exact", "vae_robust", "vae_topics"}
    assert set(CASES) | elsewhere == set(runner.KINDS)


@pytest.mark.parametrize("kind", CASES)
def test_right_sides_are_measured(kind):
    rows = list(runner.load_kind(kind).rows(CASES[kind], QUICK))
    assert len(rows) == ROWS[kind]
    for row in rows:
        assert row["correct"] and 0 <= row["error"] < 1e-4
        times = [value for key, value in row.items() if key.startswith(("ms_", "speedup"))]
        assert all(value > 0 for value in times)


def off_by_little(op):
    def wrong(*args, **kwargs):
        return op(*args, **kwargs) * 1.001

    return wrong


@pytest.mark.parametrize(
    ("kind", "op"),
    [
        ("exactness", "perforated_conv2d"),
        ("layers", "perforated_conv2d"),
        ("quantized", "quantized_conv2d"),
        ("masked", "masked_conv2d"),
    ],
)
def test_a_wrong_side_is_not_timed(monkeypatch, kind, op):
    monkeypatch.setattr(ops, op, off_by_little(getattr(ops, op)))
    rows = list(runner.load_kind(kind).rows(CASES[kind], QUICK))
    assert rows and not any(row["correct"] for row in rows)
    assert not any(key.startswith("ms_") for row in rows for key in row)


def test_a_wrong_file_is_not_timed(monkeypatch):
    from accel.export import proof as exporting

    monkeypatch.setattr(exporting, "difference", lambda *_: "differs by 1")
    (row,) = runner.load_kind("exported").rows(CASES["exported"], QUICK)
    assert not row["correct"] and "differs by 1 from the model" in row["reason"] and "speedup" not in row


def test_wrong_gradients_are_not_timed(monkeypatch):
    op = ops.perforated_conv2d
    monkeypatch.setattr(ops, "perforated_conv2d", lambda x, weight, *rest, **more: op(x * 1.001, weight, *rest, **more))
    (row,) = runner.load_kind("backward").rows(CASES["backward"], QUICK)
    assert not row["correct"] and "speedup" not in row


def test_layers_are_found_once_each_when_distinct():
    from accel.bench.layers import layers_of

    layers = layers_of("torchvision:resnet18", [64, 64], distinct=False)
    distinct = layers_of("torchvision:resnet18", [64, 64], distinct=True)
    assert len(layers) == 20
    assert (layers[0].name, layers[0].geometry) == ("conv1", "7x7/2 3>64 @64x64")
    assert [layer.name for layer in distinct][:3] == ["conv1", "layer1.0.conv1", "layer2.0.conv1"]
    assert len(distinct) == len({layer.geometry for layer in layers}) == 11


def test_layers_of_one_kind():
    from accel.bench.layers import KINDS, layers_of, rows

    layers = layers_of("torchvision:mobilenet_v2", [32, 32], distinct=False)
    names = {kind: [layer.name for layer in filter(wanted, layers)] for kind, wanted in KINDS.items()}
    assert names["stem"] == ["features.0.0"] and len(names["all"]) == 52
    assert len(names["depthwise"]) == 17 and names["depthwise"][0] == "features.1.conv.0.0"
    with pytest.raises(ConfigError, match="one of all, stem, depthwise, got 'deep'"):
        next(rows({"kind": "deep"}, None))


def test_a_part_of_a_network_keeps_the_rules_and_states_its_peak_memory():
    case = {"model": "torchvision:vgg11", "part": "features", "size": [32, 32], "batch": [1], "keep": [0.25]}
    (row,) = runner.load_kind("networks").rows({**case, "mask": "lattice"}, QUICK)
    assert row["correct"]
    # the largest two neighbours: 64 channels at 32x32 (dense by rule) and its pooling at 16x16, in fp32
    assert row["peak_mb_dense_channels_last"] >= round(4 * 64 * (32 * 32 + 16 * 16) / 1e6, 2)
    assert 0 < row["peak_mb_converted"] <= row["peak_mb_dense_channels_last"]
