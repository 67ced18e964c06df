"""What a converted model does at the first calls with inputs of some size, done ahead of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from accel.errors import DataError
from accel.inputs import Batch, Inputs, as_batch
from accel.running import record_calls


def warm_up(model: nn.Module, sizes: Iterable[Sequence[int] | Inputs]) -> None:
    """Trace a converted model and prepare its plans for inputs of these sizes.

    Calls with such inputs, in torch's default layout or in channels_last and from any thread, then have nothing left to
    prepare, as long as the model stays as it is. A copy of it needs a warm-up of its own.

    Args:
        model: it runs in evaluation and without gradients, and is left as it was.
        sizes: shapes such as (1, 3, 224, 224) for a model that takes one tensor, which gets the model's dtype and
            device; for any other, inputs as `convert_model` takes for an example.

    Raises:
        DataError: a size that is neither.
        ConversionError: the model cannot run on such inputs.
    """
    for size in sizes:
        batch = _batch(model, size)
        for layout in (torch.contiguous_format, torch.channels_last):
            laid_out = batch.map(lambda value, layout=layout: _laid_out(value, layout))
            record_calls(model, {}, laid_out.inputs)


def _batch(model: nn.Module, size: Sequence[int] | Inputs) -> Batch:
    if isinstance(size, Sequence) and size and all(isinstance(length, int) for length in size):
        return as_batch(_example(model, size))
    if isinstance(size, (Tensor, tuple, Mapping)):
        return as_batch(size)
    raise DataError(
        f"sizes must be a list of shapes such as [(1, 3, 224, 224)], or of inputs, with {type(size).__name__} in it"
    )


def _example(model: nn.Module, shape: Sequence[int]) -> Tensor:
    like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None)
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    return drawn if like is None else drawn.to(like.device, like.dtype)


def _laid_out(value: object, layout: torch.memory_format) -> object:
    return value.contiguous(memory_format=layout) if isinstance(value, Tensor) and value.dim() == 4 else value
