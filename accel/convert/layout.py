"""Which convolutions of a model may compute in channels_last: all, but those whose maps or weights a stranger views.

`Tensor.view` and its like want memory as torch's default layout leaves it: a forward with `x.view(len(x), -1)` raises
on a channels_last map, and what is written to `x.flatten(1)` is lost, where that is a copy. What a forward can read is
found by running it on the example.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from accel.errors import ConversionError
from accel.nn.folding import is_computed
from accel.profiling.distances import difference
from accel.running import one_by_one, replaced_forwards, undisturbed


def lay_out(layers: Iterable[nn.Conv2d], memory_format: torch.memory_format) -> None:
    """Lay out the weights of convolutions, in place, but those that are worked out anew at every call.

    A convolution that stays dense follows the layout of its weight: it would else hand an NCHW map to layers that read
    channels_last, at the cost of a copy (with it, HED at batch 8 was no faster than dense).
    """
    for layer in layers:
        if is_computed(layer):
            continue
        layer.weight.data = layer.weight.data.contiguous(memory_format=memory_format)


def settle_layout(
    model: nn.Module, layers: Mapping[str, nn.Conv2d], run: Callable[[nn.Module], object], weights: bool
) -> frozenset[str]:
    """The names of the `layers` whose weights and outputs must be contiguous for the model's own forward to be right.

    Few are sought: where the forward raises, or returns other values than in the layout that the model came with, those
    that were called last, one, two more, four more and so on.

    Args:
        layers: convolutions of the model, by name; they are called as modules and have the forward of nn.Conv2d.
        run: runs the model on its example inputs.
        weights: lay out the weights too, in place: of those layers contiguous, of the others channels_last.

    Raises:
        ConversionError: the forward raises in torch's default layout too.
    """
    as_it_came = {layer: functools.partial(nn.Conv2d.forward, layer) for layer in layers.values()}
    with undisturbed(model), one_by_one(), replaced_forwards(as_it_came):
        expected = run(model)
    kept: dict[str, None] = {}
    share = 1
    while True:
        called: dict[str, None] = {}
        if weights:
            lay_out((layer for name, layer in layers.items() if name not in kept), torch.channels_last)
            lay_out((layers[name] for name in kept), torch.contiguous_format)
        forwards = {layer: _laid_out(layer, name, name in kept, called) for name, layer in layers.items()}
        try:
            with undisturbed(model), one_by_one(), replaced_forwards(forwards):
                if difference(expected, run(model)) is None or len(kept) == len(layers):  # else it draws its own luck
                    return frozenset(kept)
        except RuntimeError as error:
            if len(kept) == len(layers):
                raise ConversionError(f"the model cannot run on example_inputs any more: {error}") from error
        rest = [name for name in dict.fromkeys((*reversed(called), *layers)) if name not in kept]
        kept |= dict.fromkeys(rest[:share])
        share *= 2


def warn_of_faulty_gradients(layers: Mapping[str, nn.Conv2d]) -> None:
    """Warn of `layers`, dense ones, whose training torch gets wrong in channels_last on the CPU.

    The weight's gradient of a strided pointwise convolution with fewer input channels than a vector has lanes is
    written beyond its workspace (oneDNN, issue 6035; seen in torch 2.14 with AVX-512: 16 lanes): wrong values or a
    corrupted heap.
    """
    faulty = [
        name
        for name, layer in layers.items()
        if layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.groups == 1 and layer.in_channels < 16
    ]
    if faulty and layers[faulty[0]].weight.device.type == "cpu":
        warnings.warn(
            f"do not train this network on the CPU: torch corrupts memory in the gradient of {', '.join(faulty)}, "
            "strided 1x1 convolutions of fewer than 16 channels, in channels_last (oneDNN issue 6035); inference is "
            "not affected",
            stacklevel=4,
        )


def _laid_out(layer: nn.Conv2d, name: str, contiguous: bool, called: dict[str, None]) -> Callable:
    """The layer's forward in torch, its output in the layout that the converted layer will give."""

    def forward(input: Tensor) -> Tensor:  # as torch names it
        called.pop(name, None)  # the latest call counts
        called[name] = None
        out = nn.Conv2d.forward(layer, input)
        return out.contiguous() if contiguous else channels_last(out)

    return forward


def channels_last(image: Tensor) -> Tensor:
    """[N, C, H, W] or [C, H, W] with the channels of a pixel side by side."""
    if image.dim() == 3:
        return channels_last(image[None])[0]
    return image.contiguous(memory_format=torch.channels_last)
