"""Impact maps: how much each position of each layer matters; masks 'impact' and 'iterative_impact' keep the highest.

Figurnov et al., NIPS 2016, section 3.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from accel.config import PRECISIONS
from accel.convert import Conversion, convert_layers, convolutions
from accel.errors import DataError
from accel.inputs import Batch, batches
from accel.running import copied, evaluation, floating_tensors, has_labels, run_eagerly

Loss = Callable[[object, object], Tensor]  # (outputs, batch as it was given) -> scalar


@run_eagerly()
def impact_maps(
    model: nn.Module,
    layers: Mapping[str, nn.Conv2d],
    calibration: Iterable,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """B(y, x), the estimated loss change per position if the layer's output there were zeroed, averaged over images.

    B = mean over images of sum over channels |dL/dV * V|, V being the output of the convolution itself, with the model
    in evaluation and L the sum of the images' losses.

    Args:
        model: dense; its weights, statistics and modes are left as they are.
        layers: the convolutions to watch, by name.
        calibration: batches, see `accel.inputs`.
        loss: maps (outputs, batch as it was given) to the scalar to differentiate; by default `default_loss`.

    Returns:
        float32 [H, W] on the CPU per layer, of the size that the calibration data gives; a layer called several times
        gets the sum over its calls.

    Raises:
        DataError: unusable calibration data, pictures of differing sizes, a layer that the model does not call, or one
            whose impact is NaN or infinite.
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
            for batch in batches(calibration, model):
                watched = batch.map(_watched)
                outputs = watched.run(model)
                value = default_loss(outputs, batch) if loss is None else loss(outputs, batch.given)
                torch.autograd.backward(value, inputs=[x for x in watched.tensors if x.requires_grad])
                images += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if name in sums and not sums[name].isfinite().all():
            raise DataError(f"the impact of layer {name!r} is not finite: the loss or the model's outputs overflow")
        if name not in sums:
            raise DataError(
                f"the calibration data never reaches layer {name!r}: leave it out by a rule {{{name!r}: None}}"
            )
    return {name: sums[name] / images for name in layers}


def all_impacts(
    model: nn.Module,
    conversions: Mapping[str, Conversion],
    calibration: Iterable,
    loss: Loss | None = None,
) -> dict[str, Conversion]:
    """The conversions, those whose mask wants one completed by an impact map; arguments as of `impact_maps`.

    It is measured on the dense network, for iterative masks on the network as it is by then: the layers are perforated
    one after the other, as the model lists them (in fp32, and a filling that must be fitted is 'nearest' so far). The
    paper recomputes impacts in every step of its search; its released code does so on the dense network.
    """
    layers = convolutions(model)
    wanted = {name: made.config.masking for name, made in conversions.items() if made.config.masking.needs_data}
    fixed = {name: layers[name] for name, mask in wanted.items() if not mask.iterative}
    impacts = impact_maps(model, fixed, calibration, loss) if fixed else {}
    complete = {name: dataclasses.replace(made, impact=impacts.get(name)) for name, made in conversions.items()}
    if len(fixed) == len(wanted):
        return complete
    partial = copied(model)
    for name, layer in convolutions(partial).items():
        if name not in complete:
            continue
        if name in wanted and name not in fixed:
            found = impact_maps(partial, {name: layer}, calibration, loss)
            complete[name] = dataclasses.replace(complete[name], impact=found[name])
        convert_layers(partial, {name: _without_fit(complete[name])})
    return complete


def _without_fit(made: Conversion) -> Conversion:
    config = dataclasses.replace(made.config, precision=PRECISIONS[0])
    return dataclasses.replace(made, config=config.filled_by("nearest") if config.filling.needs_data else config)


def _watched(value: object) -> object:
    """An input that has a gradient, so that V has one even where all weights are frozen."""
    return tree_map(lambda leaf: leaf.detach().requires_grad_() if _is_floating(leaf) else leaf, value)


def _is_floating(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def default_loss(outputs: object, batch: Batch) -> Tensor:
    """Cross-entropy where the batch brings integer labels [N] for outputs [N, classes], else a change-of-output proxy.

    The proxy is the outputs' inner product with fixed random signs: with it, the impact measures how much zeroing a
    position would move the outputs, whatever they are, without labels.
    """
    tensors = floating_tensors(outputs)
    if has_labels(outputs, batch.labels):
        return F.cross_entropy(tensors[0], batch.labels, reduction="sum")
    generator = torch.Generator("cpu").manual_seed(0)
    return sum((tensor * _signs(tensor, generator)).sum() for tensor in tensors)


def _signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random -1 or 1 per output of one image, the same for every image."""
    bits = torch.randint(2, tensor.shape[1:], generator=generator, device="cpu")
    return (2 * bits - 1).to(tensor)


def _accumulate(sums: dict[str, Tensor], name: str, impact: Tensor) -> None:
    total = impact.sum((0, 1)).float().cpu()
    if name in sums and sums[name].shape != total.shape:
        raise DataError(
            f"layer {name!r} has outputs of {tuple(sums[name].shape)} and {tuple(total.shape)}: "
            "give calibration pictures of one size"
        )
    sums[name] = sums[name] + total if name in sums else total
