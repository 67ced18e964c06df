"""Cases of kind `frontier`: what networks of one family reach at several budgets, on all test pictures of a data set.

A case: `model` (the dense network, whose MACs and time are 1), `data` (a labelled data set), `batch`, `timed` (whether
the clock is asked too), `compiled` (whether torch.compile is among the dense forms), and `[[case.run]]` tables, one a
network: `name`, `weights`, `epochs` it was trained for, and either `adaptive` (the table of its recipe), or `model`, a
shallower network, or neither. Paths are relative to the working directory.

Rows, one a network: accuracy; the executed share of the dense network's MACs per picture (mean, deviation, quantiles);
the share of its time in its fastest form. With --output the rows are drawn too, accuracy over MACs, into a PNG.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings
from accel.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor, nn

SHOWN = (
    *("case", "network", "method", "tau", "epochs", "accuracy", "macs_share", "share_deviation", "share_5%"),
    *("share_50%", "share_95%", "time_share"),
)
TOLERANCE = 1e-5  # relative norm of the logits, sparse against dense execution under the mask
_COLOURS = {"dense": "black", "sact": "tab:blue", "pact": "tab:red", "act": "tab:orange", "shallower": "tab:green"}


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import accel
    from accel.zoo.datasets import load_pictures
    from accel.zoo.evaluation import verdicts
    from accel.zoo.registry import get_model, preprocess

    names = [run["name"] for run in case["run"]]
    if len(set(names)) < len(names):
        raise ConfigError(f"the runs of case {case['name']!r} need names of their own, got {', '.join(names)}")
    pictures = load_pictures(pathlib.Path(case["data"]), "test")
    x = preprocess(case["model"], pictures.pictures[: case["batch"]])
    dense = get_model(case["model"], weights="none")
    macs = accel.count_macs(dense, x[:1])
    networks = {
        run["name"]: network(run.get("model", case["model"]), run["weights"], run.get("adaptive"))
        for run in case["run"]
    }
    errors = {run["name"]: sparse_error(networks[run["name"]], x) for run in case["run"] if "adaptive" in run}
    right = {name: made for name, made in networks.items() if errors.get(name, 0.0) <= TOLERANCE}
    same = {run["name"] for run in case["run"] if _origin(case, run)["method"] == "dense"}
    rivals = {name: made for name, made in right.items() if name not in same}
    times = time_shares(dense, rivals, errors, x, case["compiled"], settings.repeats) if case["timed"] else {}
    for run in case["run"]:
        name = run["name"]
        row = {"network": name, **_origin(case, run), "correct": name in right}
        if name in errors:
            row["error"] = errors[name]
        if name in right:
            plain = accel.revert_model(right[name]) if name in errors else None
            prepare = functools.partial(preprocess, run.get("model", case["model"]))
            found = verdicts(right[name], pictures, prepare, case["batch"], dense=plain).summary()
            row.update(reached(found, len(pictures), macs))
            row.update(times.get(name, {}))
        yield row


def draw(rows: Sequence[Row]) -> Figure:
    """Accuracy over the share of the MACs, a panel a case, a line a method, a bar from 5 to 95 % of the pictures."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(8 * len(cases), 5.5), layout="constrained")
    for panel, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases):
        _draw_case(panel, [row for row in rows if row["case"] == case and "accuracy" in row])
        panel.set(title=case, xlabel="executed MACs, % of the dense network's", ylabel="test accuracy, %")
    return figure


def _draw_case(panel: Axes, rows: Sequence[Row]) -> None:
    for method, colour in _COLOURS.items():
        chosen = sorted((row for row in rows if row["method"] == method), key=lambda row: row["macs_share"])
        if not chosen:
            continue
        shares, accuracies = ([100 * row[key] for row in chosen] for key in ("macs_share", "accuracy"))
        spread = [[100 * abs(row[key] - row["macs_share"]) for row in chosen] for key in ("share_5%", "share_95%")]
        style = {"ls": "none", "marker": "o"} if method == "dense" else {"marker": "."}
        panel.errorbar(shares, accuracies, xerr=spread, color=colour, label=method, elinewidth=0.6, capsize=2, **style)
        above = method == "sact"  # the lines come close: half of the names go to the other side
        place = {"xytext": (-4, 5), "ha": "right"} if above else {"xytext": (4, -9)}
        for row, point in zip(chosen, zip(shares, accuracies)):
            panel.annotate(row["network"], point, textcoords="offset points", fontsize=7, color=colour, **place)
    panel.margins(x=0.12)
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")


def network(model: str, weights: str, adaptive: Mapping[str, Any] | None) -> nn.Module:
    """The trained model, in evaluation; made adaptive by the table of its recipe."""
    import torch

    import accel
    from accel.config import VERSION, config_from_dict
    from accel.zoo.registry import get_model, input_size, load_weights

    if adaptive is None:
        return get_model(model, weights)
    config, example = config_from_dict({"version": VERSION, **adaptive}), torch.zeros(1, 3, *input_size(model))
    made = accel.convert_model(get_model(model, "none"), config, example_inputs=example, inplace=True)
    return load_weights(made, weights).eval()


def _origin(case: Mapping[str, Any], run: Mapping[str, Any]) -> Row:
    """What a network is and how it was trained."""
    adaptive, model = run.get("adaptive"), run.get("model", case["model"])
    if adaptive is None:
        return {"method": "dense" if model == case["model"] else "shallower", "model": model, "epochs": run["epochs"]}
    settings = {key: value for key, value in adaptive.items() if key != "kind"}
    return {"method": adaptive["kind"], "model": model, **settings, "epochs": run["epochs"]}


def sparse_error(model: nn.Module, x: Tensor) -> float:
    """Relative norm of the logits, sparse against dense execution."""
    import torch

    from accel.nn.adaptive import dense_execution
    from accel.profiling.distances import relative_norm

    with torch.inference_mode():
        sparse = model(x).logits
        with dense_execution(model):
            return relative_norm(sparse, model(x).logits)


def reached(found: Row, pictures: int, dense_macs: int) -> Row:
    """What `accel eval` measures, the MACs of a picture as shares of the dense network's."""
    spread = {name: f"macs_{name}" for name in ("deviation", "5%", "50%", "95%")}
    return {
        "accuracy": found["accuracy"],
        "pictures": pictures,
        "macs": found["macs"],
        "dense_macs": dense_macs,
        "macs_share": round(found["macs"] / dense_macs, 4),
        **{f"share_{name}": round(found[key] / dense_macs, 4) for name, key in spread.items()},
        **{key: value for key, value in found.items() if key.startswith("units_")},
    }


def time_shares(
    dense: nn.Module, networks: Mapping[str, nn.Module], sparse: Container, x: Tensor, compiled: bool, repeats: int
) -> dict[str, Row]:
    """`time_share` of every network, each in its fastest form (the `sparse` have one), all of them taking turns."""
    import torch

    from accel.profiling.dense_forms import dense_forms
    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import fastest, in_format

    forms = {"": dense_forms(dense, x, compiled)}
    for name, network in networks.items():
        if name in sparse:
            forms[name] = {"sparse": in_format(network, x, torch.channels_last)}
        else:
            forms[name] = dense_forms(network, x, compiled, reset=False)
    sides = {(name, form): side for name, group in forms.items() for form, side in group.items()}
    with torch.inference_mode():
        timing = compare(sides, repeats=repeats)
    best = {name: fastest(timing, [(name, form) for form in group]) for name, group in forms.items()}
    return {
        name: {
            "time_share": round(1 / ratio(timing[best[""]], timing[best[name]]).median, 4),
            "form": best[name][1],
            "ms": round(timing[best[name]].median_ms, 4),
            "ms_dense": round(timing[best[""]].median_ms, 4),
        }
        for name in networks
    }
