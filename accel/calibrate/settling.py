"""Settling the layers of a network one after the other, each for the inputs it will get, against the dense network.

The dense network runs first, as it is, and what the layers give is recorded; then the other one runs, in which a layer
is settled when its first call comes. Neither shares a batch with the other, so that nothing the forward does with a
batch can mix them. What does not fit into memory at once is settled in several rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from accel.errors import AccelError, DataError
from accel.inputs import Batch
from accel.running import evaluation, replaced_forwards

_MEMORY = 1 << 30  # bytes of dense outputs recorded at a time; HED's on 12 pictures of 240x320 take 1.0e9


class _RoundEnds(BaseException):
    """Leaves a forward in the middle; no `except Exception` of a model stops it."""


@torch.no_grad()
def settle(
    model: nn.Module,
    batch: Batch,
    waiting: Mapping[str, nn.Module],
    fit: Callable[[str, Tensor, Tensor], None],
    dense: Mapping[nn.Module, Callable[[Tensor], Tensor]],
    own: Mapping[nn.Module, Callable[[Tensor], Tensor]],
    known: Mapping[str, Tensor] = MappingProxyType({}),
    memory: int = _MEMORY,
) -> list[str]:
    """Settle the waiting layers in the order they run.

    Args:
        model: left as it is, but for what `fit` does.
        waiting: the layers to settle, by name.
        fit: called once for each with (name, x, target): what its first call reads in the network settled so far, and
            what it gives in the dense one.
        dense, own: the forwards that layers have in the two networks, where not their present ones.
        known: what layers give in the dense one, where `record` found it before.

    Returns:
        The names of the layers that the two networks do not both call.

    Raises:
        DataError: the model cannot run on the batch.
    """
    left, unreached = dict(waiting), []
    with evaluation(model):
        while left:
            targets = {name: known[name] for name in left if name in known}
            targets = targets or record(model, batch, left, dense, memory)
            settled, stopped_at = _settle_recorded(model, batch, left, fit, own, targets)
            left = {name: layer for name, layer in left.items() if name not in settled}
            if stopped_at is None:
                return [*unreached, *left]
            if not settled and known:  # which lacked the next one
                known = {}
            elif not settled:  # the dense network does not call it, or only after others that wait
                unreached.append(stopped_at)
                del left[stopped_at]
    return unreached


@torch.no_grad()
def settle_by_inputs(
    model: nn.Module,
    batch: Batch,
    waiting: Mapping[str, nn.Module],
    fit: Callable[[str, Tensor], None],
    own: Mapping[nn.Module, Callable[[Tensor], Tensor]],
) -> list[str]:
    """`settle` without the dense network: `fit` is called with (name, x). The names of layers that nothing calls."""
    with evaluation(model):
        settled, _ = _settle_recorded(
            model, batch, waiting, lambda name, x, _: fit(name, x), own, dict.fromkeys(waiting)
        )
    return [name for name in waiting if name not in settled]


@torch.no_grad()
def record(
    model: nn.Module,
    batch: Batch,
    layers: Mapping[str, nn.Module],
    dense: Mapping[nn.Module, Callable],
    memory: int = _MEMORY,
) -> dict[str, Tensor]:
    """What the first calls of the layers give in the dense network, as many as `memory` holds and at least one.

    Args: as of `settle`; the model is in evaluation mode.
    """
    targets: dict[str, Tensor] = {}
    taken = 0

    def recorded(name: str, forward: Callable) -> Callable:
        def run(input: Tensor) -> Tensor:  # as torch names it
            nonlocal taken
            if name in targets:
                return forward(input)
            if targets and taken >= memory:
                raise _RoundEnds
            out = forward(input)
            targets[name] = out.clone()  # an in-place activation may overwrite it
            taken += out.nbytes
            return out

        return run

    forwards = {layer: recorded(name, dense.get(layer, layer.forward)) for name, layer in layers.items()}
    run_on_data(model, batch, {**dense, **forwards})
    return targets


def _settle_recorded(
    model: nn.Module,
    batch: Batch,
    layers: Mapping[str, nn.Module],
    fit: Callable[[str, Tensor, Tensor], None],
    own: Mapping[nn.Module, Callable],
    targets: dict[str, Tensor | None],
) -> tuple[set[str], str | None]:
    """Settle those that have a target, until a call of one comes that has none: (names settled, the latter's name)."""
    settled: set[str] = set()
    stopped_at = None

    def settling(name: str, layer: nn.Module) -> Callable:
        forward = own.get(layer, layer.forward)

        def run(input: Tensor) -> Tensor:  # as torch names it
            nonlocal stopped_at
            if name not in settled:
                if name not in targets:
                    stopped_at = name
                    raise _RoundEnds
                fit(name, input, targets.pop(name))
                settled.add(name)
            return forward(input)

        return run

    forwards = {layer: settling(name, layer) for name, layer in layers.items()}
    run_on_data(model, batch, {**own, **forwards})
    return settled, stopped_at


def run_on_data(model: nn.Module, batch: Batch, forwards: Mapping[nn.Module, Callable]) -> None:
    """Run the model with these forwards.

    Raises:
        DataError: it cannot run on the batch.
    """
    try:
        with replaced_forwards(forwards):
            batch.run(model)
    except _RoundEnds:
        return
    except AccelError:  # which says more
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"the model cannot run on the calibration data ({batch.described()}), give it what the model itself takes: "
            f"{str(error).splitlines()[0]}"
        ) from error
