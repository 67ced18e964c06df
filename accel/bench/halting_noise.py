"""The noise of gradient estimators in the halting heads of a network: what kind `halting_frontier` says of PACT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.nn.expected import expected_loss


def gradient_noise(network: nn.Module, x: Tensor, labels: Tensor, draws: int, seed: int) -> dict[str, float]:
    """`variance` of the gradient of the mean loss of a batch with respect to the parameters of the halting heads.

    Summed over the parameters, of `draws` estimates with noise of their own; `signal`, the squared length of their
    mean, beside it. The network is in evaluation, so that batch norms couple no pictures.
    """
    heads = [parameter for name, parameter in network.named_parameters() if ".halting." in name]
    generator = torch.Generator().manual_seed(seed)

    def estimate() -> Tensor:
        loss = expected_loss(
            network, x, lambda logits: F.cross_entropy(logits.float(), labels, reduction="none"), generator=generator
        )
        found = torch.autograd.grad(loss, heads, allow_unused=True, materialize_grads=True)
        return torch.cat([grad.flatten() for grad in found]).double()

    found = torch.stack([estimate() for _ in range(draws)])
    return {"variance": float(found.var(0).sum()), "signal": float(found.mean(0).square().sum())}
