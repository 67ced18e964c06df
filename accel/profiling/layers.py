"""Tables per layer: the plan of a conversion before it, the profile after it."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.utils import _pair

from accel.inputs import Batch, Inputs, as_batch, tensors_of
from accel.profiling.flops import SavesMacs, layer_macs
from accel.profiling.layer_times import Times, measured_times
from accel.profiling.peaks import PRECISIONS, Peaks
from accel.profiling.sides import fastest_form, laid_out
from accel.reports.tables import Column, Report, percent, show_bytes, show_macs, show_rate
from accel.running import one_by_one, run_watched

COUNTED = (
    Column("layer", "layer"),
    Column("shape", "kernel"),
    Column("parameters", "params", show_macs),
    Column("dense_macs", "dense MACs", show_macs),
)


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
        *COUNTED,
        Column("executed_macs", "executed MACs", show_macs),
        Column("keep", "keep", percent),
        Column("baseline_ms", "dense ms", "{:.3f}".format),
        Column("ms", "ms", "{:.3f}".format),
        Column("share", "of time", percent),
        Column("gops", "GOP/s", show_rate),
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
    title = f"{type(model).__name__} on an input of {_described(as_batch(x))}"
    return Plan(title + _uncounted(rows), rows, _total(rows))


def profile(
    model: nn.Module,
    x: Inputs,
    baseline: nn.Module | None = None,
    repeats: int = 7,
    *,
    beside: str = "its dense form",
    compiled: bool = False,
    peaks: Peaks | None = None,
) -> Profile:
    """Multiply-accumulates and milliseconds per layer, in evaluation and without gradients.

    Args:
        model: any model, converted or dense.
        x: a tensor, a tuple of arguments or a dict of keyword arguments.
        baseline: the dense original; it runs interleaved with `model`, in the memory format that it is fastest in,
            which the title names.
        repeats: timed runs of each; medians are reported.
        beside: what the baseline is, for the title.
        compiled: time both of them, as a whole, under torch.compile too.
        peaks: what the machine reaches at the most, for `of_peak`.

    Returns:
        One row per layer that multiplies, one for everything else, and the whole network as the total, its time taken
        without the timers of the layers, which only tell how it is shared out. A row also has `op`, what the layer
        computes; `precision`; `activations`, the bytes that it puts out, and `bytes`, what it reads and writes when it
        runs by itself: inputs, output, parameters; `samples_ms`, its time in every round, and of them the quantiles
        `q10_ms` and `q90_ms`; and `of_peak`, its GOP/s as a share of what the machine can do in that precision.
        `.total` also has `peak_bytes` and `baseline_peak_bytes`, the most memory that the activations take
        (`accel.profiling.memory`), `baseline_format`, `compiled_ms` and `baseline_compiled_ms`. MACs
        are None where none of a layer's could be counted, which the title says.

    Raises:
        AccelError: torch cannot compile a model.
    """
    rows = list(_macs_rows(model, x).values())
    names = [row["layer"] for row in rows]
    runs, form = {"ms": functools.partial(as_batch(x).run, model)}, None
    if baseline is not None:
        form, dense = fastest_form(baseline, x)
        # what is converted computes in channels_last
        runs = {"baseline_ms": dense, "ms": functools.partial(laid_out(x, torch.channels_last).run, model)}
    times = measured_times(runs, names, repeats, x if compiled else None)
    total = _total(rows) | {"baseline_format": form, "baseline": form and beside}
    rows.append({**dict.fromkeys(_KEYS), "layer": "everything else"})
    _add_sizes(model, x, rows, total)
    _add_times(rows, total, times)
    for row in (*rows, total):
        row["peak_gops"] = peaks.gops.get(row["precision"]) if peaks else None
    rows, total = [derived(row, total) for row in rows], derived(total, total)
    activations = " instead of ".join(map(show_bytes, reversed(times.peak_bytes.values())))
    threads = torch.get_num_threads()
    title = f"{type(model).__name__} on {_described(as_batch(x))}, {threads} thread{'s' if threads > 1 else ''}"
    said = f", beside {beside} in {form}" if form else ""
    return Profile(f"{title}{said}; activations take at most {activations}{_uncounted(rows)}", rows, total)


def derived(row: Mapping, total: Mapping) -> dict:
    """The row with what follows from its counts and times: quantiles, speed-up, share of the whole time, and operations
    a nanosecond, a multiply-accumulate being two, also as a share of `peak_gops`."""
    ms, baseline, peak = row.get("ms"), row.get("baseline_ms"), row.get("peak_gops")
    gops = 2 * row["executed_macs"] / ms / 1e6 if ms and row.get("executed_macs") else None
    low, high = np.quantile(row["samples_ms"], (0.1, 0.9)).tolist() if row.get("samples_ms") else (None, None)
    return {
        **row,
        "q10_ms": low,
        "q90_ms": high,
        "speedup": baseline / ms if baseline and ms else None,
        "share": ms / total["ms"] if ms is not None else None,
        "gops": gops,
        "of_peak": gops / peak if gops and peak else None,
    }


def layer_bytes(model: nn.Module, x: Inputs, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(what each of the named layers reads and writes, what of it is put out) in a run of the model, layer by layer:
    the tensors that go in and come out, and its own parameters, at every call."""
    found = dict.fromkeys(names, (0, 0))

    def told(name: str, module: nn.Module) -> Callable:
        own = sum(parameter.nbytes for parameter in module.parameters(recurse=False))

        def leave(_module: nn.Module, args: tuple, out: object) -> None:
            given, put_out = (sum(tensor.nbytes for tensor in tensors_of(values)) for values in (args, out))
            moved, before = found[name]
            found[name] = moved + own + given + put_out, before + put_out

        return leave

    run_watched(model, x, [(module, told(name, module)) for name, module in model.named_modules() if name in found])
    return found


def _add_sizes(model: nn.Module, x: Inputs, rows: Sequence[dict], total: dict) -> None:
    """Parameters and bytes, to rows of which the last is of everything else."""
    *layers, rest = rows
    names = [row["layer"] for row in layers]
    owned, moved = _parameters(model, names), layer_bytes(model, x, names)
    for row in layers:
        both, put_out = moved[row["layer"]]
        row |= {"parameters": owned[row["layer"]], "bytes": both or None, "activations": put_out or None}
    total["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    rest["parameters"] = total["parameters"] - sum(owned.values())


def _add_times(rows: Sequence[dict], total: dict, times: Times) -> None:
    """Milliseconds and their samples, to rows of which the last is of everything else."""
    names = [*(row["layer"] for row in rows[:-1]), ""]
    for key in times.shares:
        total[key] = times.whole[key].median_ms
        for row, shares in zip(rows, map(times.shares[key].get, names)):
            row[key] = shares and total[key] * statistics.median(shares)
    total["samples_ms"] = list(times.whole["ms"].samples_ms)
    for row, shares in zip(rows, map(times.shares["ms"].get, names)):
        row["samples_ms"] = shares and [total["ms"] * share for share in shares]
    for side in ("", "baseline_"):
        compiled = times.whole.get(f"{side}compiled_ms")
        total[f"{side}peak_bytes"] = times.peak_bytes.get(f"{side}ms")
        total[f"{side}compiled_ms"] = compiled and compiled.median_ms


def _parameters(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """How many of the parameters lie in each of the named layers, the innermost one that holds them."""
    found = dict.fromkeys(names, 0)
    for path, parameter in model.named_parameters():
        parts = path.split(".")[:-1]
        inside = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        holder = next((name for name in inside if name in found), None if parts else FUNCTIONAL)
        if holder in found:
            found[holder] += parameter.numel()
    return found


FUNCTIONAL = "(functional)"  # what no submodule of the model does
_NO_MACS = {"dense_macs": 0, "executed_macs": 0, "keep": None}
_KEYS = (*(column.key for column in Profile.columns), "op", "precision", "bytes", "activations")  # of a row


def _macs_rows(model: nn.Module, x: Inputs) -> dict[str, dict]:
    """A row for every layer that multiplies when the model runs on x, by name."""
    modules = dict(model.named_modules())
    rows = {}
    dense: dict[str, int] = {}
    if any(isinstance(module, SavesMacs) for module in modules.values()):
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
        row = rows[layer.name] = {"layer": layer.name or FUNCTIONAL, **_description(module), **counts}
        if layer.uncounted:
            row["note"] = "; ".join(filter(None, (row["note"], f"not counted: {row['uncounted']}")))
            row |= {key: counts[key] or None for key in ("dense_macs", "executed_macs")}  # unknown, which is not 0
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
    row = {"shape": shape, "op": op, **dict.fromkeys(("mask", "interpolate", "note")), **facts}
    if row.get("precision") in (None, "fp32"):  # in what its weights are
        dtypes = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
        row["precision"] = PRECISIONS.get(next(dtypes, None))
    return row


def _described(batch: Batch) -> str:
    """Shapes, and what is not said by default of pictures."""
    tensors = batch.tensors
    shapes = ", ".join("x".join(map(str, each.shape)) for each in tensors)
    dtype, picture = tensors[0].dtype, tensors[0].dim() == 4 and not tensors[0].is_contiguous()
    said = [] if dtype == torch.float32 else [str(dtype).removeprefix("torch.")]
    said += ["channels_last"] if picture and tensors[0].is_contiguous(memory_format=torch.channels_last) else []
    return " ".join([shapes, *said])


def _total(rows: Sequence[Mapping]) -> dict:
    dense, executed = (sum(row[key] or 0 for row in rows) for key in ("dense_macs", "executed_macs"))
    precisions = {row.get("precision") for row in rows}
    return {
        "layer": "total",
        "precision": precisions.pop() if len(precisions) == 1 else None,
        "dense_macs": dense,
        "executed_macs": executed,
        "keep": executed / dense if dense else None,
    }
