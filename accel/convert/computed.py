"""Where a perforated network computes, over the pictures that it reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.convert import convolutions
from accel.inputs import Inputs
from accel.nn.chosen import choose_positions
from accel.nn.perforated import PerforatedConv2d
from accel.running import run_watched


def computed_positions(model: nn.Module, x: Inputs) -> dict[str, Tensor]:
    """The positions that every perforated layer computes when the model runs on x: bool [N, H', W'] by the name of the
    layer, of its last call."""
    found: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Conv2d, image: Tensor, out: Tensor) -> None:
        if isinstance(layer, PerforatedConv2d):
            found[name] = _kept(layer, image, out)

    _watch_convolutions(model, x, watch)
    return found


def computed_share(model: nn.Module, x: Inputs, size: tuple[int, int]) -> Tensor:
    """What share of the multiply-accumulates of its convolutions the model executes, by where in the picture: float32
    [N, H, W], maps of every size laid over `size` by their nearest position."""
    executed, dense = torch.zeros(1, *size, dtype=torch.float32, device="cpu"), 0.0

    def watch(_name: str, layer: nn.Conv2d, image: Tensor, out: Tensor) -> None:
        nonlocal executed, dense
        macs = float(layer.weight.numel()) * out.shape[-2] * out.shape[-1]
        kept = (
            _kept(layer, image, out) if isinstance(layer, PerforatedConv2d) else torch.ones_like(out[:, 0], dtype=bool)
        )
        executed = executed + macs * F.interpolate(kept[:, None].float().cpu(), size, mode="nearest")[:, 0]
        dense += macs

    _watch_convolutions(model, x, watch)
    return executed / dense if dense else executed


def _watch_convolutions(model: nn.Module, x: Inputs, watch: Callable[[str, nn.Conv2d, Tensor, Tensor], None]) -> None:
    """Run the model on x layer by layer, `watch` being told every convolution with its input and its output."""

    def told(name: str) -> Callable:
        def leave(layer: nn.Conv2d, args: tuple, out: Tensor) -> None:
            watch(name, layer, *((args[0], out) if out.dim() == 4 else (args[0][None], out[None])))

        return leave

    run_watched(model, x, [(layer, told(name)) for name, layer in convolutions(model).items()])


def _kept(layer: PerforatedConv2d, image: Tensor, out: Tensor) -> Tensor:
    """bool [N, H', W'] of one call."""
    positions = layer.position_set(*out.shape[2:], out.device)
    kept = torch.zeros(len(out), positions.height * positions.width, dtype=torch.bool, device=out.device)
    kept[:, positions.positions.long()] = True
    if not layer.config.masking.is_static:
        chosen = choose_positions(layer, image, positions)
        kept.view(-1)[chosen.positions[: chosen.total].long()] = True
    return kept.view(-1, *positions.size)
