"""Cases of kind `foreign_sact`: residual stages of networks that others wrote are right under ACT and SACT, or refused.

A case: `name`, a network as `accel.bench.foreign_nets` names it, and `size` [H, W]. Norms are drawn. Each sequence of
residual units is proved by itself; all that are not refused are converted together, once under ACT and once under
SACT. With heads that never halt the network must be what it was: columns `act` and `sact`, worst relative norm; with
heads that halt at half of the positions, sparse execution what dense execution under the mask is: `act_halting` and
`sact_halting`.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import accel
from accel.bench.foreign import isolated
from accel.bench.foreign_checks import worst
from accel.bench.foreign_nets import build
from accel.bench.runner import Row, Settings
from accel.errors import AccelError
from accel.nn.adaptive import check_stages, install_stages, is_stage

if TYPE_CHECKING:
    from accel.bench.foreign_nets import Foreign

TOLERANCE = 1e-4  # relative norm, worst output; errors of the layers add up along the network
NEVER = -100.0  # bias of a head whose score is zero to float32
COMPARED = ("act", "sact", "act_halting", "sact_halting")
SHOWN = ("case", "outcome", "stages", "refused", *COMPARED, "reason")
_DRAWN, _BATCH = 8, 2  # pictures that norms are drawn by, and that the numbers are compared on
_SECONDS = 300.0  # 2 to 30 on two idle cores


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    start = time.perf_counter()
    outcome = isolated(functools.partial(examine, case["name"], case["size"], settings.seed), _SECONDS)
    row = outcome if isinstance(outcome, dict) else {"outcome": "failed", "error": math.inf, "reason": outcome}
    yield {**row, "correct": row["outcome"] in ("equal", "refused"), "seconds": round(time.perf_counter() - start, 1)}


def examine(name: str, size: list[int], seed: int) -> Row:
    """The row of one network, in this process."""
    torch.manual_seed(seed)
    pictures, network = torch.randn(_DRAWN, 3, *size) + torch.randn(_DRAWN, 3, 1, 1), build(name, seed)
    with torch.no_grad():
        draw_norms(network, pictures, torch.Generator().manual_seed(seed))
        return check(network, network.inputs(pictures[:_BATCH]))


def draw_norms(network: Foreign, pictures: Tensor, generator: torch.Generator) -> None:
    """Draw the norms, and whatever else is constant, such as the zeros that end a unit.

    Statistics follow the pictures, so that their signal reaches the end, but a norm takes no more than half of the mean
    away: where each takes all of it, ResNet-101 in single precision differs from itself in double by 1e-4.
    """

    def settle(norm: nn.Module, inputs: tuple) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        moved = torch.rand(2, len(x), generator=generator)
        norm.running_mean.copy_(x.mean(1) * (moved[0] - 0.5))
        norm.running_var.copy_(x.square().mean(1) * (moved[1] + 0.5))

    for parameter in network.model.parameters():
        if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.uniform_(-0.2, 0.2, generator=generator)
    handles = []
    for module in network.model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            if isinstance(module.weight, Tensor):
                module.weight.uniform_(0.5, 1.5, generator=generator)
            handles.append(module.register_forward_pre_hook(settle))
    network.read(network.model, network.inputs(pictures))
    for handle in handles:
        handle.remove()


def check(network: Foreign, examples: tuple) -> Row:
    """The columns of a row: `outcome` is 'equal', 'wrong', or 'refused' where no stage can be adaptive.

    `stages` and `refused` count sequences of residual units, `reason` says why the first one was refused.
    """
    model, refusals = network.model, []
    kept = [name for name, module in model.named_modules() if is_stage(module)]
    for stage in list(kept):
        try:
            check_stages(model, {stage: accel.SACT()})
        except AccelError as error:
            refusals.append(" ".join(str(error).split()))
            kept.remove(stage)
    found: Row = {"stages": len(kept), "refused": len(refusals), "reason": "; ".join(refusals[:1])}
    if not kept:
        return {"outcome": "refused", **found, "reason": found["reason"] or "no sequence of residual units"}
    for kind, config in (("act", accel.ACT(eps=0.3)), ("sact", accel.SACT(eps=0.3))):
        net = install_stages(copy.deepcopy(model), dict.fromkeys(kept, config))
        found[f"{kind}_halting"] = halting_error(network, net, examples)
        never_halt(net)
        found[kind] = worst(logits(network, net, examples), network.read(model, examples))
    error = max(found[column] for column in COMPARED)
    return {"outcome": "equal" if error <= TOLERANCE else "wrong", **found, "error": error}


def logits(network: Foreign, net: nn.Module, examples: tuple) -> object:
    """What the network returned before it was adaptive."""
    return network.read(lambda *inputs: net(*inputs).logits, examples)


def never_halt(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if name.endswith(("halting.conv", "halting.pooled")):
            nn.init.zeros_(module.weight)
        if name.endswith("halting.conv"):
            nn.init.constant_(module.bias, NEVER)


def halting_error(network: Foreign, net: nn.Module, examples: tuple) -> float:
    """Sparse execution against dense execution under the mask, with heads that halt at half of the positions."""

    def spread(head: nn.Conv2d, _inputs: tuple, scores: Tensor) -> Tensor:
        gain = 3 / max(float(scores.std(correction=0)), 0.3)  # a larger one would enlarge rounding errors
        shift = float(scores.median())
        head.weight.mul_(gain)
        head.bias.sub_(shift).mul_(gain)
        return (scores - shift) * gain

    heads = [module for name, module in net.named_modules() if name.endswith("halting.conv")]
    handles = [head.register_forward_hook(spread) for head in heads]
    network.read(net, examples)
    for handle in handles:
        handle.remove()
    net = copy.deepcopy(net)  # which has not seen the hooks: what they do depends on how many images still run
    sparse = logits(network, net, examples)
    with accel.dense_execution(net):
        return worst(sparse, logits(network, net, examples))
