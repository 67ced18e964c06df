"""What every C function takes for granted of its arguments is said at its head, and looked at in sanitizer builds."""

from __future__ import annotations

import faulthandler
import os
import pathlib
import re
import signal
from collections.abc import Callable

import pytest
import torch

binding = pytest.importorskip("accel.kernels.cpu.binding", reason="the C engine was not built", exc_type=ImportError)

from accel.kernels.cpu import _engine, record  # noqa: E402
from accel.kernels.geometry import CallGeometry  # noqa: E402
from accel.kernels.positions import PositionSet  # noqa: E402
from accel.kernels.stage import StageConv, StageHead, StageUnit  # noqa: E402

SOURCES = pathlib.Path(record.__file__).parent
DEFINITION = re.compile(
    r"^(?:INLINE |static |EVERY_PROCESSOR )*[a-z0-9_]+\W[^;{}#]*?\b(\w+)\(([^;{}]*)\)\s*\{\n(.*?)^\}", re.M | re.S
)


def bodies(*patterns: str) -> dict[str, str]:
    """The body of every function in the C sources."""
    text = "\n".join(path.read_text() for pattern in patterns for path in sorted(SOURCES.glob(pattern)))
    return {match[1]: match[3] for match in DEFINITION.finditer(text)}


def test_every_function_on_a_record_says_what_it_requires():
    records = "|".join(r.name for r in record.RECORDS)
    declared = re.findall(rf"\b(accel_\w+)\(const (?:{records}) \*", (SOURCES / "engine.h").read_text())
    found = bodies("*.c")
    assert len(declared) == 26 and set(declared) <= found.keys()
    for name in declared:
        head = found[name].split(";")[:3]
        assert any("REQUIRE(" in line or re.search(r"\brequire_\w+\(", line) for line in head), name
    assert "REQUIRE(" in found["run"]  # of special.c


def test_every_register_kernel_says_what_it_requires():
    found = bodies("*.inc")
    kernels = [name for name in found if re.search(r"(tile|depthwise|outer|pairs)_body$|_loop$|_rows$|_sums$", name)]
    assert len(kernels) >= 10, kernels
    for name in kernels:
        assert re.search(r"REQUIRE|TILE_SETUP|FOOTPRINT_SETUP", found[name]), name


def last_words(call: Callable[[], object]) -> str:
    """What a child says that dies of the call; the empty string where it lives."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 2)
        faulthandler.disable()
        try:
            call()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == bool(said) and (not said or os.WTERMSIG(status) == signal.SIGABRT), said
    return said


NULL, ODD = 0, object()  # ODD: an address between two floats
BROKEN: dict[str, tuple[record.Record, dict[str, object]]] = {
    "convolve": (record.JOB, {
        "x": NULL, "packed": ODD, "zero": NULL, "out": NULL, "residual": ODD, "row_taps": NULL, "rows": -1, "taps": 0,
        "groups": 0, "in_pitch": 1, "table_rows": 0, "out_channels": 0, "activation": 5, "in_pixels": 3, "kind": 1,
        "narrow": 1,
    }),
    "convolve_footprints": (record.FOOTPRINT_JOB, {
        "x": NULL, "out": ODD, "weights": ODD, "bases": NULL, "runs": NULL, "footprints": NULL, "bands": NULL,
        "in_channels": 1, "channels": 0, "taps": 1, "in_pixels": 3, "out_pixels": 2, "activation": -1, "images": -1,
        "bytes": 64,
    }),
    "replay": (record.REPLAY, {"calls": NULL, "buffers": NULL, "buffer_count": 1, "groups": 0, "memory_each": -1}),
    "pack": (record.PACKING, {
        "w": NULL, "packed": ODD, "groups": 0, "k_group": 0, "kh": 0, "most_vectors": 5, "kind": 5, "zero_point": 256,
    }),
    "packed_size": (record.PANEL_SIZE, {"groups": 0, "k_group": -1, "taps": 0, "kind": -1}),
    "frame": (record.FRAME, {"x": NULL, "out": ODD, "pieces": NULL, "channels": 0, "pixels": 1}),
    "interpolate": (record.FILL, {"source": NULL, "result": ODD, "nearest": NULL, "count": 1, "images": -1}),
    "interpolate_backward": (record.FILL, {"source": NULL, "starts": NULL, "targets": NULL, "pixels": 1}),
    "max_rows": (record.MAX_JOB, {"rows": NULL, "out": ODD, "taps": NULL, "tap_count": 0, "count": 1}),
    "quantize": (record.QUANTIZING, {
        "x": NULL, "out": NULL, "zero_point": 256, "inverse": -1.0, "count": -1, "width": 0, "pitch": 99,
    }),
    "round_bf16": (record.ROUNDING, {"x": NULL, "out": NULL, "count": -1, "width": 0, "pitch": 99}),
    "place": (record.PLACING, {
        "rows": NULL, "out": NULL, "count": 1, "at": 40, "images": -1, "zero": 256, "high": -1, "other": 64,
    }),
    "mean_rows": (record.MEAN_JOB, {
        "rows": NULL, "out": NULL, "share": ODD, "taps": NULL, "tap_count": 0, "zero_point": 256, "count": 1,
    }),
    "interpolate_fitted_backward": (record.FITTED_GRAD_JOB, {
        "grad": NULL, "rows_grad": ODD, "starts": NULL, "reader_starts": NULL, "pixels": 2, "count": 1, "taps": -1,
    }),
    "active": (record.ACTIVE_JOB, {"mask": NULL, "positions": NULL, "counts": NULL, "dilate": -1, "images": 1 << 30}),
    "invert": (record.INVERSION, {"positions": NULL, "inverse": ODD, "rows": -1, "size": 1}),
    "local_deviation": (record.DEVIATION, {"x": NULL, "score": ODD, "channels": 99, "height": -1}),
    "select": (record.SELECTION, {"score": NULL, "positions": NULL, "budget": 999, "images": 1 << 30}),
    "halting_step": (record.HALTING_JOB, {
        "h": NULL, "x": NULL, "new_remainder": ODD, "units": NULL, "weight": ODD, "positions": -1, "eps": -1.0,
    }),
    "halting_step_backward": (record.HALTING_GRAD_JOB, {"h": NULL, "d_x": NULL, "d_old": ODD, "channels": -1}),
    "ponder_cost": (record.PONDER_JOB, {"ponder": NULL, "rho": ODD, "executed": NULL, "pixels": -1}),
    "run_stage": (record.STAGE, {
        "x": NULL, "memory": ODD, "output": NULL, "macs": NULL, "convs": NULL, "units": NULL, "group": 0, "reach": 8,
        "border": 0, "pitch": 3, "channels": 3, "most_pixels": 1, "unit_count": 0, "head_step_count": 0,
    }),
    "head_scores": (record.HEAD_JOB, {"x": NULL, "bias": NULL, "at": NULL, "steps": NULL, "count": 0, "channels": 0}),
    "grad_input": (record.GRAD_JOB, {"dx": NULL, "packed": NULL, "table": NULL, "groups": 0, "in_pixels": 3}),
    "grad_weight": (record.GRAD_JOB, {"dw": NULL, "row_image": NULL, "x": ODD, "taps": 0, "table_rows": 2}),
    "column_sums": (record.COLUMN_SUMS, {"rows": NULL, "sums": ODD, "count": -1}),
}  # fmt: skip


def run_everything() -> None:
    """Calls of the binding that reach every function of the engine."""
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 24, 5, 6, generator=g), torch.randn(40, 24, 3, 3, generator=g)
    where = PositionSet.full(5, 6)
    sets = (where.positions, where.nearest)
    geometry = CallGeometry((2, 5, 6), (5, 6), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    residual = torch.randn(2, 40, 5, 6, generator=g)

    def convolve(x):
        whole = geometry._replace(in_size=(len(x), 5, 6))
        return (binding.perforated_conv2d(x, weight, None, *sets, None, None, whole, "relu", False),)

    convolve(x)
    head = StageHead(torch.zeros(9, 24), torch.zeros(5, 6), torch.zeros(24))
    binding.head_scores(x, head, logits=False)
    binding.perforated_conv2d(x, weight, torch.ones(40), *sets, None, residual, geometry, "none", False)
    few = x[:, :3].contiguous(memory_format=torch.channels_last)
    binding.perforated_conv2d(few, weight[:, :3].contiguous(), None, *sets, None, None, geometry, "relu", True)
    deep = geometry._replace(groups=24)
    binding.perforated_conv2d(x, torch.randn(24, 1, 3, 3), None, *sets, None, None, deep, "none", False)
    binding.perforated_conv2d(x, weight, None, *sets, None, None, geometry, "none", False, "bf16")
    binding.perforated_conv2d_backward(torch.randn(60, 40), x, weight, where.positions, None, geometry)
    binding.prepare_replay(convolve, [x]).run([x.contiguous(memory_format=torch.channels_last)])
    rows = torch.randn(60, 8)
    binding.interpolate(rows, where.nearest, 2, (5, 6))
    binding.interpolate_backward(torch.randn(2, 8, 5, 6), where.nearest, 30)
    binding.quantize(rows, 0.5, 128)
    binding.max_rows(rows, torch.arange(30, dtype=torch.int32).view(2, 15), 2)
    taps = torch.arange(-2, 28, dtype=torch.int32).clamp_min(-1).view(2, 15)
    binding.mean_rows(rows.to(torch.uint8), taps, torch.full((15,), 0.5), 3, 2)
    binding.mean_rows(rows.to(torch.uint8), taps, torch.full((2, 15), 0.5), 3, 2)
    binding.sum_rows(rows.to(torch.uint8), rows.to(torch.uint8), None, None, 2, [1.0, 0.5], [3, 4], 5, 0, 255)
    binding.join_rows([rows[:30], rows], [None, torch.arange(15, dtype=torch.int32)], 2)
    lists = [torch.tensor(v, dtype=torch.int32) for v in ([0, 2], [1, 3], [[0, 1], [1, 0]], [0, 2])]
    binding.interpolate_fitted_backward(torch.randn(1, 8, 2, 2), torch.randn(2, 8), *lists, torch.randn(1, 2, 8))
    positions, _ = binding.active_positions(torch.ones(2, 5, 6, dtype=torch.bool), 1)
    binding.masked_conv2d(x, weight, None, positions, torch.tensor([30, 30]), positions, None, geometry, "none")
    binding.local_deviation(x, 24)
    binding.select_positions(torch.rand(2, 5, 6), 7)
    state = [torch.ones(2, 5, 6), torch.ones(2, 5, 6), torch.ones(2, 5, 6, dtype=torch.int32), torch.zeros_like(x)]
    h = torch.full((2, 5, 6), 0.5)
    binding.halting_step(h, x, *state, 0.01, False)
    binding.halting_step_backward(h, x, state[0], h, h, x, h, 0.01, False)
    binding.ponder_cost(state[0], state[2])
    conv = StageConv(torch.randn(24, 24, 3, 3), torch.zeros(24), (1, 1), (1, 1), (1, 1), 1, "relu")
    head = StageHead(torch.randn(9, 24), torch.zeros(5, 6), torch.zeros(24))
    units = [StageUnit((conv, conv), head), StageUnit((conv, conv), head), StageUnit((conv, conv), None)]
    binding.plan_stage(units, None, (5, 6), spatial=True, sticks=False, eps=0.01).run(x, x)


@pytest.mark.skipif(not _engine.CHECKED, reason="looked at in debug and sanitizer builds: tests/sanitize.sh")
def test_a_broken_contract_ends_the_process(monkeypatch):
    seen = set()

    def breaking(name: str, kind: record.Record, changes: dict[str, object]):
        run = getattr(_engine, name)

        def broken(*values: object, **given: float) -> object:
            if name not in seen:
                seen.add(name)
                packed, *outside = values or (None,)
                whole = dict(zip(kind.fields, kind.row(packed, **given)))
                for field, value in changes.items():
                    bad = kind.pack(**whole | {field: whole[field] | 1 if value is ODD else value})
                    assert " requires " in last_words(lambda bad=bad: run(bad, *outside)), (name, field)
                assert not last_words(lambda: run(kind.pack(**whole), *outside)), name
            return run(*values, **given)

        monkeypatch.setattr(_engine, name, broken)

    for name, (kind, changes) in BROKEN.items():
        breaking(name, kind, changes)
    run_everything()
    assert seen == BROKEN.keys()
