"""Cases of kind `gpu_short`: what matters most of the Triton kernels, in a few minutes of a GPU.

A case: `part`, and `minutes`, which the whole run may take, imports and compiling among them; near their end nothing is
begun any more. Every job is compared with the reference before it is timed. One that fails does not stop the others: it
becomes a row as well, with `done` false and the `reason`, and so does one that was not reached. Parts:

* checks: every op that has a kernel (`accel.bench.gpu_checks`), untimed; `dtypes`.
* layers: the convolutions and fills of a layer as in kind `gpu`, both sides captured as CUDA graphs.
* networks: `model`, `batch`, `size`, `keep` (list), drawn weights in float16 and NHWC: the static plan of a converted
  network captured as one CUDA graph, against the dense network in another.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench import gpu, gpu_ops
from accel.bench.gpu_checks import PROBLEM, checks
from accel.bench.runner import Row, Settings
from accel.errors import ConfigError, explain

if TYPE_CHECKING:
    from torch import Tensor, nn

LAST_START = 0.5  # minutes before the end: what a job may take that compiles everything anew
NETWORK_TOLERANCE = 1e-2  # relative norm: some fifty layers round their maps to float16
_SHORT = "the {:g} minutes of this run were over"

Job = tuple[Row, Callable[[], Row]]  # what it is about, and what gives the rest of its row


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where it runs. Attributes: device; sample, which times calls, see `accel.profiling.latency.compare`; capture,
    what makes one launch of a call; clock, in seconds, that `Settings.started` was read from."""

    device: str
    sample: Callable[[Callable, int], float]
    capture: Callable[[Callable], Callable]
    clock: Callable[[], float] = time.monotonic


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    gpu.need_device()
    torch.backends.cudnn.benchmark = True  # the rival takes the best of its algorithms
    yield from measured(case, settings, Bench("cuda", gpu.event_ms, captured))


def measured(case: Mapping[str, Any], settings: Settings, bench: Bench) -> Iterator[Row]:
    if case["part"] not in PARTS:
        raise ConfigError(f"part must be one of {', '.join(PARTS)}, got {case['part']!r}")
    end = settings.started + 60 * case["minutes"]
    for about, job in PARTS[case["part"]](case, settings, bench):
        if bench.clock() > end - 60 * LAST_START:
            yield {**about, **_not_done("not reached: " + _SHORT.format(case["minutes"]))}
            continue
        try:
            row = job()
        except Exception as error:  # whatever a kernel, its compiler or the device raises
            row = _not_done(explain(error, pathlib.Path(__file__).parents[2]))
        yield {**about, **row}


def _not_done(reason: str) -> Row:
    return {"error": None, "correct": False, "done": False, "reason": reason}


def check_jobs(case: Mapping[str, Any], settings: Settings, bench: Bench) -> Iterator[Job]:
    """One for each op and dtype; untimed."""
    for dtype in case["dtypes"]:
        for op, check in checks().items():

            def job(dtype: str = dtype, check: Callable = check) -> Row:
                error, tolerance = check(gpu.Layer(PROBLEM, dtype, bench.device, settings.seed))
                return {"error": error, "correct": error <= tolerance}

            yield {"op": op, "dtype": dtype}, job


def layer_jobs(case: Mapping[str, Any], settings: Settings, bench: Bench) -> Iterator[Job]:
    """The forward ops, in float16, timed as graphs."""
    makers = [("perforated_conv2d", gpu.static, keep) for keep in case["keep"]]
    makers += [("masked_conv2d", gpu.dynamic, active) for active in case["active"]]
    makers += [("interpolate", gpu_ops.nearest, keep) for keep in case["keep"] if keep < 1]
    makers += [("interpolate_fitted", gpu_ops.fitted, keep) for keep in case["keep"] if keep < 1]
    for op, make, share in makers:

        def job(make: Callable = make, share: float = share) -> Row:
            layer = gpu.Layer(case, "float16", bench.device, settings.seed)
            found = make(layer, share)
            return gpu.timed(_as_graphs(found, bench.capture), {}, settings, bench.sample)

        yield {"op": op, "share": share, "dtype": "float16", "batch": case["batch"], "graphs": True}, job


def _as_graphs(found: gpu_ops.Measurement, capture: Callable) -> gpu_ops.Measurement:
    """Its sides captured, unless it is wrong."""
    right = found.error <= found.tolerance
    return found._replace(sides={name: capture(side) for name, side in found.sides.items()} if right else {})


def network_jobs(case: Mapping[str, Any], settings: Settings, bench: Bench) -> Iterator[Job]:
    for keep in case["keep"]:
        yield (
            {"op": case["model"], "keep": keep, "dtype": "float16", "batch": case["batch"], "graphs": True},
            lambda keep=keep: network(case, keep, settings, bench),
        )


def network(case: Mapping[str, Any], keep: float, settings: Settings, bench: Bench) -> Row:
    """The row of a converted network: right eagerly and as a graph that reads other pictures, then timed."""
    import torch

    import accel
    from accel.profiling.distances import relative_norm
    from accel.zoo.registry import default_rules, get_model

    torch.manual_seed(settings.seed)
    dense, generator = get_model(case["model"], weights="none"), torch.Generator().manual_seed(settings.seed)
    x, other = torch.randn(2, case["batch"], 3, *case["size"], generator=generator)
    rules = default_rules(case["model"], accel.Perforate(keep=keep, mask=case["mask"], seed=settings.seed))
    fast = accel.convert_model(dense, rules, example_inputs=x[:1])
    with torch.inference_mode():
        given, expected = _on_card(x, bench.device), _reference(_on_card(fast, bench.device), other)
        sides = {"dense": _on_card(dense, bench.device), "converted": _on_card(fast, bench.device)}
        graphs = {name: bench.capture(lambda net=net: net(given)) for name, net in sides.items()}
        given.copy_(other)  # a graph reads what lies where its input lay
        outputs = graphs["converted"](), sides["converted"](given)
        error = max(relative_norm(out.float(), expected) for out in outputs)
        found = gpu_ops.Measurement({}, error, NETWORK_TOLERANCE, graphs, "dense", "converted")
        return gpu.timed(found, {}, settings, bench.sample)


def _reference(network: nn.Module, x: Tensor) -> Tensor:
    """The network's output in float32, of the float16 weights and pictures; its weights are float32 ones then."""
    from accel.kernels.dispatch import use_backend

    weights = next(network.parameters())
    with use_backend("reference"):
        return network.float()(x.to(weights).float())


def _on_card(held: Tensor | nn.Module, device: str) -> Tensor | nn.Module:
    """A batch or a network in float16 and NHWC on the device."""
    import torch

    return held.to(device, torch.float16, memory_format=torch.channels_last)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """One launch that repeats the call's kernels on the same memory, and returns what they write."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiled and tuned before
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> object:
        graph.replay()
        return out

    return replay


PARTS: dict[str, Callable[[Mapping[str, Any], Settings, Bench], Iterable[Job]]] = {
    "checks": check_jobs,
    "layers": layer_jobs,
    "networks": network_jobs,
}
