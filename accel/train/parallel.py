"""This process among the data-parallel ones that torchrun started; alone without torchrun."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Place:
    """Attributes: rank of this process, 0 <= rank < world; world, number of processes; device it computes on."""

    rank: int
    world: int
    device: torch.device


@contextlib.contextmanager
def process_group() -> Iterator[Place]:
    """The place that torchrun's environment gives this process, with the group up inside the block.

    The processes talk through NCCL where torch sees CUDA devices, one for each process of a machine, else through gloo.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if "WORLD_SIZE" not in os.environ:
        yield Place(0, 1, device)
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Place(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that writes files: rank 0, or alone."""
    return not dist.is_initialized() or dist.get_rank() == 0


def synchronised(model: nn.Module) -> nn.Module:
    """`model` wrapped so that backward averages its gradients over the processes; itself in a process alone.

    Buffers (batch statistics, the tau of a budget) are those of rank 0.
    """
    return nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model


def mean_over_processes(value: Tensor) -> float:
    """The mean of a scalar over all processes."""
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return float(value)
