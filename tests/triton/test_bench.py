"""The benches of the Triton kernels: what they refuse, what they check, and the arithmetic of the roofline."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch

from accel.bench import gpu, gpu_ops, runner, static
from accel.cli.main import main
from accel.kernels.dispatch import use_backend
from accel.kernels.triton.launch import Tile
from accel.profiling.roofline import CARDS, Problem, bound

CASES = pathlib.Path(__file__).parents[2] / "profiles" / "cases" / "gpu.toml"
SMALL = {
    "channels": [8, 16],
    "size": [7, 6],
    "kernel": 3,
    "batch": 2,
    "dtypes": ["float16"],
    "keep": [0.5],
    "active": [0.3],
}


def measured(case) -> list[runner.Row]:
    """The rows of a case in the interpreter; every sample of the clock is half a millisecond, a side runs once."""
    ran = []

    def sample(call, calls):
        if call not in ran:
            ran.append(call)
            call()
        return 0.5

    with use_backend("triton"):
        return list(gpu.measured(case, runner.Settings(quick=True), "cpu", sample))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU refuses nothing")
def test_without_a_gpu_one_line_says_so(capsys):
    assert main(["bench", str(CASES), "--quick"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "need a CUDA device" in printed.err and "--static" in printed.err


def test_the_case_file_asks_for_what_the_runner_reads():
    file = runner.read_cases(CASES)
    assert all(case.keys() == SMALL.keys() | {"name"} for case in file["case"])
    assert {keep for case in file["case"] for keep in case["keep"]} == {1.0, 0.5, 0.25}
    assert {min(case["active"]) for case in file["case"]} == {0.1} and {max(c["active"]) for c in file["case"]} == {0.9}


def test_right_kernels_are_timed(interpreter):
    rows = measured(SMALL)
    rounded = {"perforated_conv2d", "perforated_conv2d_backward", "masked_conv2d", "interpolate_fitted", "halting_step"}
    exact = {"interpolate", "select_positions", "active_positions", "ponder_cost"}
    assert sorted(row["op"] for row in rows) == sorted(rounded | exact)
    for row in rows:
        assert row["correct"] and row["speedup"] == 1.0
        assert (0 < row["error"] < gpu_ops.TOLERANCE["float16"]) == (row["op"] in rounded)
        assert any(name.startswith("ms_") for name in row)


def test_the_rivals_compute_the_same(generator):
    """What torch is timed at is the same result, in float32 to rounding."""
    maps = gpu_ops.Maps(SMALL, "float32", "cpu", generator)
    for make in (gpu_ops.nearest, gpu_ops.fitted, gpu_ops.selection):
        found = make(maps, 0.5)
        rival, ours = found.sides[found.rival](), found.sides[found.ours]()
        if make is gpu_ops.selection:  # positions count from the first image on
            images = ours.positions.view(2, -1) - torch.tensor([[0], [42]])
            assert torch.equal(rival.sort(1).values, images)
        else:
            assert torch.allclose(rival, ours.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-5)
    active = gpu_ops.activity(maps, 0.3)
    image, y, x = active.sides["nonzero"]().unbind(1)
    total = active.sides["ours"]().total
    assert torch.equal(active.sides["ours"]().positions[:total], (image * 42 + y * 6 + x).to(torch.int32))
    sums, ours = (call() for call in gpu_ops.ponder(maps).sides.values())
    assert torch.allclose(sums[0], ours[0]) and torch.equal(sums[1], ours[1])


def test_a_wrong_kernel_is_not_timed(interpreter, monkeypatch):
    right = gpu.against_reference

    def wrong(call, tensors):
        return right(lambda *given: call(*given) * (1.01 if given[0] is tensors[0] else 1.0), tensors)

    layer = gpu.Layer(SMALL, "float16", "cpu", 0)
    monkeypatch.setattr(gpu, "against_reference", wrong)
    with use_backend("triton"):
        measurement = gpu.static(layer, 0.5)
    row = gpu.timed(measurement, {"dtype": "float16"}, runner.Settings(quick=True), pytest.fail)
    assert not row["correct"] and row["error"] == pytest.approx(0.01, rel=0.1) and "speedup" not in row


def test_one_wrong_position_is_not_timed(monkeypatch, generator):
    maps = gpu_ops.Maps(SMALL, "float16", "cpu", generator)
    right = gpu_ops.different

    def wrong(call):
        shifts = iter([1, 0])  # ours, then the reference's

        def shifted():
            positions = call().clone()
            positions[3] += next(shifts)
            return positions

        return right(shifted)

    monkeypatch.setattr(gpu_ops, "different", wrong)
    row = gpu.timed(gpu_ops.activity(maps, 0.5), {}, runner.Settings(quick=True), pytest.fail)
    assert not row["correct"] and 0 < row["error"] < 0.1 and "speedup" not in row


def test_the_static_study_is_a_flag(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(static, "run", lambda *given: asked.append(given) or [{}])
    assert main(["bench", "--static", "--quick", "--output", str(tmp_path)]) == 0
    assert asked == [(tmp_path, 0, True)] and str(tmp_path) in capsys.readouterr().out
    assert main(["bench", "--static", "mc"]) == 2 and main(["bench"]) == 2


class _Loop:
    """Stands for machine code: 100 instructions in the loop, 4 warps."""

    issued, warps = 100, 4


def test_the_bound_is_the_slowest_unit():
    """One tile of 64 x 64 and one step on an A100: 2 * 64^3 / 2048 clocks of tensor cores, 16 KiB / 48 of L2."""
    tile, card = Tile(64, 64, 64, 4, 3), CARDS["sm80"]
    found = bound("sm80", _Loop, tile, Problem(rows=64, out_channels=64, in_channels=64, taps=1, memory_bytes=2039))
    assert card.clock == pytest.approx(1.41e9, rel=1e-3)
    assert found.tiles == found.tiles_per_processor == 1
    assert found.seconds == pytest.approx(
        {
            "tensor cores": 256 / card.clock,
            "L2": 16384 / 48 / card.clock,
            "instructions": 100 / card.clock,
            "memory": 1e-9,
        }
    )
    assert found.unit == "L2" and found.total == found.seconds["L2"]


def test_the_fullest_processor_sets_the_time():
    """109 tiles on 108 multiprocessors take as long as 216."""
    tile = Tile(64, 64, 64, 4, 3)
    one, two, full = (bound("sm80", _Loop, tile, Problem(64 * tiles, 64, 64, 1, 0)).total for tiles in (108, 109, 216))
    assert two == full == 2 * one


def test_the_static_tables(tmp_path, monkeypatch):
    """One op, one network, one target: rows in the file are those returned, and marked as estimates."""
    monkeypatch.setattr(static, "NETWORKS", {"VGG-16": "torchvision:vgg16"})
    first = static.layers_of("torchvision:resnet18", [64, 64], True)[1:2]
    monkeypatch.setattr(static, "layers_of", lambda *_, **__: first)
    monkeypatch.setattr("accel.profiling.kernel_catalogue.launches", _interpolation_only)
    rows = static.run(tmp_path, quick=True)
    assert [json.loads(line) for line in (tmp_path / "triton_static.jsonl").read_text().splitlines()] == json.loads(
        json.dumps(rows)
    )
    kernels, layers = ([row for row in rows if row["table"] == name] for name in ("kernels", "layers"))
    assert [row["kernel"] for row in kernels] == ["interpolate_rows"] and kernels[0]["spills"] == 0
    assert [row["keep"] for row in layers] == [0.5] and all(row["estimate"] for row in layers)
    assert all(row["bound_us"] >= row["peak_us"] and row["spills"] == 0 for row in layers)
    assert "not measurements" in (tmp_path / "triton_static.md").read_text()


def _interpolation_only(dtype):
    from accel.kernels.triton.interpolate import interpolate

    everywhere = torch.arange(64, dtype=torch.int32)
    return {"interpolate": lambda: interpolate(torch.zeros(128, 128, dtype=dtype), everywhere, 2, (8, 8))}
