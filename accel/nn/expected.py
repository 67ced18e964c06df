"""The objective of PACT, task loss included, with the gradient of the estimator that its configuration names.

The halting decisions of a forward come layer by layer, as the units run: a layer's probabilities depend on the
decisions before it. So the gradient is a sum over layers, of the expectation over this layer's decisions given those
before it, of the loss with the decisions behind it drawn anew. A forward with drawn decisions leads; for each layer in
turn the network runs again, with the leading decisions up to the layer, those that the estimator asks for in it, and
the same random numbers behind it. The score function needs the leading forward alone, enumeration the ways to halt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.utils._pytree import tree_map_only

from accel.config import PACT
from accel.errors import ConfigError, ConversionError
from accel.halting import Sticks, thresholded
from accel.inputs import Inputs, as_batch
from accel.mc import REBAR, Concrete, Enumerate, LeaveOneOut, ScoreFunction
from accel.mc.cost import Cost, floating
from accel.mc.relaxed import BinaryRelaxation
from accel.mc.rows import attach
from accel.mc.sampling import fork
from accel.nn.modes import Choice, Mode, decide_by, pact_stages
from accel.nn.stage_outputs import AdaptiveOutput, recorded_stages


def expected_loss(
    net: nn.Module,
    x: Inputs,
    f: Callable[[object], Tensor],
    *,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
    on_output: Callable[[AdaptiveOutput], None] | None = None,
) -> Tensor:
    """The mean over examples of E[f + tau * units], whose backward is the estimator of the network's PACT.

    Gradients reach every parameter: through f, through the price of the units, and through the decisions. With `kl`,
    its weight times the divergence from the prior stands in for the price. Concrete gives the relaxed expectation.

    The network runs on `num_samples` copies of the batch; the score function needs no other run, DisARM two for every
    unit that can be followed by another, MeasureValued and REBAR three, Enumerate all ways to halt in one. Batch norms
    in training see all copies, and couple examples that estimators take for independent.

    Args:
        net: a network with PACT stages, in training or evaluation, as it is.
        x: the inputs, [N, ...]: a tensor, a tuple of arguments or a dict of keyword arguments.
        f: maps what the network returned for the batch (`out.logits`) to losses [N], or [N, ...] of which the mean over
            an example counts. It is called once for every copy.
        num_samples: at least 1; None: 2 for LeaveOneOut, else 1. Enumerate takes none.
        generator: of all noise.
        on_output: is called with what the network returned for all copies of the batch, for what is to be logged; for
            Enumerate, with what it returns for the batch in evaluation.

    Returns:
        A scalar.

    Raises:
        ConfigError: more ways to halt than Enumerate may visit.
        ConversionError: no PACT stage, a network around the one that was converted, or a stage that does not run on
            one row for every example; with copies of the batch, an input or output tensor without such rows.
        TypeError, ValueError: of f's result, or a number of samples that the estimator cannot use.
    """
    stages = pact_stages(net)
    config = stages[0].config
    estimator = config.estimator
    if num_samples is None:
        leaves_out = isinstance(estimator, ScoreFunction) and isinstance(estimator.baseline, LeaveOneOut)
        num_samples = 2 if leaves_out else 1
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples!r}")
    reruns = _Reruns(net, stages, x, f, on_output)
    if isinstance(estimator, Enumerate):
        return _enumerated(reruns, estimator)
    if isinstance(estimator, Concrete):
        return reruns(Mode("relaxed", generator), num_samples).mean()
    lead = _Lead(generator)
    costs = reruns(lead, num_samples)
    if not lead.layers:  # nothing was decided
        return costs.mean()
    if isinstance(estimator, ScoreFunction):
        surrogate = estimator.signal(costs) * lead.log_prob().view(costs.shape)
    else:
        surrogate = _branched(reruns, lead, costs, config, generator)
    return attach(costs, surrogate).mean()


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The decisions of one unit: log odds, where it ran, and what was decided; [rows * N, ...]."""

    logits: Tensor
    running: Tensor
    decided: Tensor


class _Lead:
    """Decisions drawn, and remembered."""

    leads = True

    def __init__(self, generator: torch.Generator | None) -> None:
        self.layers: list[_Layer] = []
        self._mode = Mode("sampled", generator)

    def policy(self, config: PACT) -> Sticks:
        return Sticks(self._decide)

    def _decide(self, logits: Tensor, remainder: Tensor) -> Tensor:
        return self.remember(logits, remainder, self._mode.sampled(logits, remainder))

    def remember(self, logits: Tensor, remainder: Tensor, decided: Tensor) -> Tensor:
        self.layers.append(_Layer(logits, remainder > 0, decided))
        return decided

    def log_prob(self) -> Tensor:
        """Of what was decided where a unit ran, per row."""
        parts = (
            torch.where(layer.running, F.logsigmoid((2 * layer.decided - 1) * layer.logits), 0) for layer in self.layers
        )
        return sum(part.flatten(1).sum(1) if part.dim() > 1 else part for part in parts)


class _Branch:
    """The leading decisions before a layer, others in it, and fresh ones behind it: drawn, or relaxed."""

    leads = False

    def __init__(self, lead: _Lead, layer: int, decided: Tensor, noise: torch.Generator, relaxed: bool) -> None:
        """Args:
        decided: [copies * rows, N, ...].
        noise: the same for every copy of the rows.
        """
        self._lead, self._layer, self._decided = lead, layer, decided.flatten(0, 1)
        self._copies = len(self._decided) // len(lead.layers[layer].logits)
        self._noise, self._relaxed, self._count, self._temperature = noise, relaxed, 0, 0.0

    def policy(self, config: PACT) -> Sticks:
        self._temperature = config.temperature
        return Sticks(self._decide, self._relaxed and not config.spatial, plans=self._relaxed)

    def _decide(self, logits: Tensor, remainder: Tensor) -> Tensor:
        layer, self._count = self._count, self._count + 1
        if layer == self._layer:
            return self._decided.to(remainder.dtype)
        if layer < self._layer:
            return _copied(self._lead.layers[layer].decided, self._copies)
        rows = logits[: len(logits) // self._copies]
        noise = BinaryRelaxation.latent(torch.zeros_like(rows), self._noise)
        latent = logits + _copied(noise, self._copies)
        if self._relaxed:
            return BinaryRelaxation.soft(latent, self._temperature)
        return BinaryRelaxation.hard(latent).to(remainder.dtype)


class _Reruns:
    """Runs the network on copies of its inputs, and says what the rows cost.

    Attributes:
        net: the network.
        batch: examples N.
    """

    def __init__(self, net: nn.Module, stages: list, x: Inputs, f: Callable, on_output: Callable | None) -> None:
        self.net, self._stages, self._f, self._on_output = net, stages, f, on_output
        self._inputs = as_batch(x)
        self.batch = len(self._inputs)
        self._tau: float | None = None  # of the first run: a target moves it at every one

    def run(self, choice: Choice, rows: int) -> AdaptiveOutput:
        """The network on `rows` copies of the batch, one after the other."""

        def copied(t: Tensor) -> Tensor:
            return _copied(_counted(t, self.batch, "takes"), rows) if t.dim() else t

        inputs = self._inputs if rows == 1 else self._inputs.map(lambda value: tree_map_only(Tensor, copied, value))
        counted = _Counting(choice)
        with decide_by(self._stages, counted), recorded_stages() as did:
            out = inputs.run(self.net)
        if not isinstance(out, AdaptiveOutput):  # cells report to whoever listens
            config = self._stages[0].config
            out = AdaptiveOutput(out, did, config.tau, config.kl)
        if len(out.stages) != counted.calls:
            raise ConversionError(
                f"{counted.calls} stages decided in {type(self.net).__name__}, and {len(out.stages)} of them say what "
                "it cost: give expected_loss the network that was converted"
            )
        return out

    def __call__(self, choice: Choice, rows: int) -> Tensor:
        """Costs [rows, N]."""
        out = self.run(choice, rows)
        if self._tau is None:
            self._tau = out.tau
            self.tell(out)
        costs = torch.stack([self._losses(part) for part in _parts(out.logits, rows, self.batch)])
        for stage in out.stages:
            price = stage.price(self._tau, out.kl)
            if len(price) != rows * self.batch:
                raise ConversionError(
                    f"stage {stage.name} ran on {len(price) / rows:g} rows for {self.batch} examples: expected_loss "
                    "needs one for each"
                )
            costs = costs + price.view(rows, self.batch, -1).mean(2)
        return costs

    def tell(self, out: AdaptiveOutput) -> None:
        """Hand the output that is to be logged to whoever asked for it, the first time."""
        if self._on_output is not None:
            self._on_output(out)
            self._on_output = None

    def _losses(self, logits: object) -> Tensor:
        losses = floating(self._f(logits), "losses")
        if losses.dim() == 0 or len(losses) != self.batch:
            raise ValueError(
                f"f must return a loss for each of the {self.batch} examples, got shape {tuple(losses.shape)}: give "
                'the loss reduction="none"'
            )
        return losses.reshape(self.batch, -1).mean(1)


class _Counting:
    """Hands on, and counts the calls of stages."""

    def __init__(self, choice: Choice) -> None:
        self.leads, self.calls, self._choice = choice.leads, 0, choice

    def policy(self, config: PACT) -> Sticks:
        self.calls += 1
        return self._choice.policy(config)


def _branched(reruns: _Reruns, lead: _Lead, costs: Tensor, config: PACT, generator: torch.Generator | None) -> Tensor:
    """[rows, N], as the leading costs, whose gradient is the estimator's, layer by layer."""
    estimator, tuned = config.estimator, []
    surrogate = torch.zeros_like(costs)
    for number, layer in enumerate(lead.layers):
        if not layer.running.any():
            continue
        logits = torch.where(layer.running, layer.logits, layer.logits.detach())
        q = Bernoulli(logits=logits.view(*costs.shape, *logits.shape[1:]), validate_args=False)
        cost = Cost(_cost_of(reruns, lead, number, fork(generator, logits.device)), q.batch_shape[1:])
        rows = estimator.rows(cost, q, generator)
        surrogate = surrogate + (rows - rows.detach())
        if isinstance(estimator, REBAR):
            tuned.append(estimator.loss)
    if tuned:
        estimator.loss = sum(tuned)
    return surrogate


def _cost_of(reruns: _Reruns, lead: _Lead, layer: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Costs [rows, N] of the decisions [rows, N, ...] of a layer: relaxed ones are differentiated."""

    def cost(decided: Tensor) -> Tensor:
        relaxed = decided.requires_grad and torch.is_grad_enabled()
        noise = torch.Generator(decided.device).manual_seed(seed)
        with torch.set_grad_enabled(relaxed), _statistics_kept(reruns.net):
            return reruns(_Branch(lead, layer, decided, noise, relaxed), len(decided))

    return cost


class _Listed(_Lead):
    """Every way to halt, one a row: way [rows, calls of stages] says how many units run."""

    def __init__(self, ways: Tensor, batch: int) -> None:
        super().__init__(None)
        self._ways = ways.repeat_interleave(batch, 0)
        self._call, self._unit = -1, 0

    def policy(self, config: PACT) -> Sticks:
        self._call, self._unit = self._call + 1, 0
        return Sticks(self._decide)

    def _decide(self, logits: Tensor, remainder: Tensor) -> Tensor:
        self._unit += 1
        halts = self._ways[:, self._call].to(logits.device) == self._unit
        return self.remember(logits, remainder, halts.to(remainder.dtype))


class _Counted:
    """Counts the heads of every call of a stage."""

    leads = False

    def __init__(self) -> None:
        self.heads: list[int] = []

    def policy(self, config: PACT) -> Sticks:
        self.heads.append(0)
        return Sticks(self._decide)

    def _decide(self, logits: Tensor, remainder: Tensor) -> Tensor:
        self.heads[-1] += 1
        return thresholded(logits, remainder)


def _enumerated(reruns: _Reruns, estimator: Enumerate) -> Tensor:
    """The expectation itself."""
    counted = _Counted()
    with torch.no_grad(), _statistics_kept(reruns.net):
        reruns.tell(reruns.run(counted, 1))
    units = [heads + 1 for heads in counted.heads]
    count = math.prod(units)
    if count > estimator.max_states:
        raise ConfigError(
            f"Enumerate: {' * '.join(map(str, units))} = {count} ways to halt exceed max_states="
            f"{estimator.max_states}: raise it, or take MeasureValued, DisARM, ScoreFunction or Concrete"
        )
    ways = torch.cartesian_prod(*(torch.arange(1, n + 1, device="cpu") for n in units)).view(count, len(units))
    listed = _Listed(ways, reruns.batch)
    costs = reruns(listed, count)
    return (listed.log_prob().view(costs.shape).exp() * costs).sum(0).mean()


@contextlib.contextmanager
def _statistics_kept(net: nn.Module) -> Iterator[None]:
    """Batch norms in training write what they see within the block to buffers that are thrown away."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(norm, dict(norm._buffers)) for norm in norms]
    for norm, buffers in before:
        norm._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in before:
            norm._buffers.update(buffers)


def _copied(tensor: Tensor, copies: int) -> Tensor:
    """The tensor `copies` times, one after the other."""
    return tensor if copies == 1 else tensor.repeat(copies, *[1] * (tensor.dim() - 1))


def _counted(tensor: Tensor, count: int, how: str) -> Tensor:
    """The tensor, which must have a row for every example; else ConversionError: no guess which ones have."""
    if not tensor.dim() or len(tensor) != count:
        raise ConversionError(
            f"the network {how} a tensor of shape {tuple(tensor.shape)} for {count} examples: copies of the batch need "
            "one row for each in every tensor; put what all share into the network"
        )
    return tensor


def _parts(logits: object, rows: int, batch: int) -> list[object]:
    """What the network returned, copy by copy."""
    if rows == 1:
        return [logits]

    def part(row: int) -> object:
        def cut(t: Tensor) -> Tensor:
            return _counted(t, rows * batch, "returned")[row * batch : (row + 1) * batch]

        return tree_map_only(Tensor, cut, logits)

    return [part(row) for row in range(rows)]
