"""Position sets in random order, with a random stand-in for each position left out."""

import torch

from accel.kernels.positions import PositionSet


def draw_set(height: int, width: int, count: int, generator: torch.Generator) -> PositionSet:
    positions = torch.randperm(height * width, generator=generator)[:count].to(torch.int32)
    nearest = torch.randint(count, (height * width,), generator=generator, dtype=torch.int32)
    nearest[positions.long()] = torch.arange(count, dtype=torch.int32)
    return PositionSet(positions, nearest, height, width)
