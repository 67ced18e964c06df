"""Cases of kind `vae_halting`: VAEs whose decoders decide how long they compute, beside one that does not.

A case: `recipe` and `set` (changes made to it, as of `accel train --set`), `data` (none where the recipe names it),
`folder` of all runs, each in its own, where an interrupted training is gone on with; `samples` of the importance
sampling and `pictures` of the test set that the likelihood is estimated with; `batch` and `compiled` (of the clock);
and `against`, the case of the decoder that computes everything, which has none.

Rows, one a case: `nll` on test pictures, nats; of an adaptive decoder `lost`, how much higher that is than the other's;
`macs_share`, what it executes for codes of test pictures, of its own dense MACs; `time_share`, of the dense decoder in
its fastest form. `error`: sparse against dense execution. With --output the rows are drawn: likelihood over time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import accel
from accel.bench import frontier
from accel.bench.runner import Row, Settings
from accel.bench.trainings import trained
from accel.bench.vae_runs import evidence, read_run
from accel.mc.sampling import draw as draw_from
from accel.vae import VAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("case", "nll", "lost", "macs_share", "time_share", "ms", "ms_dense", "form", "error")


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    trained(case, settings.seed)
    vae, x, _ = read_run(case, case["name"], settings.seed)
    nll = _nll(vae, x, case, settings.seed)
    if "against" not in case:
        yield {"nll": round(nll, 3), "macs_share": 1.0, "time_share": 1.0, "error": 0.0, "correct": True}
        return
    rival, *_ = read_run(case, case["against"], settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.inference_mode():
        codes = vae.features([draw_from(q, generator) for q in vae.posterior(x)])
        executed = accel.count_macs(vae.decoder, codes) / len(codes)
        few = codes[: case["batch"]]
        error = frontier.sparse_error(vae.decoder, few)
    dense = accel.revert_model(vae.decoder)
    clock = frontier.time_shares(dense, {"net": vae.decoder}, {"net"}, few, case["compiled"], settings.repeats)["net"]
    yield {
        "nll": round(nll, 3),
        "lost": round(nll - _nll(rival, x, case, settings.seed), 3),
        "macs_share": round(executed / accel.count_macs(dense, codes[:1]), 4),
        **clock,
        "error": error,
        "correct": error <= frontier.TOLERANCE,
    }


def draw(rows: Sequence[Row]) -> Figure:
    """Negative log-likelihood over the share of the dense decoder's time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    panel = figure.subplots()
    for row in rows:
        colour = "tab:blue" if "lost" in row else "black"
        panel.plot(100 * row["time_share"], row["nll"], "o", color=colour)
        place = (100 * row["time_share"], row["nll"])
        panel.annotate(row["case"], place, textcoords="offset points", xytext=(5, 4), fontsize=8)
    panel.set(xlabel="time, % of the dense decoder's fastest form", ylabel="-log p(x) of test pictures, nats")
    panel.margins(x=0.2, y=0.2)
    panel.grid(alpha=0.3)
    return figure


def _nll(vae: VAE, x: Tensor, case: Mapping[str, Any], seed: int) -> float:
    return -float(evidence(vae, x, case["samples"], seed).mean())
