"""Cases of kind `rivals`: what a perforated network loses, beside a shrunk input and pruned channels as fast as it.

A case: `model`, `weights`, `rules` (a file as `accel search` writes it), `batch`, and either `images` (a folder),
`size` [H, W] and `calibrate` (the first pictures, to fit on; the others are judged) or `data` (a labelled data set;
`calibrate` of its training pictures, `judge` of its test pictures). `finetune` (steps) trains all three by distillation
from the dense network, with `lr` and what else `settings` gives `accel.finetune`, on the first `train` pictures, which
are not judged either, or on the training split. Before ours is perforated, it loses the residual units that the
patterns in `without` match, and with `low_rank` (share of the MACs) it is decomposed, but for the layers that the
patterns in `whole` match. `parts` = {shrunk, pruned}, out of 64, are found by timing where they are not given. Paths
are relative to the working directory.

Rows, one a network: `speedup` against the faster dense form, all sides interleaved; the loss of quality; for ours the
MACs and the peak activation memory that it saves; `relative`, the loss over that of the shrunk rival; the `minutes` of
its fine-tuning. With --output the rows of the file are drawn too, loss over speed-up, a panel for each family of cases
("hed" of "hed_2x"), into a PNG.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor, nn

SHOWN = (
    *("case", "network", "finetuned", "setting", "ms", "speedup", "mean_abs_difference", "iou_at_0.5", "accuracy"),
    *("drop", "relative", "minutes", "macs_reduction", "memory_reduction"),
)
TOLERANCE = 1e-4  # relative norm, engine against readable reference
_AS_FAST = 1.02  # a rival may take so much longer than ours when its size is chosen
_GRAIN = 64  # sizes and shares that are tried are so many parts of the whole
_FINAL_ROUNDS = 15
_BEFORE = {"without": "fewer units", "low_rank": "low rank"}  # what was done before perforating
_COLOURS = {
    **{"ours": "tab:blue", "ours, low rank": "tab:red", "ours, fewer units": "tab:purple"},
    **{"shrunk": "tab:orange", "pruned": "tab:green"},
}
_LOSSES = {"drop": "accuracy lost, points", "mean_abs_difference": "mean absolute difference from the dense outputs"}


@dataclasses.dataclass(frozen=True)
class Task:
    """Attributes: example, what is timed; known, batches to calibrate on; lessons, to train on, as `accel.finetune`
    takes them; judge, network -> its quality."""

    example: Tensor
    known: list[tuple]
    lessons: list[tuple] | Callable[[int], tuple]
    judge: Callable[[nn.Module], dict[str, float]]


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    import accel
    from accel import ops
    from accel.config import Rules
    from accel.profiling.distances import relative_norm
    from accel.zoo.registry import get_model

    dense = get_model(case["model"], weights=case["weights"])
    task = _photos(case, dense) if "images" in case else _labelled(case, settings.seed)
    rules = Rules.from_dict(json.loads(pathlib.Path(case["rules"]).read_text(encoding="utf-8")))
    fast = accel.convert_model(_base(case, dense, task), rules, example_inputs=task.example, calibration=task.known)
    with torch.inference_mode():
        with ops.use_backend("reference"):
            expected = fast(task.example)
        error = relative_norm(fast(task.example), expected)
        if error > TOLERANCE:
            yield {"network": "ours", "error": error, "correct": False}
            return
    networks, chosen = _rivals(dense, fast, task.example, case.get("parts"))
    chosen["ours"] = pathlib.Path(case["rules"]).stem
    with torch.inference_mode():
        macs, memory = accel.count_macs(dense, task.example), _peak(dense, task.example)
        saved = {
            "macs_reduction": round(macs / accel.count_macs(fast, task.example), 3),
            "memory_reduction": round(memory / _peak(fast, task.example), 3),
            **{name: case[name] for name in ("without", "low_rank") if name in case},
        }
        speeds = _speeds(dense, networks, task.example)
    yield from _judged(task, networks, chosen, speeds, saved, {"finetuned": 0, "error": error})
    if steps := case.get("finetune", 0):
        for name, network in networks.items():
            speeds[name]["minutes"] = _tune(network, dense, task, case)
        yield from _judged(task, networks, chosen, speeds, saved, {"finetuned": steps, "error": error})


def is_rival(row: Row) -> bool:
    return row["network"] != "ours"


def _tune(network: nn.Module, dense: nn.Module, task: Task, case: Mapping[str, Any]) -> float:
    """Fine-tune it in place; the minutes that took."""
    import accel

    start = time.perf_counter()
    options = {"steps": case["finetune"], "lr": case["lr"], **case.get("settings", {})}
    accel.finetune(network, teacher=dense, data=task.lessons, **options)
    return round((time.perf_counter() - start) / 60, 2)


def _base(case: Mapping[str, Any], dense: nn.Module, task: Task) -> nn.Module:
    """What is perforated: the dense network, or a shorter or low-rank form of it."""
    import accel

    base = dense
    if "without" in case:
        base = accel.shorten_model(base, calibration=task.known, units=case["without"])
    if "low_rank" in case:
        whole = dict.fromkeys(case.get("whole", ()))
        base = accel.decompose_model(base, calibration=task.known, macs=case["low_rank"], ranks=whole)
    return base


def draw(rows: Sequence[Row]) -> Figure:
    """Loss over measured speed-up, a panel a family, a line a network: dashed before fine-tuning, solid after it."""
    from matplotlib.figure import Figure

    families: dict[str, list[Row]] = {}
    for row in rows:
        if "speedup" in row:
            families.setdefault(row["case"].split("_")[0], []).append(row)
    figure = Figure(figsize=(7 * max(1, len(families)), 5), layout="constrained")
    for panel, family in zip(figure.subplots(1, max(1, len(families)), squeeze=False)[0], families):
        _draw_family(panel, families[family])
        panel.set(title=family, xlabel="times faster than the fastest dense form, measured")
    return figure


def _draw_family(panel: Axes, rows: Sequence[Row]) -> None:
    lost = next(name for name in _LOSSES if name in rows[0])
    for network in sorted({_line(row) for row in rows}):
        for tuned, style in ((False, "--"), (True, "-")):
            chosen = [row for row in rows if _line(row) == network and (row["finetuned"] > 0) is tuned]
            points = sorted((row["speedup"], row[lost]) for row in chosen)
            if points:
                label = f"{network}, fine-tuned" if tuned else network
                panel.plot(
                    *zip(*points),
                    color=_COLOURS.get(network, "tab:gray"),
                    ls=style,
                    marker="o" if tuned else ".",
                    label=label,
                )
    # fine-tuning may gain points: a logarithm that passes through 0
    panel.set_yscale("symlog" if lost == "drop" else "log")
    panel.set_ylabel(_LOSSES[lost])
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize=8)


def _line(row: Row) -> str:
    more = [said for name, said in _BEFORE.items() if name in row]
    return ", ".join([row["network"], *more])


def _judged(
    task: Task, networks: Mapping[str, nn.Module], chosen: Mapping, speeds: Mapping, saved: Mapping, facts: Mapping
) -> Iterator[Row]:
    """A row for every network."""
    quality = {name: task.judge(network.eval()) for name, network in networks.items()}
    lost = "drop" if "drop" in quality["ours"] else "mean_abs_difference"
    for name, found in quality.items():
        relative = {"relative": round(found[lost] / quality["shrunk"][lost], 4)} if quality["shrunk"][lost] > 0 else {}
        mine = saved if name == "ours" else {}
        yield {
            "network": name,
            "setting": chosen[name],
            **facts,
            "correct": True,
            **speeds[name],
            **found,
            **relative,
            **mine,
        }


def _rivals(
    dense: nn.Module, fast: nn.Module, x: Tensor, parts: Mapping[str, int] | None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Ours and the rivals as fast as it, by name; and what size or share each rival has."""
    from accel.bench.rival_nets import Shrunk, pruned

    height, width = x.shape[2:]

    def shrink(part: int) -> nn.Module:
        return Shrunk(dense, (max(1, height * part // _GRAIN), max(1, width * part // _GRAIN)))

    def thin(part: int) -> nn.Module:
        return pruned(dense, part / _GRAIN)

    if parts is None:
        parts = {"shrunk": _largest(shrink, fast, x), "pruned": _largest(thin, fast, x)}
    networks = {"ours": fast, "shrunk": shrink(parts["shrunk"]), "pruned": thin(parts["pruned"])}
    size = "x".join(map(str, networks["shrunk"].size))
    return networks, {"shrunk": size, "pruned": f"{parts['pruned']}/{_GRAIN} of the channels"}


def _largest(make: Callable[[int], nn.Module], ours: nn.Module, x: Tensor) -> int:
    """The most parts out of _GRAIN with which the rival is as fast as ours, by bisection."""
    low, high = 1, _GRAIN
    while low < high:
        middle = (low + high + 1) // 2
        found = _median_ms({"ours": ours, "rival": make(middle)}, x)
        if found["rival"] <= _AS_FAST * found["ours"]:
            low = middle
        else:
            high = middle - 1
    return low


def _median_ms(networks: Mapping[str, nn.Module], x: Tensor, rounds: int = 7) -> dict[str, float]:
    """Milliseconds of every network in the faster memory format."""
    import torch

    from accel.profiling.latency import compare
    from accel.profiling.sides import FORMATS, in_format

    sides = {(name, form): in_format(net, x, FORMATS[form]) for name, net in networks.items() for form in FORMATS}
    with torch.inference_mode():
        timing = compare(sides, repeats=rounds)
    return {name: min(timing[name, form].median_ms for form in FORMATS) for name in networks}


def _speeds(dense: nn.Module, networks: Mapping[str, nn.Module], x: Tensor) -> dict[str, Row]:
    """`ms` and `speedup` against the faster dense form, all of them taking turns."""
    found = _median_ms({"dense": dense, **networks}, x, _FINAL_ROUNDS)
    return {
        name: {"ms": round(ms, 3), "ms_dense": round(found["dense"], 3), "speedup": round(found["dense"] / ms, 3)}
        for name, ms in found.items()
    }


def _peak(network: nn.Module, x: Tensor) -> int:
    from accel.profiling.memory import peak_activation_bytes

    return peak_activation_bytes(functools.partial(network, x))


def _photos(case: Mapping[str, Any], dense: nn.Module) -> Task:
    """Photos without labels: the outputs are compared with the dense network's."""
    import torch

    from accel.profiling.distances import Fidelity
    from accel.zoo.picture_files import read_folder
    from accel.zoo.registry import preprocess

    x = preprocess(case["model"], read_folder(pathlib.Path(case["images"]), tuple(case["size"])))
    known, lessons = x[: case["calibrate"]], x[: case.get("train", 0)]
    judged = x[max(len(known), len(lessons)) :]
    with torch.inference_mode():
        targets = [dense(part) for part in judged.split(1)]

    @torch.inference_mode()
    def judge(network: nn.Module) -> dict[str, float]:
        fidelity = Fidelity()
        for part, target in zip(judged.split(1), targets):
            fidelity.add(target, network(part))
        return fidelity.summary()

    batches = ([(part,) for part in pictures.split(1)] for pictures in (known, lessons))
    return Task(judged[: case["batch"]], *batches, judge)


def _labelled(case: Mapping[str, Any], seed: int) -> Task:
    """A data set with labels: accuracy, and what is lost of the dense network's, in points."""
    from accel.train.batches import PictureBatches
    from accel.zoo.datasets import LabelledPictures, load_pictures
    from accel.zoo.evaluation import accuracy
    from accel.zoo.registry import get_model, preprocess

    prepare = functools.partial(preprocess, case["model"])
    train, test = (load_pictures(pathlib.Path(case["data"]), split) for split in ("train", "test"))
    batches = PictureBatches(train.pictures, train.labels, prepare, batch=case["batch"], seed=seed)
    lessons = dataclasses.replace(batches, pad=4)
    known = [batches(step) for step in range(case["calibrate"] // case["batch"])]
    judged = LabelledPictures(test.pictures[: case["judge"]], test.labels[: case["judge"]], test.classes)
    before = accuracy(get_model(case["model"], weights=case["weights"]), judged, prepare)

    def judge(network: nn.Module) -> dict[str, float]:
        right = accuracy(network, judged, prepare)
        return {"pictures": len(judged), "accuracy": right, "drop": 100 * (before - right)}

    return Task(known[0][0], known, lessons, judge)
