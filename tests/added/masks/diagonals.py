"""Diagonals, and what lies under the brightest pixels besides."""

import torch

from accel.masks import Mask, register


@register
class Diagonals(Mask):
    """One diagonal in so many as `keep` asks for, moved down by `shift`."""

    name = "diagonals"
    shifts = True

    def build(self, keep, site):
        y, x = torch.meshgrid(torch.arange(site.height), torch.arange(site.width), indexing="ij")
        return ((y + x - site.shift) % round(1 / keep) == 0).flatten().nonzero().flatten().to(torch.int32)


@register
class Brightest(Mask):
    """Every eighth position, and the rest chosen from each input."""

    name = "brightest"

    def build(self, keep, site):
        return torch.arange(0, site.height * site.width, 8, dtype=torch.int32)

    def score(self, x):
        return x.sum(1)


@register
class LeastImpact(Mask):
    """The contrary of what anybody would want."""

    name = "least_impact"
    needs_data = True

    def build(self, keep, site):
        order = site.impact.flatten().argsort(stable=True)
        return order[: round(keep * order.numel())].sort().values.to(torch.int32)
