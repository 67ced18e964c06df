"""What a network reads of a table's cells and what its outputs say of them, all columns at once.

Cells are floats [*, D] in the columns' units (`Column.scaled`) and class numbers. A numeric column has two outputs,
mean and raw deviation of a normal. At bounds it is cut off; where cells lie on a bound itself, as zeros among amounts
do, what is beyond counts as the bound. Whole numbers take the mass of their unit interval. A class has one output, its
logit; an ordinal column one, its place among learned cuts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.errors import ConfigError
from accel.vae.columns import Column

LEAST_SCALE = 0.01  # of a learned deviation, in units of the column's own
_FAR = 40.0  # deviations: an edge that stands for infinity
_OUTSIDE = 5.0  # deviations that the mean of a normal that is cut off may lie beyond: next to an exponential already
_AT_BOUND = 1e-5  # deviations: single precision does not bring a bound back to the bit
_FINEST = (
    0.1  # whole numbers further apart than this share of a deviation take the mass of their interval, others a density
)


class TableLikelihood(nn.Module):
    """p(cells | outputs), a factor for every cell.

    Args:
        columns: none of kind pass, none constant.
        learned: deviations of numeric columns learned per cell; otherwise they are fixed at 1, as the official code has
            them, so that means are fitted by squares.
    """

    def __init__(self, columns: Sequence[Column], learned: bool = True) -> None:
        super().__init__()
        self.columns, self.learned = tuple(columns), learned
        if not self.columns:
            raise ConfigError("a table likelihood needs a column")
        self._lay_out_numeric()
        self._lay_out_discrete()
        self.register_buffer(
            "place",
            torch.tensor(self.numeric + self.discrete, dtype=torch.long, device="cpu").argsort(),
            persistent=False,
        )
        self.num_outputs = 2 * len(self.numeric) + sum(self.widths)
        self.num_features = len(self.numeric) + sum(len(self.columns[one].classes) for one in self.discrete)

    def _lay_out_numeric(self) -> None:
        chosen = [(index, column) for index, column in enumerate(self.columns) if column.numeric]
        self.numeric = [index for index, _ in chosen]
        unbounded = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64, device="cpu")[:, None].repeat(
            1, len(chosen)
        )
        edges, sticky, cut = unbounded, unbounded.clone(), unbounded.clone()
        half = torch.zeros(len(chosen), dtype=torch.float64, device="cpu")
        for place, (_, column) in enumerate(chosen if self.learned else ()):
            step = 1 / column.scale if column.whole else 0.0
            half[place] = step / 2 if step > _FINEST else 0.0
            edges[:, place] = (
                torch.tensor(column.bounds, dtype=torch.float64, device="cpu") - column.mean
            ) / column.scale
            if column.sticky:
                sticky[:, place] = edges[:, place]
            else:
                cut[:, place] = edges[:, place] + torch.tensor([-step / 2, step / 2], dtype=torch.float64, device="cpu")
        self.stuck, self.truncated = bool(sticky.isfinite().any()), bool(cut.isfinite().any())
        self.stepped = bool((half > 0).any())
        for name, values in (("edges", edges), ("sticky", sticky), ("cut", cut), ("half_step", half)):
            self.register_buffer(name, values.float(), persistent=False)

    def _lay_out_discrete(self) -> None:
        self.discrete = [index for index, column in enumerate(self.columns) if column.discrete]
        chosen = [self.columns[index] for index in self.discrete]
        self.most = max((len(column.classes) for column in chosen), default=0)
        self.widths = [1 if column.kind == "ordinal" else len(column.classes) for column in chosen]
        sources = torch.zeros(
            len(chosen), self.most, dtype=torch.long, device="cpu"
        )  # output of each class, among the discrete ones
        absent = torch.zeros(len(chosen), self.most, dtype=torch.float32, device="cpu")
        start = 0
        self.ordinal = [place for place, column in enumerate(chosen) if column.kind == "ordinal"]
        for place, (column, width) in enumerate(zip(chosen, self.widths)):
            count = len(column.classes)
            if column.kind != "ordinal":
                sources[place, :count] = start + torch.arange(count, device="cpu")
            else:
                sources[place] = start
            absent[place, count:] = -torch.inf
            start += width
        self.register_buffer("sources", sources, persistent=False)
        self.register_buffer("absent", absent, persistent=False)
        starts = [
            torch.linspace(-2.0, 2.0, len(chosen[place].classes) - 1, dtype=torch.float32, device="cpu")
            for place in self.ordinal
        ]
        self.first_cuts = nn.ParameterList([start[:1].clone() for start in starts])
        self.raw_gaps = nn.ParameterList([torch.log(torch.expm1(start.diff())) for start in starts])

    def features(self, cells: Tensor, hidden: Tensor) -> Tensor:
        """[N, F]: values, and one-hot classes (ordinal ones: every class up to theirs), all 0 where hidden [N, D]."""
        known = torch.where(hidden, 0.0, cells)
        parts = [known[:, self.numeric]]
        for place, index in enumerate(self.discrete):
            classes = torch.arange(len(self.columns[index].classes), device=cells.device, dtype=cells.dtype)
            code = known[:, index, None]
            on = code >= classes if place in self.ordinal else code == classes
            parts.append(on & ~hidden[:, index, None])
        return torch.cat([part.to(cells.dtype) for part in parts], 1)

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """log p of each cell: outputs [*, P], cells [*, D] without NaN -> [*, D]."""
        found = []
        if self.numeric:
            found.append(self._numeric_log_prob(*self.normal(outputs), cells[..., self.numeric]))
        if self.discrete:
            log_p = self.class_log_probs(outputs)
            codes = cells[..., self.discrete].long().expand(log_p.shape[:-1])
            found.append(log_p.gather(-1, codes[..., None])[..., 0])
        return torch.cat(found, -1)[..., self.place]

    def normal(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """(means, deviations) of the numeric columns' normals, [*, number of them]."""
        mean, raw = outputs[..., : 2 * len(self.numeric)].chunk(2, -1)
        scale = F.softplus(raw) + LEAST_SCALE if self.learned else torch.ones_like(raw)
        if self.truncated:
            mean = torch.maximum(torch.minimum(mean, self.cut[1] + _OUTSIDE * scale), self.cut[0] - _OUTSIDE * scale)
        return mean, scale

    def _numeric_log_prob(self, mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        z = (x - mean) / scale
        found = -0.5 * z * z - scale.log() - 0.9189385332046727  # log sqrt(2 pi)
        if self.stepped:
            wide = torch.where(self.half_step > 0, self.half_step, 1.0)
            mass = _log_mass((x - wide - mean) / scale, (x + wide - mean) / scale)
            found = torch.where(self.half_step > 0, mass, found)
        if self.stuck:
            found = torch.where(x <= self.sticky[0] + _AT_BOUND, _log_ndtr(z), found)
            found = torch.where(x >= self.sticky[1] - _AT_BOUND, _log_ndtr(-z), found)
        return found - _log_mass(*self._cuts(mean, scale)) if self.truncated else found

    def _cuts(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Where the normals are cut off, in their own deviations."""
        low, high = torch.where(self.cut.isfinite(), self.cut, 0.0)
        lower = torch.where(self.cut[0].isfinite(), (low - mean) / scale, -_FAR).clamp(min=-_FAR)
        return lower, torch.where(self.cut[1].isfinite(), (high - mean) / scale, _FAR).clamp(max=_FAR)

    def class_log_probs(self, outputs: Tensor) -> Tensor:
        """log p of every class, [*, discrete columns, most classes], minus infinity beyond a column's classes."""
        raw = outputs[..., 2 * len(self.numeric) :]
        log_p = (raw[..., self.sources] + self.absent).log_softmax(-1)
        for place, first, gaps in zip(self.ordinal, self.first_cuts, self.raw_gaps):
            spread = F.softplus(gaps)
            cuts = torch.cat([first, first + spread.cumsum(0)])
            below = cuts - raw[..., self.sources[place, :1]]  # logits of being below each cut
            inner = F.logsigmoid(below[..., 1:]) + F.logsigmoid(-below[..., :-1]) + torch.log(-torch.expm1(-spread))
            ends = F.logsigmoid(below[..., :1]), F.logsigmoid(-below[..., -1:])
            exact = torch.cat([ends[0], inner, ends[1]], -1)
            log_p = log_p.clone()
            log_p[..., place, : exact.shape[-1]] = exact
        return log_p

    def mean(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """(means of the numeric columns, class probabilities [*, discrete columns, most classes])."""
        mean, scale = self.normal(outputs)
        if self.truncated:
            lower, upper = self._cuts(mean, scale)
            mean = mean + scale * (_density(lower) - _density(upper)) / _log_mass(lower, upper).exp()
        return (self._rectified_mean(mean, scale) if self.stuck else mean), self.class_log_probs(outputs).exp()

    def _rectified_mean(self, mean: Tensor, scale: Tensor) -> Tensor:
        below, above = (self.sticky[0] - mean) / scale, (self.sticky[1] - mean) / scale
        inside = torch.special.ndtr(above) - torch.special.ndtr(below)
        ends = torch.where(self.sticky.isfinite(), self.sticky, 0.0)
        beyond = ends[0] * torch.special.ndtr(below) + ends[1] * torch.special.ndtr(-above)
        return mean * inside + scale * (_density(below) - _density(above)) + beyond

    def sample(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Cells [*, D] for uniforms [*, D] in (0, 1), by inverse distribution functions; means where they are fixed."""
        cells = torch.empty_like(uniforms)
        if self.numeric:
            mean, scale = self.normal(outputs)
            lower, upper = (torch.special.ndtr(cut) for cut in self._cuts(mean, scale))
            drawn = mean + scale * torch.special.ndtri(lower + uniforms[..., self.numeric] * (upper - lower))
            cells[..., self.numeric] = drawn.clamp(self.edges[0], self.edges[1]) if self.learned else mean
        if self.discrete:
            reached = self.class_log_probs(outputs).exp().cumsum(-1)
            if self.learned:
                codes = (uniforms[..., self.discrete, None] * reached[..., -1:] >= reached).sum(-1)
            else:
                codes = self.class_log_probs(outputs).argmax(-1)
            cells[..., self.discrete] = codes.clamp(max=self.most - 1).to(cells.dtype)
        return cells


def _density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) * 0.3989422804014327  # 1 / sqrt(2 pi)


def _log_ndtr(x: Tensor) -> Tensor:
    """log Phi(x) with a gradient far out: there torch's hangs on a difference of large numbers, and is no number."""
    far = x.clamp(max=-20.0)
    tail = -0.5 * far * far - (-far).log() - 0.9189385332046727 + torch.log1p(-1 / far**2 + 3 / far**4 - 15 / far**6)
    return torch.where(x < -20.0, tail, torch.special.log_ndtr(x.clamp(min=-20.0)))


def _log_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) for lower < upper, to the last digits in both tails."""
    flipped = lower + upper > 0
    a, b = torch.where(flipped, -upper, lower), torch.where(flipped, -lower, upper)
    top, bottom = _log_ndtr(b), _log_ndtr(a)
    return top + torch.log(-torch.expm1((bottom - top).clamp(max=-1e-6)))
