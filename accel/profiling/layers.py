"""Tables per layer: the plan of a conversion before it, the profile after it."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from accel.inputs import Batch, Inputs, as_batch, tensors_of
from accel.profiling.flops import SavesMacs, layer_macs
from accel.profiling.latency import compare
from accel.profiling.memory import peak_activation_bytes
from accel.profiling.sides import fastest_form, laid_out
from accel.reports.tables import Column, Report, percent, show_macs
from accel.running import evaluation, observer, one_by_one, replaced_forwards, run_watched


class Plan(Report):
    """What a conversion does to each layer that multiplies, for one example input."""

    columns = (
        Column("layer", "layer"),
        Column("shape", "kernel"),
        Column("output", "output"),
        Column("dense_macs", "dense MACs", show_macs),
        Column("executed_macs", "executed MACs", show_macs),
        Column("keep", "keep", percent),
        Column("mask", "mask"),
        Column("interpolate", "filled by"),
        Column("note", "note"),
    )


class Profile(Report):
    """Where the multiply-accumulates and the time of a model go; beside its dense original where one was given."""

    columns = (
        Column("layer", "layer"),
        Column("shape", "kernel"),
        Column("parameters", "params", show_macs),
        Column("dense_macs", "dense MACs", show_macs),
        Column("executed_macs", "executed MACs", show_macs),
        Column("keep", "keep", percent),
        Column("baseline_ms", "dense ms", "{:.3f}".format),
        Column("ms", "ms", "{:.3f}".format),
        Column("share", "of time", percent),
        Column("gops", "GOP/s", "{:.0f}".format),
        Column("speedup", "speed-up", "{:.2f}x".format),
        Column("note", "note"),
    )


def plan_of(model: nn.Module, x: Inputs, calls: Mapping[str, list[tuple[int, ...]]], notes: Mapping[str, str]) -> Plan:
    """The plan that a converted model amounts to.

    Args:
        x: what the model runs on: a tensor, a tuple of arguments or a dict of keyword arguments.
        calls: the output shapes of its layers' calls on x, from `record_calls`.
        notes: what is special about some layers, by name.
    """
    found = _macs_rows(model, x)
    rows = []
    for name, seen in calls.items():
        row = found.pop(name, None) or {"layer": name, **_description(model.get_submodule(name)), **_NO_MACS}
        often = None if len(seen) == 1 else f"called {len(seen)} times" if seen else "not called"
        rows.append(
            {
                **row,
                "output": "x".join(map(str, seen[0][1:])) if seen else None,
                "note": "; ".join(filter(None, (notes.get(name), row["note"], often))) or None,
            }
        )
    rows += [{**row, "output": None} for row in found.values()]
    title = f"{type(model).__name__} on an input of {_shapes(as_batch(x))}"
    return Plan(title + _uncounted(rows), rows, _total(rows))


def profile(model: nn.Module, x: Inputs, baseline: nn.Module | None = None, repeats: int = 7) -> Profile:
    """Multiply-accumulates and milliseconds per layer, in evaluation and without gradients.

    Args:
        model: any model, converted or dense.
        x: a tensor, a tuple of arguments or a dict of keyword arguments.
        baseline: the dense original; it runs interleaved with `model`, in the memory format that it is fastest in,
            which the title names.
        repeats: timed runs of each; medians are reported.

    Returns:
        One row per layer that multiplies, one for everything else, and the whole network as the total, its time taken
        without the timers of the layers, which only tell how it is shared out. A row also has `op`, what the layer
        computes, and `bytes`, what it reads and writes when it runs by itself: inputs, output, parameters. `.total`
        also has `peak_bytes` and `baseline_peak_bytes`, the most memory that the activations take
        (`accel.profiling.memory`), and `baseline_format`.
    """
    rows = list(_macs_rows(model, x).values())
    names = [row["layer"] for row in rows]
    moved = layer_bytes(model, x, names)
    runs, form = {"ms": functools.partial(as_batch(x).run, model)}, None
    if baseline is not None:
        form, dense = fastest_form(baseline, x)
        # what is converted computes in channels_last
        runs = {"baseline_ms": dense, "ms": functools.partial(laid_out(x, torch.channels_last).run, model)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for run in runs.values():
            stack.enter_context(evaluation(_model_of(run)))
        whole = compare(runs, repeats)
        shares = _layer_shares(runs, names, repeats)
        peaks = {key: peak_activation_bytes(run) for key, run in runs.items()}
    total, rest = _total(rows), {"layer": "everything else"}
    owned = _parameters(model, names)
    for row in rows:
        row |= {"parameters": owned[row["layer"]], "bytes": moved[row["layer"]] or None}
    total["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    rest["parameters"] = total["parameters"] - sum(owned.values())
    for key in runs:
        total[key] = whole[key].median_ms
        rest[key] = total[key] * shares[key][""]
        for row in rows:
            row[key] = total[key] * shares[key][row["layer"]] if row["layer"] in shares[key] else None
    rows.append({**dict.fromkeys((*(column.key for column in Profile.columns), "op", "bytes")), **rest})
    rows, total = [derived(row, total) for row in rows], derived(total, total)
    total |= {"peak_bytes": peaks["ms"], "baseline_peak_bytes": peaks.get("baseline_ms"), "baseline_format": form}
    megabytes = " instead of ".join(f"{peaks[key] / 1e6:.1f} MB" for key in ("ms", "baseline_ms") if key in peaks)
    title = f"{type(model).__name__} on {_shapes(as_batch(x))}, {torch.get_num_threads()} threads"
    beside = f", beside its dense form in {form}" if form else ""
    return Profile(f"{title}{beside}; activations take at most {megabytes}{_uncounted(rows)}", rows, total)


def derived(row: Mapping, total: Mapping) -> dict:
    """The row with what follows from its counts and times: speed-up, share of the whole time, and operations a
    nanosecond, a multiply-accumulate being two."""
    ms, baseline = row.get("ms"), row.get("baseline_ms")
    return {
        **row,
        "speedup": baseline / ms if baseline and ms else None,
        "share": ms / total["ms"] if ms is not None else None,
        "gops": 2 * row["executed_macs"] / ms / 1e6 if ms and row.get("executed_macs") else None,
    }


def layer_bytes(model: nn.Module, x: Inputs, names: Sequence[str]) -> dict[str, int]:
    """What each of the named layers reads and writes in a run of the model, layer by layer: the tensors that go in and
    come out, and its own parameters, at every call."""
    found = dict.fromkeys(names, 0)

    def told(name: str, module: nn.Module) -> Callable:
        own = sum(parameter.nbytes for parameter in module.parameters(recurse=False))

        def leave(_module: nn.Module, args: tuple, out: object) -> None:
            found[name] += own + sum(tensor.nbytes for tensor in tensors_of((args, out)))

        return leave

    run_watched(model, x, [(module, told(name, module)) for name, module in model.named_modules() if name in found])
    return found


def _parameters(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """How many of the parameters lie in each of the named layers, the innermost one that holds them."""
    found = dict.fromkeys(names, 0)
    for path, parameter in model.named_parameters():
        parts = path.split(".")[:-1]
        inside = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        holder = next((name for name in inside if name in found), None if parts else _FUNCTIONAL)
        if holder in found:
            found[holder] += parameter.numel()
    return found


def _model_of(run: functools.partial) -> nn.Module:
    return run.args[0]


def _layer_shares(
    runs: Mapping[str, functools.partial], names: Sequence[str], repeats: int
) -> dict[str, dict[str, float]]:
    """The share of a run's time that each of the named layers takes, "" for what is in none, per side, in turns."""
    samples: dict[str, dict[str, list[float]]] = {key: {} for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            for name, spent in _timed_run(run, names).items():
                samples[key].setdefault(name, []).append(spent)
    shares = {}
    for key, side in samples.items():
        medians = {name: statistics.median(times) for name, times in side.items()}
        shares[key] = {name: median / sum(medians.values()) for name, median in medians.items()}
    return shares


def _timed_run(run: functools.partial, names: Sequence[str]) -> dict[str, float]:
    """Milliseconds spent during one run in each of the named layers, but not in others within them; "" for the rest."""
    spent: dict[str, float] = {}
    within = [0.0]  # of each call under way, what the layers called in it took

    def timed(name: str, forward: Callable) -> Callable:
        def call(*args, **kwargs):
            start = _now_ms()
            within.append(0.0)
            try:
                return forward(*args, **kwargs)
            finally:
                took = _now_ms() - start
                spent[name] = spent.get(name, 0.0) + took - within.pop()
                within[-1] += took

        return call

    layers = {name: layer for name, layer in _model_of(run).named_modules() if name in names and name}
    watched = {layer: observer(layer.forward, functools.partial(timed, name)) for name, layer in layers.items()}
    with replaced_forwards(watched):
        timed("", run)()
    return spent


def _now_ms() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() * 1e3


_FUNCTIONAL = "(functional)"  # what no submodule of the model does
_NO_MACS = {"dense_macs": 0, "executed_macs": 0, "keep": None}


def _macs_rows(model: nn.Module, x: Inputs) -> dict[str, dict]:
    """A row for every layer that multiplies when the model runs on x, by name."""
    modules = dict(model.named_modules())
    rows = {}
    with one_by_one():  # a dense 1x1 convolution that runs on rows no longer tells how many positions its map has
        dense = {layer.name: layer.dense for layer in layer_macs(model, x)}
    for layer in layer_macs(model, x):
        module = modules[layer.name]
        whole = dense.get(layer.name, layer.dense)
        counts = {
            "dense_macs": whole,
            "executed_macs": layer.executed,
            "keep": layer.executed / whole if isinstance(module, SavesMacs) and whole else None,
            "uncounted": ", ".join(layer.uncounted) or None,
        }
        rows[layer.name] = {"layer": layer.name or _FUNCTIONAL, **_description(module), **counts}
    return rows


def _uncounted(rows: Sequence[Mapping]) -> str:
    """What multiplies in the layers and is in none of their counts, for a title."""
    named = [f"{row['uncounted']} in {row['layer']}" for row in rows if row.get("uncounted")]
    return f"; NOT COUNTED: {', '.join(named)}" if named else ""


def _description(module: nn.Module) -> dict:
    """What a row says of the layer itself: its shape, such as '3x3/2 64>128' or '512>10', what it computes, such as a
    '3x3/2 convolution', and how it saves."""
    shape = op = type(module).__name__
    if isinstance(module, nn.Linear):
        shape, op = f"{module.in_features}>{module.out_features}", "linear"
    elif isinstance(module, nn.Conv2d):
        kernel, stride = "x".join(map(str, module.kernel_size)), _pair(module.stride)
        stride = "" if set(stride) == {1} else f"/{stride[0]}"
        shape = f"{kernel}{stride} {module.in_channels}>{module.out_channels}"
        op = f"{kernel}{stride} {'grouped ' if module.groups > 1 else ''}convolution"
    facts = module.facts() if isinstance(module, SavesMacs) else {}
    return {"shape": shape, "op": op, **dict.fromkeys(("mask", "interpolate", "precision", "note")), **facts}


def _shapes(batch: Batch) -> str:
    return ", ".join("x".join(map(str, each.shape)) for each in batch.tensors)


def _total(rows: Sequence[Mapping]) -> dict:
    dense, executed = (sum(row[key] for row in rows) for key in ("dense_macs", "executed_macs"))
    return {
        "layer": "total",
        "dense_macs": dense,
        "executed_macs": executed,
        "keep": executed / dense if dense else None,
    }
