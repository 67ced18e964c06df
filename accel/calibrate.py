"""What calibration data tells about a dense model: how much each position of each layer matters to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.config import Perforate
from accel.errors import ConfigError, DataError
from accel.nn.running import batches, evaluation


def check_calibration(assigned: Mapping[str, Perforate], calibration: object) -> None:
    """ConfigError for the first layer whose configuration needs calibration data when there is none."""
    for name, config in assigned.items():
        if config.mask == "impact" and calibration is None:
            raise ConfigError(
                f"mask 'impact' of layer {name!r} needs data: pass calibration= a loader or list of inputs"
            )


def impact_maps(
    model: nn.Module,
    layers: Mapping[str, nn.Conv2d],
    calibration: Iterable,
    loss: Callable[[object, tuple], Tensor] | None = None,
) -> dict[str, Tensor]:
    """B(y, x), the estimated loss change per position if the layer's output there were zeroed, averaged over images.

    Figurnov et al., NIPS 2016, section 3.3: B = mean over images of sum over channels |dL/dV * V|, V being the output
    of the convolution itself, with the model in evaluation and L the sum of the images' losses.

    Args:
        model: dense; its weights, statistics and modes are left as they are.
        layers: the convolutions to watch, by name.
        calibration: re-iterable of input tensors, or of tuples that start with the input.
        loss: maps (outputs, batch) to the scalar to differentiate; by default `default_loss`.

    Returns:
        float32 [H, W] on the CPU per layer, of the size that the calibration data gives; a layer called several times
        gets the sum over its calls.

    Raises:
        DataError: no batch, pictures of differing sizes, or a layer that the model does not call.
    """
    sums: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            value = output.detach().clone()  # an in-place activation may overwrite the output
            output.register_hook(lambda grad: _accumulate(sums, name, (grad * value).abs()))

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    images = 0
    try:
        with evaluation(model), torch.enable_grad():
            for batch in batches(calibration):
                x = batch[0].detach().requires_grad_()  # so that V has a gradient even where all weights are frozen
                value = (loss or default_loss)(model(x), batch)
                torch.autograd.backward(value, inputs=[x])
                images += len(x)
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if name not in sums:
            raise DataError(
                f"the calibration data never reaches layer {name!r}: leave it out by a rule {{{name!r}: None}}"
            )
    return {name: sums[name] / images for name in layers}


def default_loss(outputs: object, batch: tuple) -> Tensor:
    """Cross-entropy where the batch brings integer labels [N] for outputs [N, classes], else a change-of-output proxy.

    The proxy is the outputs' inner product with fixed random signs: with it, the impact measures how much zeroing a
    position would move the outputs, whatever they are, without labels.
    """
    tensors = _tensors(outputs)
    labels = batch[1] if len(batch) > 1 else None
    if isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point() and tensors[0].dim() == 2:
        return F.cross_entropy(tensors[0], labels, reduction="sum")
    generator = torch.Generator().manual_seed(0)
    return sum((tensor * _signs(tensor, generator)).sum() for tensor in tensors)


def _signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random -1 or 1 per output of one image, the same for every image."""
    bits = torch.randint(2, tensor.shape[1:], generator=generator)
    return (2 * bits - 1).to(tensor)


def _tensors(outputs: object) -> list[Tensor]:
    """Every floating tensor in a model's outputs."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    found = [tensor for output in outputs for tensor in _tensors(output)] if isinstance(outputs, Iterable) else []
    return found


def _accumulate(sums: dict[str, Tensor], name: str, impact: Tensor) -> None:
    total = impact.sum((0, 1)).float().cpu()
    if name in sums and sums[name].shape != total.shape:
        raise DataError(
            f"layer {name!r} has outputs of {tuple(sums[name].shape)} and {tuple(total.shape)}: "
            "give calibration pictures of one size"
        )
    sums[name] = sums[name] + total if name in sums else total
