"""What a candidate costs in quality, measured on the network as it stands: every other layer as the search left it.

What is to be fitted is fitted on all pictures at once, and a run of the network as it stands records what every
convolution gives; a candidate then only computes from its own layer on, the outputs of the layers before it being those
recorded. These runs take a few pictures at a time: 1,024 pictures of CIFAR at once spent half the time on page faults,
as every map was larger than what malloc keeps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from accel.calibrate import fit_layer
from accel.convert import Conversion, convolutions
from accel.greedy.table import DENSE
from accel.inputs import Batch
from accel.nn.fitted import nearest_fit
from accel.nn.inference import one_by_one
from accel.nn.perforated import PerforatedConv2d, shallow_copy
from accel.nn.running import evaluation, floating_tensors, has_labels, replaced_forwards
from accel.nn.settling import settle

Loss = Callable[[object, object], Tensor]  # (outputs, batch as it was given) -> the sum over the pictures
Track = Callable[[Sequence, str], Iterable]


@dataclasses.dataclass(frozen=True)
class Judge:
    """How good outputs are, beside the dense network's on the same pictures.

    Attributes: dense, the dense network's outputs; batch, the pictures and their labels; own, the caller's loss or
    None.
    """

    dense: object
    batch: Batch
    own: Loss | None = None

    def loss(self, outputs: object) -> float:
        """Per picture: the caller's loss; cross-entropy where there are labels; else distillation.

        Distillation is the divergence KL(dense, ours) of the softmax of logits [N, K], and the mean squared difference
        of any other outputs: both grow with the square of small errors, so that those of several layers add up.
        """
        if self.own is not None:
            return float(self.own(outputs, self.batch.given)) / len(self.batch)
        ours, dense = floating_tensors(outputs), floating_tensors(self.dense)
        if has_labels(ours, self.batch.labels):
            return float(F.cross_entropy(ours[0], self.batch.labels))
        return sum(float(_distance(a, b)) for a, b in zip(ours, dense))

    def drop(self, outputs: object) -> float:
        """What is worse than dense: the increase of the caller's loss; the share of correct answers lost; without
        labels the share of top-1 answers that changed; for outputs that are no logits their mean absolute difference.
        """
        if self.own is not None:
            return self.loss(outputs) - self.loss(self.dense)
        ours, dense = floating_tensors(outputs), floating_tensors(self.dense)
        answers, before = ours[0].argmax(1), dense[0].argmax(1)
        if has_labels(ours, self.batch.labels):
            labels = self.batch.labels
            return float((before == labels).float().mean() - (answers == labels).float().mean())
        if ours[0].dim() == 2:
            return float((answers != before).float().mean())
        return sum(float((a - b).abs().mean()) for a, b in zip(ours, dense)) / len(ours)


def _distance(ours: Tensor, dense: Tensor) -> Tensor:
    if ours.dim() == 2:
        return F.kl_div(ours.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean")
    return F.mse_loss(ours, dense)


@dataclasses.dataclass(frozen=True)
class Look:
    """The quality of a network as it stands, and what each candidate would change in it.

    Attributes: loss, drop; extra, layer -> label -> increase of the loss if that layer alone took that candidate.
    """

    loss: float
    drop: float
    extra: dict[str, dict[str, float]]


class Losses:
    """Measures the quality of perforated networks on one batch of pictures."""

    def __init__(
        self,
        model: nn.Module,
        candidates: Mapping[str, Mapping[str, Conversion]],
        batch: Batch,
        own: Loss | None,
        at_once: int,
    ) -> None:
        """`model`: dense, laid out as converted models are; `candidates`: layer -> label -> what to turn it into;
        `at_once`: pictures that a candidate runs on at a time."""
        self.network = model
        self.layers = convolutions(self.network)
        self.candidates = candidates
        self.pictures = batch
        with evaluation(self.network), torch.no_grad():
            dense = batch.run(self.network)
        leaves = tree_leaves(dense)
        joins = all(isinstance(leaf, Tensor) and leaf.shape[:1] == (len(self.pictures),) for leaf in leaves)
        self.at_once = at_once if joins else len(self.pictures)
        self.judge = Judge(dense, batch, own)
        self.dense_loss = self.judge.loss(dense)

    @torch.no_grad()
    def look(
        self, state: Mapping[str, str], wanted: Mapping[str, Sequence[str]], track: Track = lambda items, _: items
    ) -> Look:
        """Measure the network whose layers have the labels of `state`, and the `wanted` candidates of its layers."""
        trial = {(name, label) for name, labels in wanted.items() for label in labels}
        trial |= {(name, label) for name, label in state.items() if label != DENSE}
        probes = {key: self._probe(*key) for key in trial}
        own = {name: probes.get((name, state.get(name)), layer).forward for name, layer in self.layers.items()}
        with evaluation(self.network), one_by_one():
            self._fit(own, probes)
            base, recorded = self._recorded_run(own)
            loss, drop = self.judge.loss(base), self.judge.drop(base)
            extra = {}
            order = list(recorded)
            for name in track(sorted(wanted, key=lambda name: order.index(name) if name in recorded else -1), "trying"):
                before = order[: order.index(name)] if name in recorded else []
                known = {other: recorded[other] for other in before}
                runs = {label: {**own, name: probes[name, label].forward} for label in wanted[name]}
                extra[name] = {label: self.judge.loss(self._run(run, known)) - loss for label, run in runs.items()}
        return Look(loss, drop, extra)

    def _probe(self, name: str, label: str) -> PerforatedConv2d:
        """The layer under a candidate: a module beside the layer's own, with the same parameters."""
        made = self.candidates[name][label]
        return PerforatedConv2d.adopt(shallow_copy(self.layers[name]), made.config, name, made.pooling, made.impact)

    def _run(self, forwards: Mapping[str, Callable], known: Mapping[str, Tensor]) -> object:
        """The outputs on all pictures; layers have these forwards, and those with `known` outputs do not compute."""
        parts = []
        for start in range(0, len(self.pictures), self.at_once):
            here = slice(start, start + self.at_once)
            again = {name: functools.partial(_again, outputs[here]) for name, outputs in known.items()}
            with replaced_forwards({self.layers[name]: run for name, run in {**forwards, **again}.items()}):
                parts.append(tree_flatten(self.pictures.part(here.start, here.stop).run(self.network)))
        if len(parts) == 1:
            return tree_unflatten(*parts[0])
        return tree_unflatten([torch.cat(pieces) for pieces in zip(*(leaves for leaves, _ in parts))], parts[0][1])

    def _fit(self, own: Mapping[str, Callable], probes: Mapping[tuple[str, str], PerforatedConv2d]) -> None:
        """Fit all probes to the inputs they get where layers have the forwards `own`."""
        fitted: dict[str, list[PerforatedConv2d]] = {}
        for (name, _), probe in probes.items():
            if probe.config.interpolate == "fitted":
                probe.set_fit(nearest_fit(probe.out_channels))  # where the pictures do not reach it
                fitted.setdefault(name, []).append(probe)

        def fit(name: str, x: Tensor, target: Tensor) -> None:
            for probe in fitted[name]:
                probe.set_fit(fit_layer(probe, x, target))

        waiting = {name: self.layers[name] for name in fitted}
        settle(self.network, self.pictures, waiting, fit, {}, {self.layers[name]: run for name, run in own.items()})

    def _recorded_run(self, own: Mapping[str, Callable]) -> tuple[object, dict[str, Tensor]]:
        """The outputs on all pictures, and those of the layers that run once and give a map for each, in order."""
        outputs: dict[str, list[Tensor]] = {}

        def recorded(name: str, forward: Callable) -> Callable:
            def run(x: Tensor) -> Tensor:
                out = forward(x)
                outputs.setdefault(name, []).append(out.clone())  # an in-place activation may overwrite it
                return out

            return run

        base = self._run({name: recorded(name, forward) for name, forward in own.items()}, {})
        count = len(self.pictures)
        sizes = [min(self.at_once, count - start) for start in range(0, count, self.at_once)]
        once = {name: found for name, found in outputs.items() if [len(out) for out in found] == sizes}
        return base, {name: torch.cat(found) for name, found in once.items()}


def _again(recorded: Tensor, *_: object) -> Tensor:
    return recorded.clone()
