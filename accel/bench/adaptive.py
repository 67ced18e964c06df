"""Cases of kind `adaptive`: SACT networks with given halting maps, run sparsely, against the dense network's best form.

A case: `model`, `size` [H, W], `batch` (list), `active` (list: share of the positions at which the later units of every
stage run), `maps` (list: "blobs", smooth regions as objects make them, or "noise", every position on its own),
`compiled` (whether torch.compile is among the dense forms). The halting heads do all their work; only the scores they
come to are replaced. A row's `allowed` is 1.15 times the share of the MACs that is executed, plus 0.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.bench.runner import Row, Settings
from accel.kernels.stage import StageHead
from accel.nn.adaptive import HaltingHead, adaptive_stages, dense_execution
from accel.profiling.dense_forms import dense_forms
from accel.profiling.distances import relative_norm
from accel.profiling.sides import fastest, in_format, medians, quantiles

TOLERANCE = 1e-5  # relative norm of the logits, sparse against dense execution under the mask
BLOB_GRID = 6  # a blob is about a sixth of the picture wide
CERTAIN = 30.0  # logit of a score that is one or zero to float32
SHOWN = ("case", "batch", "map", "active", "macs_share", "wall_share", "allowed", "ms_sparse", "fastest", "ms_fastest")


class GivenScores(HaltingHead):
    """A head that computes as any other and says what it was given: scores [N, H, W], zeros and ones."""

    def __init__(self, channels: int, scores: Tensor):
        super().__init__(channels, spatial=True)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        nn.init.zeros_(self.pooled.weight)
        self.scores = scores

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2 * self.scores

    def folded(self, size: tuple[int, int]) -> StageHead:
        head = super().folded(size)
        return StageHead(head.weight, head.bias + CERTAIN * (2 * self.scores - 1), head.pooled)


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import accel
    from accel.profiling.latency import compare, ratio
    from accel.zoo.registry import get_model

    torch.manual_seed(settings.seed)
    model = get_model(case["model"], weights="none")
    for batch in case["batch"]:
        generator = torch.Generator().manual_seed(settings.seed)
        x = torch.randn(batch, 3, *case["size"], generator=generator)
        net = accel.convert_model(model, accel.SACT(), example_inputs=x[:1])
        dense_macs = accel.count_macs(model, x[:1]) * batch
        forms = dense_forms(model, x, case["compiled"])
        for kind in case["maps"]:
            field = draw_field(kind, batch, case["size"], generator)
            for active in case["active"]:
                row = {"model": case["model"], "batch": batch, "map": kind, "active": active}
                with torch.inference_mode():
                    give_scores(net, x, field, active)
                    out = net(x)
                    with dense_execution(net):
                        row["error"] = relative_norm(out.logits, net(x).logits)
                    saved = sum(stage.dense_macs * batch - int(stage.executed_macs.sum()) for stage in out.stages)
                    if row["error"] > TOLERANCE:
                        yield {**row, "correct": False}
                        continue
                    sides = {**forms, "sparse": in_format(net, x, torch.channels_last)}
                    timing = compare(sides, repeats=settings.repeats)
                best = fastest(timing, forms)
                macs_share = 1 - saved / dense_macs
                wall_share, allowed = 1 / ratio(timing[best], timing["sparse"]).median, 1.15 * macs_share + 0.1
                yield {
                    **row,
                    "correct": True,
                    "macs_share": round(macs_share, 4),
                    "wall_share": round(wall_share, 4),
                    "allowed": round(allowed, 4),
                    "to_spare": round(allowed - wall_share, 4),
                    "fastest": best,
                    "ms_fastest": round(timing[best].median_ms, 4),
                    **medians(timing),
                    "quantiles": quantiles(timing),
                }


def draw_field(kind: str, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """[N, 1, H, W] of values whose highest are active first."""
    if kind == "noise":
        return torch.rand(batch, 1, *size, generator=generator)
    coarse = torch.rand(batch, 1, BLOB_GRID, BLOB_GRID, generator=generator)
    return F.interpolate(coarse, size=tuple(size), mode="bicubic", align_corners=True)


def give_scores(net: nn.Module, x: Tensor, field: Tensor, active: float) -> None:
    """Replace the heads so that the given share of every image's positions goes on after the first unit of a stage."""
    sizes = [tuple(stage.ponder_cost.shape[1:]) for stage in net(x).stages]
    for stage, size in zip(adaptive_stages(net), sizes):
        values = F.interpolate(field, size=size, mode="nearest-exact").flatten(1)
        order = values.argsort(1).argsort(1)
        halts = (order < round((1 - active) * order.shape[1])).float().view(-1, *size)
        for unit in list(stage)[:-1]:
            unit.halting = GivenScores(unit.halting.bn.num_features, halts).eval()
