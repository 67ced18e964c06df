"""Cases of kind `exactness`: a permuted full position set is the dense convolution, and keep 1 the dense network.

A case: `models` (names, or ["*"] for the whole zoo), `size` [H, W] for nets without a size of their own, `tolerance`.
The weights are drawn, and so are the statistics and affine parameters of every BatchNorm: with the initial ones a
wrong folding would go unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accel.bench.layers import at_positions
from accel.bench.runner import Row, Settings
from accel.profiling.distances import relative_norm
from accel.running import output_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    import torch

    from accel.zoo.registry import can_be_drawn, list_models

    plain = [name for name in list_models() if can_be_drawn(name)]
    names = plain if case["models"] == ["*"] else case["models"]
    for name in names:
        generator = torch.Generator().manual_seed(settings.seed)
        model, x = drawn_network(name, generator)
        layers = layer_errors(model, x, generator)
        network = network_error(model, x)
        worst = max(layers.values())
        yield {
            "model": name,
            "layers": len(layers),
            "worst_layer": max(layers, key=layers.get),
            "error_layer": worst,
            "error_network": network,
            "error": max(worst, network),
            "correct": max(worst, network) <= case["tolerance"],
        }


def drawn_network(name: str, generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """A zoo net with drawn weights and BN statistics, and one drawn input of its usual size."""
    import torch
    from torch import nn

    from accel.zoo.registry import get_model, input_size

    torch.manual_seed(generator.initial_seed())  # torchvision's initialisers use the global generator
    model = get_model(name, weights="none")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    return model, torch.randn(1, 3, *input_size(name), generator=generator)


def layer_errors(model: nn.Module, x: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Relative norm between every convolution and the op over a permuted full set, on the inputs it really gets."""
    import torch
    from torch import nn

    from accel.kernels.positions import PositionSet

    errors: dict[str, float] = {}

    def compare(name: str, conv: nn.Conv2d, inputs: tuple[Tensor, ...], dense: Tensor) -> None:
        height, width = dense.shape[2:]
        order = torch.randperm(height * width, generator=generator)
        positions = PositionSet(order.int(), torch.argsort(order).int(), height, width)
        errors[name] = relative_norm(at_positions(conv, inputs[0], positions), dense)

    handles = [
        module.register_forward_hook(lambda conv, inputs, out, name=name: compare(name, conv, inputs, out))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        model(x)
    for handle in handles:
        handle.remove()
    return errors


def network_error(model: nn.Module, x: Tensor) -> float:
    """Relative norm between the dense network and the one converted with keep 1, the worst of its outputs."""
    import torch

    import accel

    same = accel.convert_model(model, accel.Perforate(keep=1.0), example_inputs=x)
    with torch.inference_mode():
        return max(map(relative_norm, output_tensors(same(x)), output_tensors(model(x))))
