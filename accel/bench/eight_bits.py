"""Cases of kind `eight_bits`: whole networks in bytes, perforated or not, beside torch and, where it is installed,
OpenVINO in its own precisions.

A case: `model`, `weights` (none: drawn), `images` (a folder), `size` [H, W], `batch` (list), `calibrate` (pictures to
calibrate on; the others are judged), and `forms`, tables of what `accel.Perforate` takes, and of `low_rank`: the share
of the MACs that the network is decomposed to before, but for the layers that the patterns in `whole` match. Paths are
relative to the working directory. OpenVINO (extra `bench`) is asked for latency on as many threads, its int8 is nncf's
post-training quantization on the same pictures.

Rows, one a form or rival and batch: interleaved times in milliseconds; `speedup`, over the fastest of torch's forms;
`openvino`, the time of OpenVINO in int8 over this one's; the mean absolute difference of the outputs and, of maps, the
intersection over union at 0.5. `error`: of a converted network, see `_error`.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = ("case", "batch", "form", "ms", "speedup", "openvino", "mean_abs_difference", "iou_at_0.5", "top1_agreement")
# Relative norms. The bytes of a convolution are those of its reference. Of a fitted fill, whose sums are of floats in
# another order, not all are; one that rounds the other way is a whole step and turns others over: HED's outputs differ
# by 4e-3 to 7e-3 between two orders of rounding. Each layer by itself was proved to 1e-4 by the conversion.
TOLERANCE = 1e-4
TOLERANCE_OF_FITTED_BYTES = 2e-2
_PRECISIONS = {"f32": "f32", "bf16": "bf16", "int8": "bf16"}  # of OpenVINO: of what is not in int8 its default here

Side = Callable[["Tensor"], object]


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import DENSE, FORMATS, fastest, in_format
    from accel.zoo.picture_files import read_folder
    from accel.zoo.registry import get_model, preprocess

    torch.manual_seed(settings.seed)
    dense = get_model(case["model"], weights=case.get("weights", "none"))
    pictures = preprocess(case["model"], read_folder(pathlib.Path(case["images"]), tuple(case["size"])))
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
        rivals = _openvino(dense, x, known)
        errors = {name: _error(network, x) for name, network in forms.items()}
        for name in [name for name, error in errors.items() if error > _tolerance(name)]:
            yield {"batch": batch, "form": name, "error": errors[name], "correct": False}
            del forms[name]
        with torch.inference_mode():
            sides = {name: in_format(dense, x, form) for name, form in FORMATS.items()}
            sides |= {name: in_format(network, x, torch.channels_last) for name, network in forms.items()}
            sides |= {name: functools.partial(run, x) for name, run in rivals.items()}
            timing = compare(sides, settings.repeats)
            best = fastest(timing, DENSE)
            for name, run in {best: dense, **forms, **rivals}.items():
                yield {
                    **{"batch": batch, "form": name, "error": errors.get(name, 0.0), "correct": True},
                    **{"ms": round(timing[name].median_ms, 3), "q10_ms": round(timing[name].quantile_ms(0.1), 3)},
                    **{"q90_ms": round(timing[name].quantile_ms(0.9), 3), "samples": len(timing[name].samples_ms)},
                    "speedup": round(ratio(timing[best], timing[name]).median, 3),
                    **_beside(timing, name),
                    **_quality(dense, run, judged),
                }


def _beside(timing: Mapping[str, Any], name: str) -> Row:
    from accel.profiling.latency import ratio

    rival = timing.get("openvino int8")
    return {} if rival is None else {"openvino": round(ratio(rival, timing[name]).median, 3)}


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

    config = accel.Perforate(**{name: value for name, value in form.items() if name != "low_rank"})
    return accel.convert_model(base, default_rules(model, config), example_inputs=x, calibration=[known])


def _tolerance(form: str) -> float:
    return TOLERANCE_OF_FITTED_BYTES if "fitted" in form and "int8" in form else TOLERANCE


def _error(network: nn.Module, x: Tensor) -> float:
    """Against the readable reference, picture by picture: it takes a gigabyte for one."""
    import torch

    from accel import ops
    from accel.profiling.distances import relative_norm

    with torch.no_grad():
        found = network(x)
        with ops.use_backend("reference"):
            return relative_norm(found, torch.cat([network(picture) for picture in x.split(1)]))


def _quality(dense: nn.Module, run: Side, judged: Tensor) -> Row:
    from accel.profiling.distances import Fidelity

    found = Fidelity()
    for picture in judged.split(1):
        found.add(dense(picture), run(picture))
    return {name: round(value, 5) for name, value in found.summary().items()}


def _openvino(dense: nn.Module, x: Tensor, known: Tensor) -> dict[str, Side]:
    """The network in OpenVINO's precisions; nothing where it is not installed."""
    if not all(map(importlib.util.find_spec, ("openvino", "nncf"))):
        return {}
    import nncf
    import openvino
    import torch

    with torch.no_grad():
        network = openvino.convert_model(dense, example_input=x)
    quantized = nncf.quantize(network, nncf.Dataset([known[i : i + 1].numpy() for i in range(len(known))]))
    networks = {"f32": network, "bf16": network, "int8": quantized}
    return {f"openvino {name}": _compiled(networks[name], hint) for name, hint in _PRECISIONS.items()}


def _compiled(network: object, hint: str) -> Side:
    import openvino
    import torch

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(network, "CPU", {**settings, "INFERENCE_PRECISION_HINT": hint})

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled(x.numpy())[0])

    return run
