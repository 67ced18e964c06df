"""The choice of the backend, and when an op may skip torch's dispatcher."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from accel.kernels import dispatch
from accel.kernels.positions import PositionSet
from accel.ops import active_backend, available_backends, interpolate, use_backend

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_default_backends():
    engine = "cpu" if "cpu" in available_backends() else "reference"
    assert active_backend(torch.zeros(1)) == engine
    for dtype in (torch.float64, torch.bfloat16, torch.int32):
        assert active_backend(torch.zeros(1, dtype=dtype)) == "reference"
    assert active_backend(torch.zeros(1, device="meta")) == "reference"
    assert available_backends()[0] == "reference"


def test_use_backend_nests_and_restores():
    before = active_backend(torch.zeros(1))
    with use_backend("reference"):
        assert active_backend(torch.zeros(1)) == "reference"
        if "triton" in available_backends():
            with use_backend("triton"):
                assert active_backend(torch.zeros(1)) == "triton"
        assert active_backend(torch.zeros(1)) == "reference"
    assert active_backend(torch.zeros(1)) == before
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert active_backend(torch.zeros(1)) == before


def test_use_backend_stays_in_its_thread():
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(dispatch._forced.get()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_unknown_and_missing_backends_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="'cuda' is not a backend; choose one of reference, cpu, triton"):
        use_backend("cuda").__enter__()
    monkeypatch.setattr(dispatch, "_engine", lambda: None)
    with pytest.raises(RuntimeError, match="the C engine was not built"):
        use_backend("cpu").__enter__()
    assert "cpu" not in available_backends()


def test_a_forced_backend_refuses_what_it_cannot_take():
    rows, positions = torch.zeros(4, 2), PositionSet.full(2, 2)
    if "cpu" in available_backends():
        with use_backend("cpu"), pytest.raises(RuntimeError, match="takes float32 CPU tensors"):
            interpolate(rows.double(), positions)
        with use_backend("cpu"), pytest.raises(RuntimeError, match="does not have no_such_op"):
            dispatch.implementation("no_such_op", rows, "interpolate")
    if "triton" in available_backends() and not torch.cuda.is_available():
        with use_backend("triton"), pytest.raises(RuntimeError, match=r"take CUDA tensors.*TRITON_INTERPRET=1"):
            interpolate(rows, positions)


def test_a_missing_engine_is_said_once_and_the_reference_runs(monkeypatch):
    monkeypatch.setattr(dispatch, "_engine", lambda: None)
    dispatch._default_backend.cache_clear()
    rows = torch.arange(8.0).view(4, 2)
    with pytest.warns(RuntimeWarning, match="the C engine of accel was not built") as caught:
        first = interpolate(rows, PositionSet.full(2, 2))
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = interpolate(rows, PositionSet.full(2, 2))
    dispatch._default_backend.cache_clear()
    assert torch.equal(first, second)
    assert torch.equal(first, rows.view(1, 2, 2, 2).permute(0, 3, 1, 2))


class Watcher(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Tagged(torch.Tensor):
    """A subclass: its __torch_function__ has to see every op."""


def test_direct_in_plain_inference_only():
    plain, leaf = torch.zeros(2), torch.zeros(2, requires_grad=True)
    assert dispatch.is_direct(plain, None)
    assert dispatch.is_direct(torch.nn.Parameter(plain, requires_grad=False))
    assert not dispatch.is_direct(plain, leaf)
    assert not dispatch.is_direct(plain.as_subclass(Tagged))
    with torch.no_grad():
        assert dispatch.is_direct(plain, leaf)
    with torch.inference_mode():
        assert dispatch.is_direct(plain, leaf)
    with Watcher():
        assert not dispatch.is_direct(plain)
    with Functions():
        assert not dispatch.is_direct(plain)
    with torch.device("meta"):  # says where new tensors go, and ours say it themselves
        assert dispatch.is_direct(plain)
        with Functions():
            assert not dispatch.is_direct(plain)
    traced = []

    def record(x):
        traced.append(dispatch.is_direct(plain))
        return x + 1

    torch.jit.trace(record, plain, check_trace=False)
    torch.func.vmap(record)(plain)
    torch.compile(record, backend="eager", fullgraph=True)(plain)
    assert len(traced) >= 3 and not any(traced)


def test_a_dispatch_mode_sees_the_op_in_inference():
    rows = torch.zeros(4, 2)
    with torch.no_grad(), Watcher() as watcher:
        interpolate(rows, PositionSet.full(2, 2))
    assert "accel.interpolate.default" in watcher.seen


def test_a_cpu_call_loads_no_gpu_kernel():
    code = (
        "import sys, torch, accel\n"
        "from accel.kernels.positions import PositionSet\n"
        "with torch.no_grad(): accel.ops.interpolate(torch.zeros(4, 2), PositionSet.full(2, 2))\n"
        "loaded = [name for name in sys.modules if name.startswith(('torchvision', 'accel.kernels.triton'))]\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
