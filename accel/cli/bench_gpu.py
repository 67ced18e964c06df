"""Cases of kind `gpu`: the Triton kernels on a CUDA device, checked against the reference there, then timed.

A case: `channels` [in, out], `size` [H, W], `kernel`, `batch`, `dtypes`, `keep` (list, static grid masks) and `active`
(list, fractions of random dynamic masks). Rows, by `op`:

* perforated_conv2d: bias and ReLU fused, dense and compact output, against cuDNN's convolution + ReLU in NHWC.
* perforated_conv2d_backward: dX, dW, db against cuDNN's.
* masked_conv2d: the update of a residual stream against convolution + addition; `ms_positions` finds the positions.
* halting_step: one unit in place against the reference.

Times are CUDA events, the sides taking turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.cli.bench import Row, Settings
from accel.cli.bench_exactness import relative_norm
from accel.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

# Relative norm against the reference in float32: rounding of the output, and for float32 that of tf32's inputs.
TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 2e-3}


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "cases of kind gpu need a CUDA device and torch sees none: run them on a GPU machine, "
            "or `accel bench --static` for what can be known without one"
        )
    yield from measured(case, settings, "cuda", event_ms)


def measured(case: Mapping[str, Any], settings: Settings, device: str, sample: Callable) -> Iterator[Row]:
    """The rows of a case on `device`; `sample` times a call, see `accel.profiling.latency.compare`."""
    for dtype in case["dtypes"]:
        layer = Layer(case, dtype, device, settings.seed)
        found = [static(layer, keep) for keep in case["keep"]]
        found += [backward(layer, keep) for keep in case["keep"]]
        found += [dynamic(layer, fraction) for fraction in case["active"]]
        for row, error, sides, dense, ours in (*found, halting(layer)):
            yield timed(row | {"dtype": dtype, "batch": case["batch"]}, error, sides, dense, ours, settings, sample)


class Layer:
    """Drawn tensors of one convolution of a case, in NHWC on the device, and the same in float32 for the reference."""

    def __init__(self, case: Mapping[str, Any], dtype: str, device: str, seed: int):
        import torch

        self.generator = torch.Generator().manual_seed(seed)
        self.device, self.dtype, self.tolerance = device, getattr(torch, dtype), TOLERANCE[dtype]
        (c, k), self.size, side = case["channels"], tuple(case["size"]), case["kernel"]
        self.x, self.residual = self.draw(case["batch"], c, *self.size), self.draw(case["batch"], k, *self.size)
        self.weight, self.bias = self.draw(k, c, side, side) / (side * c**0.5), self.draw(k)
        self.geometry = {"stride": (1, 1), "padding": (side // 2,) * 4, "dilation": (1, 1), "groups": 1}

    def draw(self, *shape: int) -> Tensor:
        import torch

        tensor = torch.randn(shape, generator=self.generator).to(self.device, self.dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    def cudnn(self, *leaves: Tensor) -> Tensor:
        """torch's convolution of the layer's own tensors, or of leaves that stand in for them."""
        import torch.nn.functional as F

        return F.conv2d(*(leaves or (self.x, self.weight, self.bias)), padding=self.geometry["padding"][0])


Measurement = tuple[Row, float, dict[str, Callable], str, str]  # row, error, sides, names of the dense side and of ours


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
    return {"op": "perforated_conv2d", "keep": round(kept.keep, 4)}, error, sides, "cudnn", "dense_output"


def backward(layer: Layer, keep: float) -> Measurement:
    import torch

    from accel import ops

    kept = position_set(layer, keep)
    leaves = [tensor.clone().requires_grad_() for tensor in (layer.x, layer.weight, layer.bias)]

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = ops.perforated_conv2d(*tensors, kept, **layer.geometry)
        return torch.autograd.grad(out, tensors, layer.residual.to(out.dtype))

    def dense() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer.cudnn(*leaves), leaves, layer.residual)

    with torch.inference_mode(False), torch.enable_grad():
        error = against_reference(gradients, leaves)
    row = {"op": "perforated_conv2d_backward", "keep": round(kept.keep, 4)}  # both sides include their forward
    return row, error, {"cudnn": dense, "ours": lambda: gradients(*leaves)}, "cudnn", "ours"


def dynamic(layer: Layer, fraction: float) -> Measurement:
    import torch

    from accel import ops

    mask = torch.rand(len(layer.x), *layer.size, generator=layer.generator) < fraction
    mask = mask.to(layer.device)
    active = ops.active_positions(mask)

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return ops.masked_conv2d(x, weight, bias, active, **layer.geometry, residual=residual)

    ours = layer.x, layer.weight, layer.bias, layer.residual
    sides = {
        "cudnn": lambda: layer.cudnn().add_(layer.residual),
        "update": lambda: call(*ours),
        "positions": lambda: ops.active_positions(mask),
    }
    row = {"op": "masked_conv2d", "active": round(active.total / mask.numel(), 4)}
    return row, against_reference(call, ours), sides, "cudnn", "update"


def halting(layer: Layer) -> Measurement:
    import torch

    from accel.kernels.dispatch import use_backend
    from accel.ops import halting_step, halting_step_

    x = layer.residual
    h = torch.rand(len(x), *layer.size, generator=layer.generator).to(layer.device) / 3
    state = torch.ones_like(h), torch.ones_like(h), torch.zeros_like(h, dtype=torch.int32)

    def call(x: Tensor) -> tuple[Tensor, ...]:
        return halting_step(h, x, *state, torch.zeros_like(x))

    def step_on(*state: Tensor) -> Callable[[], Tensor]:
        output = torch.zeros_like(x)
        return lambda: halting_step_(h, x, *state, output)

    ours, plain = (step_on(*(tensor.clone() for tensor in state)) for _ in range(2))

    def reference() -> Tensor:
        with use_backend("reference"):
            return plain()

    # positions halt after about six calls: from then on both sides do what a halted map costs
    sides = {"reference": reference, "ours": ours}
    return {"op": "halting_step"}, against_reference(call, (x,)), sides, "reference", "ours"


def position_set(layer: Layer, keep: float):
    from accel.masks import build_mask, layer_generator

    generator = layer_generator(0, "bench", *layer.size)
    return build_mask("grid", keep, *layer.size, generator=generator).to(layer.device)


def against_reference(call: Callable, tensors: tuple[Tensor, ...] | list[Tensor]) -> float:
    """Largest relative norm of `call`'s results against the same call on the reference backend in float32."""
    from accel.kernels.dispatch import use_backend

    got = call(*tensors)
    with use_backend("reference"):
        expected = call(*(tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in tensors))
    pairs = zip(got, expected) if isinstance(got, tuple) else [(got, expected)]
    return max(relative_norm(one.detach().float(), other.detach()) for one, other in pairs)


def timed(
    row: Row, error: float, sides: dict[str, Callable], dense: str, ours: str, settings: Settings, sample: Callable
) -> Row:
    """The row with its times, unless the result is wrong."""
    from accel.cli.sides import medians, quantiles
    from accel.profiling.latency import compare, ratio

    row |= {"error": error, "correct": error <= TOLERANCE[row["dtype"]]}
    if row["correct"]:
        timing = compare(sides, repeats=settings.repeats, sample=sample)
        row |= {**medians(timing), "speedup": round(ratio(timing[dense], timing[ours]).median, 3)}
        row["quantiles"] = quantiles(timing)
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
