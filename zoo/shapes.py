"""Pictures the package draws itself: one shape on a textured background, with its class and its mask.

Everything is a function of a `torch.Generator`: the same seed draws the same pictures. Shapes are given in polar form
around their centre in units of their radius, which stays between `RADIUS` pixels whatever the picture's size, so that a
network trained on small pictures meets the same shapes on large ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = ("disc", "ring", "crescent", "triangle", "square", "star", "cross")
RADIUS = (16.0, 40.0)
# Regular stars: (points, inner radius); an inner radius of cos(pi / points) makes the plain polygon.
_STARS = {"triangle": (3, math.cos(math.pi / 3)), "square": (4, math.cos(math.pi / 4)), "star": (5, 0.42)}
_OVERSAMPLE = 2  # coverage is drawn at twice the size and averaged: smooth edges


class Shapes(NamedTuple):
    """A batch of drawn pictures.

    Attributes:
        images: float32 [N, 3, size, size], 0..1.
        labels: int64 [N], indices into `CLASSES`.
        masks: float32 [N, 1, size, size], 1 on the object, 0 elsewhere.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor


def draw_shapes(count: int, size: int, generator: torch.Generator) -> Shapes:
    """Draw `count` pictures of `size` x `size` pixels, one shape each, classes uniform at random.

    Raises:
        ValueError: `size` cannot hold the largest shape.
    """
    if size < 2 * RADIUS[1]:
        raise ValueError(f"size must be at least {2 * RADIUS[1]:.0f} pixels to hold the largest shape, got {size}")
    labels = torch.randint(len(CLASSES), (count,), generator=generator)
    coverage = _coverage(labels, size, generator)
    ground, figure = _colours(count, generator)
    background = _texture(ground, size, generator)
    foreground = _texture(figure, size, generator)
    noise = 0.03 * torch.randn(count, 3, size, size, generator=generator)
    images = (background + coverage * (foreground - background) + noise).clamp_(0, 1)
    return Shapes(images, labels, (coverage > 0.5).float())


def normalise(images: Tensor) -> Tensor:
    """0..1 pictures to the range the demo network was trained on, about -1..1."""
    return (images - 0.5) / 0.5


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, generator=generator)


def _coverage(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Fraction of each pixel that the shape covers, [N, 1, size, size]."""
    count = len(labels)
    radius = _uniform(count, *RADIUS, generator)
    margin = radius * torch.rand(count, 2, 1, generator=generator).mul(0.15).add(0.9)
    centre = margin + (size - 2 * margin) * torch.rand(count, 2, 1, generator=generator)
    angle = _uniform(count, 0, 2 * math.pi, generator)
    axis = (torch.arange(size * _OVERSAMPLE) + 0.5) / _OVERSAMPLE
    dx = axis[None, None, :] - centre[:, 0:1]
    dy = axis[None, :, None] - centre[:, 1:2]
    u = (angle.cos() * dx + angle.sin() * dy) / radius
    v = (angle.cos() * dy - angle.sin() * dx) / radius
    inside = torch.empty(u.shape, dtype=torch.bool)
    for index, name in enumerate(CLASSES):
        chosen = labels == index
        inside[chosen] = _inside(name, u[chosen], v[chosen])
    return F.avg_pool2d(inside[:, None].float(), _OVERSAMPLE)


def _inside(name: str, u: Tensor, v: Tensor) -> Tensor:
    """Whether each point (u, v), in units of the radius, lies in the shape."""
    radius = torch.hypot(u, v)
    if name == "disc":
        return radius < 1
    if name == "ring":
        return (radius < 1) & (radius > 0.55)
    if name == "crescent":
        return (radius < 1) & (torch.hypot(u - 0.45, v) > 0.75)
    if name == "cross":
        return (torch.minimum(u.abs(), v.abs()) < 0.28) & (torch.maximum(u.abs(), v.abs()) < 0.95)
    points, inner = _STARS[name]
    return radius < _star_radius(torch.atan2(v, u), points, inner)


def _star_radius(angle: Tensor, points: int, inner: float) -> Tensor:
    """Boundary radius of a regular star: in a sector of pi / points, the line from an outer to an inner vertex."""
    half = math.pi / points
    folded = (angle.remainder(2 * half) - half).abs()  # 0 at an inner vertex, `half` at an outer one
    return inner * math.sin(half) / (inner * torch.sin(half - folded) + torch.sin(folded))


def _colours(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Base colours [N, 3, 1, 1] of ground and figure, at a distance that keeps the figure visible."""
    ground = 0.2 + 0.6 * torch.rand(count, 3, 1, 1, generator=generator)
    direction = F.normalize(torch.randn(count, 3, 1, 1, generator=generator), dim=1)
    distance = 0.3 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    figure = ground + direction * distance
    mirrored = ground - direction * distance
    out_of_range = ((figure - 0.5).abs() - 0.5).clamp(min=0).sum(1, keepdim=True)
    mirrored_out = ((mirrored - 0.5).abs() - 0.5).clamp(min=0).sum(1, keepdim=True)
    return ground, torch.where(mirrored_out < out_of_range, mirrored, figure)


def _texture(base: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A grating of random direction and pitch plus smooth blotches, around the base colour: [N, 3, size, size]."""
    count = len(base)
    angle = _uniform(count, 0, math.pi, generator)
    pitch = _uniform(count, 5, 24, generator)
    phase = _uniform(count, 0, 2 * math.pi, generator)
    axis = torch.arange(size, dtype=torch.float32)
    along = angle.cos() * axis[None, None, :] + angle.sin() * axis[None, :, None]
    grating = torch.sin(2 * math.pi * along / pitch + phase)[:, None]
    tint = 0.16 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    coarse = torch.randn(count, 3, 6, 6, generator=generator)
    blotches = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return base + tint * grating + 0.06 * blotches
