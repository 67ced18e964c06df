"""The short GPU run without a GPU: checks in the interpreter, minutes by a written clock, the form of its rows."""

from __future__ import annotations

import importlib
import itertools
import json
import pkgutil

import pytest
import torch

import accel
import accel.kernels.triton
from accel.bench import gpu, gpu_checks, gpu_ops, gpu_short, runner
from accel.cli.main import main
from accel.kernels.dispatch import use_backend

SMALL = {"channels": [8, 16], "size": [5, 4], "kernel": 3, "batch": 2, "keep": [0.5, 1.0], "active": [0.3]}
CASE = {"name": "a", "part": "checks", "minutes": 8, "dtypes": ["float16"]}
NETWORK = {"part": "networks", "minutes": 8, "model": "zoo:resnet14_cifar", "batch": 1, "size": [8, 8]}


@pytest.fixture
def cases(request):
    return request.config.rootpath / "profiles" / "cases" / "gpu_short.toml"


def on_cpu(case, clock=None, captured=None):
    """The rows of a case in the interpreter. `captured` collects what is captured."""

    ran = []

    def sample(call, calls):
        if call not in ran:  # once: the interpreter is slow
            ran.append(call)
            call()
        return 0.5

    def capture(call):
        if captured is not None:
            captured.append(call)
        return call

    bench = gpu_short.Bench("cpu", sample, capture, clock or (lambda: 0.0))
    with use_backend("triton"):
        return list(gpu_short.measured(case, runner.Settings(quick=True, started=0.0), bench))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU refuses nothing")
def test_without_a_gpu_one_line_says_so(cases, capsys):
    assert main(["bench", str(cases)]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "need a CUDA device" in printed.err


def modules(package) -> list:
    found = pkgutil.iter_modules(package.__path__)
    return [importlib.import_module(f"{package.__name__}.{each.name}") for each in found if not each.ispkg]


def launchers() -> set[str]:
    """Every registered op that has a Triton launcher."""
    assert modules(accel.kernels)  # which registers them
    ops = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("accel::")}
    return {op for op in ops if any(hasattr(module, op) for module in modules(accel.kernels.triton))}


def test_every_op_with_a_kernel_is_checked():
    checked = set(gpu_checks.checks())
    assert checked == launchers() and len(checked) == 18


@pytest.fixture
def few_neighbors(monkeypatch):
    """The interpreter takes a step for each."""
    monkeypatch.setattr(gpu_ops, "NEIGHBORS", 3)


def test_every_check_passes_in_the_interpreter(interpreter, few_neighbors, monkeypatch):
    monkeypatch.setattr(gpu_short, "PROBLEM", SMALL)
    rows = on_cpu(CASE)
    assert [row["op"] for row in rows] == list(gpu_checks.checks())
    wrong = [row for row in rows if not row["correct"]]
    assert not wrong
    assert sum(row["error"] > 0 for row in rows) == 11  # copies, counts and what is computed in float64 are exact


@pytest.mark.parametrize("op", gpu_checks.checks())
def test_a_wrong_kernel_is_found(op, interpreter, few_neighbors, monkeypatch):
    """Whatever is compared, a result that is off by one percent is wrong."""
    compared = []

    def off(got, expected):
        compared.append(got)
        return right(got * 1.01, expected)

    right = gpu_ops.relative_norm
    monkeypatch.setattr(gpu_ops, "relative_norm", off)
    monkeypatch.setattr(gpu_ops, "different", lambda call: compared.append(call) or 0.5)
    with use_backend("triton"):
        error, tolerance = gpu_checks.checks()[op](gpu.Layer(SMALL, "float32", "cpu", 0))
    assert compared and error > tolerance


def test_layers_are_timed_as_graphs(interpreter, few_neighbors):
    captured = []
    rows = on_cpu({**SMALL, "part": "layers", "minutes": 8}, captured=captured)
    ops = ["perforated_conv2d"] * 2 + ["masked_conv2d", "interpolate", "interpolate_fitted"]
    assert [row["op"] for row in rows] == ops and len(captured) == 3 * 3 + 2 * 2
    assert all(row["correct"] and row["speedup"] == 1.0 and row["graphs"] for row in rows)


def test_a_network_is_timed_as_one_graph(interpreter, wide_tile, monkeypatch):
    convert = accel.convert_model
    monkeypatch.setattr(accel, "convert_model", use_backend("reference")(convert))  # as without a forced backend
    captured = []
    (row,) = on_cpu({**NETWORK, "keep": [0.5], "mask": "lattice"}, captured=captured)
    assert row["correct"] and 0 < row["error"] < gpu_short.NETWORK_TOLERANCE
    assert row["speedup"] == 1.0 and len(captured) == 2 and {"ms_dense", "ms_converted"} <= row.keys()


def test_what_fails_is_a_row_and_stops_nothing(monkeypatch):
    def broken(layer):
        raise RuntimeError("illegal memory access\nand more of it")

    monkeypatch.setattr(
        gpu_short, "checks", lambda: {"first": broken, "second": lambda _: (0.5, 0.1), "third": lambda _: (0.0, 0.1)}
    )
    first, second, third = on_cpu(CASE)
    assert first["done"] is False and not first["correct"] and first["reason"].endswith("illegal memory access")
    assert not second["correct"] and second["error"] == 0.5 and "done" not in second
    assert third["correct"]


def test_nothing_is_begun_near_the_end(monkeypatch):
    monkeypatch.setattr(gpu_short, "checks", lambda: dict.fromkeys("abcd", lambda _: (0.0, 0.1)))
    minutes = itertools.count(6)
    rows = on_cpu(CASE, clock=lambda: 60.0 * next(minutes))  # 6, 7, 8, 9 minutes after the start
    assert [row["correct"] for row in rows] == [True, True, False, False]
    assert all("not reached: the 8 minutes" in row["reason"] and row["done"] is False for row in rows[2:])


def test_what_was_not_done_is_printed_and_measured_again(tmp_path, monkeypatch, capsys):
    file, output = tmp_path / "cases.toml", tmp_path / "rows.jsonl"
    file.write_text(
        'kind = "gpu_short"\n[every]\nminutes = 8\npart = "checks"\n[[case]]\nname = "a"\n[[case]]\nname = "b"\n'
    )
    reached = [{"op": "x", "error": 0.0, "correct": True}]
    missed = [{"op": "x", **gpu_short._not_done("not reached")}]
    monkeypatch.setattr(gpu_short, "rows", lambda case, settings: reached if case["name"] == "a" else missed)
    argv = ["bench", str(file), "--output", str(output), "--resume"]
    assert main(argv) == 1
    assert "accel: not done: x of b: not reached\n" in capsys.readouterr().err
    monkeypatch.setattr(gpu_short, "rows", lambda case, settings: reached)
    assert main(argv) == 0
    assert [json.loads(line)["case"] for line in output.read_text().splitlines()] == ["a", "b"]


def test_the_case_file_is_in_order_of_importance(cases):
    file = runner.read_cases(cases)
    assert [case["part"] for case in file["case"]][:4] == ["checks", "layers", "networks", "networks"]
    assert {case["minutes"] for case in file["case"]} == {8}
    for case in file["case"]:  # every job can be named
        jobs = list(gpu_short.PARTS[case["part"]](case, runner.Settings(), gpu_short.Bench("cpu", None, None)))
        assert jobs and all(about["op"] for about, _ in jobs)
