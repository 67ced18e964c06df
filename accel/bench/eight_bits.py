"""Cases of kind `eight_bits`: whole networks in bytes, perforated or not, beside torch and, where it is installed,
OpenVINO in its own precisions.

A case: `model`, `weights` (none: drawn, where they can be), `size` [H, W], `batch` (list), and either `images` (a
folder) or `pages` (so many drawn pictures of text), of which the first `calibrate` are what is calibrated on and the
others are judged; `forms`, tables of what `accel.Perforate` takes, of `only` (patterns of the layers that it is meant
for; none: the zoo's rules) and of `low_rank`, the share of the MACs that the network is decomposed to before, but for
the layers that the patterns in `whole` match. Paths are relative to the working directory. OpenVINO (extra `bench`) is
asked for latency on as many threads, its int8 is nncf's post-training quantization on the same pictures; for every
share in `shrunk` it runs in int8 on pictures whose sides are that much smaller, in multiples of `grain`, its maps
enlarged again.

Rows, one a form or rival and batch: interleaved times in milliseconds; `speedup`, over the fastest of torch's forms;
`openvino`, the time of OpenVINO in int8 over this one's; the mean absolute difference of the outputs; of maps the
intersection over union at 0.5, of pages `box_f1` (accel.zoo.text_detector); `shrunk`, the difference of OpenVINO on a
shrunk picture as fast, between the two nearest of those timed, over this one's. `error`, `layer_error`: of a converted
network, see `_errors`. With --output the rows are drawn: what is lost over time, a panel a case and batch.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor, nn

SHOWN = (
    *("case", "batch", "form", "ms", "speedup", "openvino", "mean_abs_difference", "iou_at_0.5", "box_f1"),
    *("top1_agreement", "shrunk"),
)
# Relative norms: of every layer from the readable reference on the same input, and of the whole from its layers run one
# by one. In bytes a number that differs by 1e-7 may round the other way, a whole step, which turns others over: HED's
# outputs differ by 4e-3 to 7e-3 between two orders of rounding.
TOLERANCE = 1e-4
TOLERANCE_OF_BYTES = 2e-2
_PRECISIONS = {"f32": "f32", "bf16": "bf16", "int8": "bf16"}  # of OpenVINO: of what is not in int8 its default here
_SHRUNK = "openvino int8, "

Side = Callable[["Tensor"], object]


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    from accel.profiling.latency import compare
    from accel.profiling.sides import FORMATS, in_format
    from accel.zoo.registry import get_model

    torch.manual_seed(settings.seed)
    dense = get_model(case["model"], weights=case.get("weights"))
    pictures = _pictures(case, settings.seed)
    known, judged = pictures[: case["calibrate"]], pictures[case["calibrate"] :]
    bases = {
        share: _decomposed(dense, share, case, known) for share in {form.get("low_rank") for form in case["forms"]}
    }
    for batch in case["batch"]:
        x = known[:batch]
        forms = {
            _name(form): _converted(bases[form.get("low_rank")], case["model"], form, x, known)
            for form in case["forms"]
        }
        rivals = _openvino(dense, x, known, case)
        errors = {name: _errors(network, x) for name, network in forms.items()}
        for name in [name for name, found in errors.items() if not _is_right(name, found)]:
            yield {"batch": batch, "form": name, **errors[name], "correct": False}
            del forms[name]
        with torch.inference_mode():
            sides = {name: in_format(dense, x, form) for name, form in FORMATS.items()}
            sides |= {name: in_format(network, x, torch.channels_last) for name, network in forms.items()}
            sides |= {name: functools.partial(run, x) for name, run in rivals.items()}
            timing = compare(sides, settings.repeats)
            found = [
                {"batch": batch, "form": name, **errors.get(name, {}), "correct": True, **timed, **quality}
                for name, timed, quality in _measured(dense, {**forms, **rivals}, timing, judged, "pages" in case)
            ]
        yield from _beside_shrunk(found)


def is_rival(row: Row) -> bool:
    return row["form"].startswith(("openvino", "dense_"))


def draw(rows: Sequence[Row]) -> Figure:
    """What is lost over milliseconds: boxes where they are judged, the mean absolute difference elsewhere."""
    from matplotlib.figure import Figure

    panels: dict[tuple, list[Row]] = {}
    for row in rows:
        if "ms" in row:
            panels.setdefault((row["case"], row["batch"]), []).append(row)
    figure = Figure(figsize=(7 * max(1, len(panels)), 5), layout="constrained")
    for panel, (title, chosen) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels.items()):
        _draw_panel(panel, chosen)
        panel.set(title="{}, batch {}".format(*title), xlabel="milliseconds")
    return figure


def _draw_panel(panel: Axes, rows: Sequence[Row]) -> None:
    boxes = "box_f1" in rows[0]
    for row in rows:
        value = 1 - row["box_f1"] if boxes else row["mean_abs_difference"]
        style = {"marker": "s", "color": "tab:orange"} if is_rival(row) else {"marker": "o", "color": "tab:blue"}
        panel.plot(row["ms"], value, **style)
        panel.annotate(row["form"], (row["ms"], value), textcoords="offset points", xytext=(4, 4), fontsize=7)
    panel.set_ylabel("boxes lost (1 - F1)" if boxes else "mean absolute difference from the dense outputs")
    panel.set_yscale("symlog", linthresh=1e-3)
    panel.set_xscale("log")
    panel.margins(x=0.2)
    panel.grid(alpha=0.3, which="both")


def _pictures(case: Mapping[str, Any], seed: int) -> Tensor:
    """The network's inputs of all pictures of the case."""
    import torch

    from accel.zoo.picture_files import read_folder
    from accel.zoo.registry import preprocess

    size = tuple(case["size"])
    if "pages" not in case:
        return preprocess(case["model"], read_folder(pathlib.Path(case["images"]), size))
    from accel.zoo.text_pages import draw_pages

    return preprocess(case["model"], draw_pages(case["pages"], size, torch.Generator().manual_seed(seed)))


def _measured(
    dense: nn.Module, runs: Mapping[str, Side], timing: Mapping[str, Any], judged: Tensor, boxes: bool
) -> Iterator[tuple[str, Row, Row]]:
    """(name, times, quality) of torch's fastest form and of every run."""
    from accel.profiling.latency import ratio
    from accel.profiling.sides import DENSE, fastest

    best, rival = fastest(timing, DENSE), timing.get("openvino int8")
    for name, run in {best: dense, **runs}.items():
        mine = timing[name]
        times = {"ms": round(mine.median_ms, 3), "q10_ms": round(mine.quantile_ms(0.1), 3)}
        times |= {"q90_ms": round(mine.quantile_ms(0.9), 3), "samples": len(mine.samples_ms)}
        times["speedup"] = round(ratio(timing[best], mine).median, 3)
        if rival is not None:
            times["openvino"] = round(ratio(rival, mine).median, 3)
        yield name, times, _quality(dense, run, judged, boxes)


def _beside_shrunk(found: Sequence[Row]) -> Iterator[Row]:
    """The rows, `shrunk` in those of ours that lie between two shrunk rivals by the clock."""
    import numpy as np

    rivals = sorted((row["ms"], row["mean_abs_difference"]) for row in found if row["form"].startswith(_SHRUNK))
    times, losses = np.log(np.array(rivals).reshape(-1, 2)).T
    for row in found:
        mine, loss = math.log(row["ms"]), row["mean_abs_difference"]
        if is_rival(row) or not loss or not len(times):
            yield row
        elif times[0] <= mine <= times[-1]:
            yield {**row, "shrunk": round(float(np.exp(np.interp(mine, times, losses))) / loss, 3)}
        else:
            yield row


def _name(form: Mapping[str, Any]) -> str:
    """Such as "0.5 fitted int8", or "low rank 0.5, whole fp32"."""
    before = f"low rank {form['low_rank']:g}, " if "low_rank" in form else ""
    kept = "whole" if form["keep"] == 1 else f"{form['keep']:g} {form.get('interpolate', 'nearest')}"
    return f"{before}{kept} {form.get('precision', 'fp32')}"


def _decomposed(dense: nn.Module, share: float | None, case: Mapping[str, Any], known: Tensor) -> nn.Module:
    import accel

    whole = dict.fromkeys(case.get("whole", ()))
    return dense if share is None else accel.decompose_model(dense, calibration=[known], macs=share, ranks=whole)


def _converted(base: nn.Module, model: str, form: Mapping[str, Any], x: Tensor, known: Tensor) -> nn.Module:
    import accel
    from accel.zoo.registry import default_rules

    given = {name: value for name, value in form.items() if name not in ("low_rank", "only")}
    rules = default_rules(model, accel.Perforate(**given))
    if "only" in form:
        others = accel.Perforate(keep=1.0, precision=given.get("precision", "fp32"))
        rules = accel.Rules({**dict.fromkeys(form["only"], accel.Perforate(**given)), "*": others})
    return accel.convert_model(base, rules, example_inputs=x, calibration=[known])


def _is_right(form: str, found: Mapping[str, float]) -> bool:
    whole = TOLERANCE_OF_BYTES if "int8" in form else TOLERANCE
    return found["layer_error"] <= TOLERANCE and found["error"] <= whole


def _errors(network: nn.Module, x: Tensor) -> dict[str, float]:
    """The largest of a layer, from the readable reference, and that of the whole, from its layers run one by one."""
    import torch

    from accel.nn.perforated import PerforatedConv2d
    from accel.profiling.distances import relative_norm
    from accel.running import one_by_one, replaced_forwards

    errors = [0.0]
    layers = [layer for layer in network.modules() if isinstance(layer, PerforatedConv2d)]
    with torch.no_grad():
        found = network(x)
        with replaced_forwards({layer: _compared(layer, errors) for layer in layers}), one_by_one():
            return {"error": relative_norm(found, network(x)), "layer_error": max(errors)}


def _compared(layer: nn.Module, errors: list[float]) -> Callable:
    """The layer's forward, which adds to `errors`; the reference takes picture by picture, a gigabyte for one."""
    import torch

    from accel import ops
    from accel.profiling.distances import relative_norm

    def forward(input: Tensor) -> Tensor:  # as torch names it
        out = type(layer).forward(layer, input)
        with ops.use_backend("reference"):
            expected = torch.cat([type(layer).forward(layer, picture) for picture in input.split(1)])
        errors.append(relative_norm(out, expected))
        return out

    return forward


def _quality(dense: nn.Module, run: Side, judged: Tensor, boxes: bool) -> Row:
    from accel.profiling.distances import Fidelity
    from accel.zoo.text_detector import BoxAgreement

    found = [Fidelity(), BoxAgreement()] if boxes else [Fidelity()]
    for picture in judged.split(1):
        expected, ours = dense(picture), run(picture)
        for each in found:
            each.add(expected, ours)
    return {name: round(value, 5) for each in found for name, value in each.summary().items()}


def _openvino(dense: nn.Module, x: Tensor, known: Tensor, case: Mapping[str, Any]) -> dict[str, Side]:
    """The network in OpenVINO's precisions, and in int8 on shrunk pictures; nothing where it is not installed."""
    if not all(map(importlib.util.find_spec, ("openvino", "nncf"))):
        return {}
    network, quantized = _in_openvino(dense, x, known)
    networks = {"f32": network, "bf16": network, "int8": quantized}
    sides = {f"openvino {name}": _compiled(networks[name], hint) for name, hint in _PRECISIONS.items()}
    for share in case.get("shrunk", ()):
        grain = case.get("grain", 1)
        size = [max(1, round(side * share / grain)) * grain for side in x.shape[2:]]
        _, small = _in_openvino(dense, _resized(x, size), _resized(known, size))
        run = _compiled(small, _PRECISIONS["int8"])
        sides[f"{_SHRUNK}{size[0]}x{size[1]}"] = functools.partial(_run_shrunk, run, size)
    return sides


def _in_openvino(dense: nn.Module, x: Tensor, known: Tensor) -> tuple[object, object]:
    """(the network, the same quantized on `known`)."""
    import nncf
    import openvino
    import torch

    with torch.no_grad():
        network = openvino.convert_model(dense, example_input=x)
    known = known.numpy()
    return network, nncf.quantize(network, nncf.Dataset([known[i : i + 1] for i in range(len(known))]))


def _run_shrunk(run: Side, size: Sequence[int], x: Tensor) -> Tensor:
    found = run(_resized(x, size))
    return _resized(found, x.shape[2:]) if found.dim() == 4 else found


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    import torch.nn.functional as F

    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=True)


def _compiled(network: object, hint: str) -> Side:
    import openvino
    import torch

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(network, "CPU", {**settings, "INFERENCE_PRECISION_HINT": hint})

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled(x.numpy())[0])

    return run
