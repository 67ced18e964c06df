"""Cases of kind `gpu`: the Triton kernels on a CUDA device, checked against the reference there, then timed.

A case: `channels` [in, out], `size` [H, W], `kernel`, `batch`, `dtypes`, `keep` (list, static grid masks) and `active`
(list, fractions of random dynamic masks). Rows, by `op`:

* perforated_conv2d: bias and ReLU fused, dense and compact output, against cuDNN's convolution + ReLU in NHWC.
* perforated_conv2d_backward: dX, dW, db against cuDNN's.
* masked_conv2d: the update of a residual stream against convolution + addition; `ms_positions` finds the positions.
* the ops around them: see `accel.bench.gpu_ops`.

Times are CUDA events, the sides taking turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.gpu_ops import Maps, Measurement, against_reference, measurements, position_set
from accel.bench.runner import Row, Settings
from accel.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    need_device()
    yield from measured(case, settings, "cuda", event_ms)


def need_device() -> None:
    """ConfigError where torch sees no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "cases of this kind need a CUDA device and torch sees none: run them on a GPU machine, "
            "or `accel bench --static` for what can be known without one"
        )


def measured(case: Mapping[str, Any], settings: Settings, device: str, sample: Callable) -> Iterator[Row]:
    """The rows of a case on `device`; `sample` times a call, see `accel.profiling.latency.compare`."""
    for dtype in case["dtypes"]:
        layer = Layer(case, dtype, device, settings.seed)
        found = [static(layer, keep) for keep in case["keep"]]
        found += [backward(layer, keep) for keep in case["keep"]]
        found += [dynamic(layer, fraction) for fraction in case["active"]]
        for measurement in (*found, *measurements(layer, case["keep"], case["active"])):
            yield timed(measurement, {"dtype": dtype, "batch": case["batch"]}, settings, sample)


class Layer(Maps):
    """Drawn tensors of one convolution of a case, in NHWC on the device; `values` is a map like its output."""

    def __init__(self, case: Mapping[str, Any], dtype: str, device: str, seed: int):
        import torch

        super().__init__(case, dtype, device, torch.Generator().manual_seed(seed))
        (c, k), side = case["channels"], case["kernel"]
        self.x = self.draw(case["batch"], c, *self.size)
        self.weight, self.bias = self.draw(k, c, side, side) / (side * c**0.5), self.draw(k)
        self.geometry = {"stride": (1, 1), "padding": (side // 2,) * 4, "dilation": (1, 1), "groups": 1}

    def cudnn(self, *leaves: Tensor) -> Tensor:
        """torch's convolution of the layer's own tensors, or of leaves that stand in for them."""
        import torch.nn.functional as F

        return F.conv2d(*(leaves or (self.x, self.weight, self.bias)), padding=self.geometry["padding"][0])


def static(layer: Layer, keep: float) -> Measurement:
    from accel import ops

    kept = position_set(layer, keep)

    def call(compact: bool, *tensors: Tensor) -> Tensor:
        return ops.perforated_conv2d(*tensors, kept, **layer.geometry, activation="relu", compact=compact)

    ours = layer.x, layer.weight, layer.bias
    error = max(against_reference(lambda *t, c=compact: call(c, *t), ours) for compact in (False, True))
    sides = {
        "cudnn": lambda: layer.cudnn().relu_(),
        "dense_output": lambda: call(False, *ours),
        "compact_output": lambda: call(True, *ours),
    }
    row = {"op": "perforated_conv2d", "keep": round(kept.keep, 4)}
    return Measurement(row, error, layer.tolerance, sides, "cudnn", "dense_output")


def backward(layer: Layer, keep: float) -> Measurement:
    import torch

    from accel import ops

    kept = position_set(layer, keep)
    leaves = [tensor.clone().requires_grad_() for tensor in (layer.x, layer.weight, layer.bias)]

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = ops.perforated_conv2d(*tensors, kept, **layer.geometry)
        return torch.autograd.grad(out, tensors, layer.values.to(out.dtype))

    def dense() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer.cudnn(*leaves), leaves, layer.values)

    with torch.inference_mode(False), torch.enable_grad():
        error = against_reference(gradients, leaves)
    row = {"op": "perforated_conv2d_backward", "keep": round(kept.keep, 4)}  # both sides include their forward
    sides = {"cudnn": dense, "ours": lambda: gradients(*leaves)}
    return Measurement(row, error, layer.tolerance, sides, "cudnn", "ours")


def dynamic(layer: Layer, fraction: float) -> Measurement:
    from accel import ops

    mask = layer.scores < fraction
    active = ops.active_positions(mask)

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return ops.masked_conv2d(x, weight, bias, active, **layer.geometry, residual=residual)

    ours = layer.x, layer.weight, layer.bias, layer.values
    sides = {
        "cudnn": lambda: layer.cudnn().add_(layer.values),
        "update": lambda: call(*ours),
        "positions": lambda: ops.active_positions(mask),
    }
    row = {"op": "masked_conv2d", "active": round(active.total / mask.numel(), 4)}
    return Measurement(row, against_reference(call, ours), layer.tolerance, sides, "cudnn", "update")


def timed(measurement: Measurement, row: Row, settings: Settings, sample: Callable) -> Row:
    """The whole row, with its times unless the result is wrong."""
    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import medians, quantiles

    error, sides = measurement.error, measurement.sides
    row = {**measurement.row, **row, "error": error, "correct": error <= measurement.tolerance}
    if row["correct"]:
        timing = compare(sides, repeats=settings.repeats, sample=sample)
        speedup = ratio(timing[measurement.rival], timing[measurement.ours]).median
        row |= {**medians(timing), "speedup": round(speedup, 3), "quantiles": quantiles(timing)}
    return row


def event_ms(call: Callable[[], object], calls: int) -> float:
    """Milliseconds per call between two CUDA events."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / calls
