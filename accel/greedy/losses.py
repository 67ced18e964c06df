"""What a candidate costs in quality, measured on the network as it stands: every other layer as the search left it.

Of the pictures every second one is fitted on, and the others are judged: a fit that only repeats what it has seen shall
not look good. Whole networks are judged on further pictures too, which chose no layer's candidate: on the four that
HED's candidates were judged on, a network lost 0.0079, on 48 others 0.0104. On those that all are judged on, a first
run records what every convolution gives; a candidate then only computes from its own layer on, the outputs of the
layers before it being those recorded. It does so for a few pictures at a time: 1,024 pictures of CIFAR at once spent
half the time on page faults, as every map was larger than what malloc keeps.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from accel.calibrate import LIMIT, fit_interpolation, fit_layer, quantization_of, record, settle
from accel.convert import Conversion, convert_layers, convolutions
from accel.errors import DataError
from accel.fills import CORRECTIONS, nearest_fit
from accel.greedy.budget import Budget
from accel.greedy.forms import fit_pairs, in_halves, pair_for, ranks_in, shared_copy
from accel.greedy.table import DENSE
from accel.impact import all_impacts
from accel.inputs import Batch, joined
from accel.low_rank import LowRankConv2d, decompose
from accel.nn.perforated import PerforatedConv2d, shallow_copy
from accel.nn.quantized_linear import QuantizedLinear
from accel.profiling.distances import are_logits, divergence
from accel.running import evaluation, floating_tensors, has_labels, one_by_one, replaced_forwards

Loss = Callable[[object, object], Tensor]  # (outputs, batch as it was given) -> the sum over the pictures
Track = Callable[[Sequence, str], Iterable]
_Probe = PerforatedConv2d | QuantizedLinear | LowRankConv2d
# Times as long as a fit takes one that refits the weights, until that has been measured. Alone HED's takes 5.3 times as
# long; in a whole network, with the runs that its fits need, 1.4.
_REFIT = {"look": 5.0, "whole": 1.4}
_LOW, _IMPACT = "low rank", "impact"  # where times of fits go by what they correct
_PART = 0.5  # of a run that a candidate takes on average, the layers before it being known


@dataclasses.dataclass(frozen=True)
class Judge:
    """How good outputs are, beside the dense network's on the same pictures.

    Attributes: dense, the dense network's outputs; batch, the pictures and their labels; own, the caller's loss or
    None.
    """

    dense: object
    batch: Batch
    own: Loss | None = None

    @functools.cached_property
    def dense_loss(self) -> float:
        return self.loss(self.dense)

    def loss(self, outputs: object) -> float:
        """Per picture: the caller's loss; cross-entropy where there are labels; else distillation.

        Distillation is the divergence KL(dense, ours) of the softmax of logits [N, K], and the mean squared difference
        of any other outputs: both grow with the square of small errors, so that those of several layers add up. What is
        no number is infinitely bad.

        Raises:
            DataError: outputs that cannot be compared, and no loss of the caller's.
        """
        if self.own is not None:
            found = float(self.own(outputs, self.batch.given)) / len(self.batch)
        else:
            ours, dense = self._compared(outputs)
            if _has_labels(ours, self.batch):
                found = float(F.cross_entropy(ours[0], self.batch.labels))
            else:
                found = sum(float(divergence(a, b, F.mse_loss)) for a, b in zip(ours, dense))
        return math.inf if math.isnan(found) else found

    def loss_and_drop(self, outputs: object) -> tuple[float, float]:
        """Both, with the caller's loss called once."""
        loss = self.loss(outputs)
        return loss, self.drop(outputs) if self.own is None else loss - self.dense_loss

    def drop(self, outputs: object) -> float:
        """What is worse than dense: the increase of the caller's loss; the share of correct answers lost; without
        labels the share of top-1 answers that changed; for outputs that are no logits their mean absolute difference.
        """
        if self.own is not None:
            return self.loss(outputs) - self.dense_loss
        ours, dense = self._compared(outputs)
        if not are_logits(ours[0]):
            found = sum(float((a - b).abs().mean()) for a, b in zip(ours, dense)) / len(ours)
            return math.inf if math.isnan(found) else found
        answers, before = ours[0].argmax(1), dense[0].argmax(1)
        if _has_labels(ours, self.batch):
            labels = self.batch.labels
            return float((before == labels).float().mean() - (answers == labels).float().mean())
        return float((answers != before).float().mean())

    def _compared(self, outputs: object) -> tuple[list[Tensor], list[Tensor]]:
        ours, dense = floating_tensors(outputs), floating_tensors(self.dense)
        if not dense or [a.shape for a in ours] != [b.shape for b in dense]:
            shapes = [[list(tensor.shape) for tensor in each] for each in (ours, dense)]
            raise DataError(
                f"outputs of shapes {shapes[0]} cannot be compared with the dense network's {shapes[1]}: pass loss="
            )
        return ours, dense


def _has_labels(outputs: list[Tensor], batch: Batch) -> bool:
    return are_logits(outputs[0]) and has_labels(outputs, batch.labels)


@dataclasses.dataclass(frozen=True)
class Look:
    """The quality of a network as it stands, and what each candidate would change in it.

    Attributes: loss, drop; extra, layer -> label -> increase of the loss if that layer alone took that candidate, for
    as many layers as there was time for; whole, whether that is all of them.
    """

    loss: float
    drop: float
    extra: dict[str, dict[str, float]]
    whole: bool = True


class Losses:
    """Measures the quality of perforated networks.

    Attributes: known, the pictures that are fitted on; looked, the judge of single candidates; judged, that of whole
    networks.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Mapping[str, Mapping[str, Conversion]],
        batch: Batch,
        own: Loss | None,
        at_once: int,
        budget: Budget | None = None,
        more: Batch | None = None,
    ) -> None:
        """`model`: dense, laid out as converted models are; `candidates`: layer -> label -> what to turn it into;
        `at_once`: pictures that a candidate runs on at a time; `more`: pictures that only whole networks are judged on.

        Raises:
            DataError: the loss of the dense network is no number.
        """
        self.network = model
        self.layers = convolutions(model) | {name: model.get_submodule(name) for name in candidates}
        self.candidates = candidates
        self.budget = budget or Budget(None)
        calibrated = any(_is_calibrated(made) for row in candidates.values() for made in row.values())
        split = calibrated and len(batch) > 1
        self.known = (batch.part(0, None, 2) if split else batch).part(0, max(1, LIMIT // batch.pixels))
        looked = batch.part(1, None, 2) if split else batch
        begin = time.monotonic()
        self.at_once = len(looked)
        self.looked = self.judged = self._judge(looked, own)
        self._run_seconds = (time.monotonic() - begin) / len(looked)  # of one picture
        leaves = tree_leaves(self.looked.dense)
        if all(isinstance(leaf, Tensor) and leaf.shape[:1] == (len(looked),) for leaf in leaves):
            self.at_once = at_once
            self.judged = self.looked if more is None else self._judge(joined([looked, more]), own)
        self._clips: dict[str, Tensor] = {}
        self._fit_seconds: dict[str, dict[str, list[float]]] = {kind: {} for kind in _REFIT}  # by what it corrects

    @functools.cached_property
    def _dense(self) -> dict[str, Tensor]:
        """What the layers give in the dense network for the pictures that are fitted on."""
        searched = {name: self.layers[name] for name in self.candidates}
        with evaluation(self.network), one_by_one():
            return record(self.network, self.known, searched, {})

    def _judge(self, pictures: Batch, own: Loss | None) -> Judge:
        with evaluation(self.network), one_by_one(), torch.no_grad():
            judge = Judge(self._run(pictures, {}, {}), pictures, own)
        if not math.isfinite(judge.dense_loss):
            raise DataError(f"the loss of the dense network is {judge.dense_loss}: mend the pictures, or loss=")
        return judge

    @torch.no_grad()
    def look(
        self, state: Mapping[str, str], wanted: Mapping[str, Sequence[str]], track: Track = lambda items, _: items
    ) -> Look:
        """Measure the network whose layers have the labels of `state`, and the `wanted` candidates of its layers, in
        their order.

        Raises:
            OutOfTime: the budget ends while layers are fitted.
        """
        trial = {(name, label) for name, labels in wanted.items() for label in labels if label != DENSE}
        trial |= {(name, label) for name, label in state.items() if label != DENSE}
        probes = {key: self._probe(*key) for key in trial}
        dense = {name: layer.forward for name, layer in self.layers.items()}
        own = {
            name: probes[name, state[name]].forward if (name, state.get(name)) in probes else run
            for name, run in dense.items()
        }
        with evaluation(self.network), one_by_one():
            self._fit(probes, own)
            begin = time.monotonic()
            recorded, base = self._record(own)
            loss, drop = self.looked.loss_and_drop(base)
            self._run_seconds = (time.monotonic() - begin) / len(self.looked.batch)
            extra, order = {}, list(recorded)
            for name in track(list(wanted), "trying"):
                known = {other: recorded[other] for other in order[: order.index(name) if name in recorded else 0]}
                extra[name] = {}
                for label in wanted[name]:
                    run = dense[name] if label == DENSE else probes[name, label].forward
                    found = self.looked.loss(self._run(self.looked.batch, {**own, name: run}, known))
                    extra[name][label] = found - loss if math.isfinite(found) else math.inf
                    if self.budget.left <= 0:
                        return Look(loss, drop, extra, whole=False)
        return Look(loss, drop, extra)

    @torch.no_grad()
    def measure(self, state: Mapping[str, str]) -> Look:
        """Measure a whole network, fitted as a conversion fits it.

        Raises:
            OutOfTime: the budget ends while layers are fitted.
        """
        chosen = {name: self.candidates[name][label] for name, label in state.items() if label != DENSE}
        network, ranks = shared_copy(self.network), ranks_in(self.network, chosen)
        try:
            self._convert(network, chosen, ranks)
        except DataError:
            if not ranks:
                raise
            return Look(math.inf, math.inf, {})  # the pictures do not tell all of them
        with evaluation(network), one_by_one():
            forwards = {name: network.get_submodule(name).forward for name in chosen}
            outputs = self._run(self.judged.batch, forwards, {})
        return Look(*self.judged.loss_and_drop(outputs), {})

    def _convert(self, network: nn.Module, chosen: Mapping[str, Conversion], ranks: Mapping[str, int]) -> None:
        """Do to a copy of the network what a conversion does."""
        begin = time.monotonic()
        if ranks:
            decompose(network, self.known, ranks, self.budget.check, self._dense)
            self._fit_seconds["whole"].setdefault(_LOW, []).append((time.monotonic() - begin) / len(ranks))
        convert_layers(network, self._iterated(network, in_halves(chosen)))
        begin = time.monotonic()
        if any(made.config.in_bytes or _is_fitted(made) for made in chosen.values()):
            known = self._dense if any(map(_is_fitted, chosen.values())) and not ranks else {}
            clips = dict(self._clips) if ranks else self._clips  # those of low ranks are of this network alone
            fit_interpolation(network, [self.known.given], before=self.budget.check, known=known, clips=clips)
        fitted = [made.config.correct for made in chosen.values() if _is_fitted(made)]
        if fitted:
            each = (time.monotonic() - begin) / len(fitted)
            for correct in {*fitted} if len({*fitted}) == 1 else ():
                self._fit_seconds["whole"].setdefault(correct, []).append(each)

    def _iterated(self, network: nn.Module, chosen: Mapping[str, Conversion]) -> Mapping[str, Conversion]:
        """The conversions with the impact that layers have after those before them; looks go by the dense network's."""
        count = sum(made.config.masking.iterative for made in chosen.values())
        if not count:
            return chosen
        begin = time.monotonic()
        found = all_impacts(network, chosen, [self.known.given], self.looked.own)
        self._fit_seconds["whole"].setdefault(_IMPACT, []).append((time.monotonic() - begin) / count)
        return {n: found[n] if made.config.masking.iterative else made for n, made in chosen.items()}

    def seconds(self, state: Mapping[str, str], wanted: Mapping[str, Sequence[str]]) -> float:
        """About how long a look takes, from what was measured; without anything `wanted`, a whole network."""
        trials = [(name, label) for name, labels in wanted.items() for label in labels]
        made = [self.candidates[name][label] for name, label in (*state.items(), *trials) if label != DENSE]
        kind = "look" if trials else "whole"
        fits = sum(self._usual(kind, correct) for each in made for correct in _fits(each))
        pictures = (self.looked if trials else self.judged).batch
        return fits + (2 + _PART * len(trials)) * len(pictures) * self._run_seconds

    def _usual(self, kind: str, correct: str) -> float:
        """Seconds of a layer's fit; before the first look, what fits of whole networks took."""
        for times in (self._fit_seconds[kind], self._fit_seconds["whole"]):
            if known := times.get(correct):
                return sum(known) / len(known)
        return _REFIT[kind] * self._usual(kind, CORRECTIONS[0]) if correct != CORRECTIONS[0] else 0.0

    def _probe(self, name: str, label: str) -> _Probe:
        """The layer under a candidate: a module beside the layer's own, with the same parameters."""
        made, layer = self.candidates[name][label], self.layers[name]
        if isinstance(layer, nn.Linear):
            return QuantizedLinear.adopt(shallow_copy(layer), name)
        if made.config.rank is not None:
            return pair_for(layer, name, made)
        return PerforatedConv2d.adopt(shallow_copy(layer), made.config, name, made.pooling, made.impact)

    def _run(self, pictures: Batch, forwards: Mapping[str, Callable], known: Mapping[str, list[Tensor]]) -> object:
        """The outputs on all pictures; layers have these forwards, and those with `known` outputs do not compute."""
        parts = []
        for turn, start in enumerate(range(0, len(pictures), self.at_once)):
            again = {name: functools.partial(_again, outputs[turn]) for name, outputs in known.items()}
            with replaced_forwards({self.layers[name]: run for name, run in {**forwards, **again}.items()}):
                parts.append(tree_flatten(pictures.part(start, start + self.at_once).run(self.network)))
        if len(parts) == 1:
            return tree_unflatten(*parts[0])
        return tree_unflatten([torch.cat(pieces) for pieces in zip(*(leaves for leaves, _ in parts))], parts[0][1])

    def _record(self, own: Mapping[str, Callable]) -> tuple[dict[str, list[Tensor]], object]:
        """The outputs, part by part, of the layers that run once, in order; and the network's on all pictures."""
        found: dict[str, list[Tensor]] = {}

        def recording(name: str, run: Callable, input: Tensor) -> Tensor:  # as torch names it
            out = run(input)
            found.setdefault(name, []).append(out.clone())  # an in-place activation may overwrite it
            return out

        pictures = self.looked.batch
        outputs = self._run(pictures, {name: functools.partial(recording, name, run) for name, run in own.items()}, {})
        turns = -(-len(pictures) // self.at_once)
        return {name: parts for name, parts in found.items() if len(parts) == turns}, outputs

    def _fit(self, probes: Mapping[tuple[str, str], _Probe], own: Mapping[str, Callable]) -> None:
        """Fit all probes to the inputs that they get in the network whose layers have the forwards `own`."""
        fitted: dict[str, list[tuple[Conversion, _Probe]]] = {}
        for (name, label), probe in probes.items():
            made = self.candidates[name][label]
            if _is_fitted(made) and made.config.rank is None:
                probe.set_fit(nearest_fit(probe.out_channels))  # where the pictures do not reach it
            if _is_calibrated(made):
                fitted.setdefault(name, []).append((made, probe))

        def fit(name: str, x: Tensor, target: Tensor) -> None:
            pairs = [(made, probe) for made, probe in fitted[name] if made.config.rank is not None]
            rows = [(made, probe) for made, probe in fitted[name] if made.config.rank is None]
            in_bytes = any(made.config.in_bytes for made, _ in rows)
            found = quantization_of(self.layers[name], name, x, self._clips) if in_bytes else None
            if pairs:
                self.budget.check()
                begin = time.monotonic()
                fit_pairs(self.layers[name], name, pairs, x, target)
                self._fit_seconds["look"].setdefault(_LOW, []).append((time.monotonic() - begin) / len(pairs))
            for made, probe in rows:
                self.budget.check()
                begin = time.monotonic()
                if made.config.in_bytes:
                    probe.quantization = found
                if _is_fitted(made):
                    probe.set_fit(fit_layer(probe, x, target))
                    self._fit_seconds["look"].setdefault(made.config.correct, []).append(time.monotonic() - begin)

        waiting = {name: self.layers[name] for name in fitted}
        forwards = {self.layers[name]: run for name, run in own.items()}
        if waiting:
            settle(self.network, self.known, waiting, fit, {}, forwards, self._dense)


def _again(recorded: Tensor, *_: object, **__: object) -> Tensor:
    return recorded.clone()


def _is_fitted(made: Conversion) -> bool:
    return made.config.filling.needs_data


def _is_calibrated(made: Conversion) -> bool:
    return _is_fitted(made) or made.config.in_bytes or made.config.rank is not None


def _fits(made: Conversion) -> list[str]:
    """What is fitted, as times of fits are kept."""
    learned = {_LOW: made.config.rank is not None, _IMPACT: made.config.masking.iterative}
    return [what for what, wanted in {**learned, made.config.correct: _is_fitted(made)}.items() if wanted]
