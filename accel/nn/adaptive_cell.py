"""Recurrent cells that take several steps of computation for one of time: ACT, PACT, and a fixed number of repeats.

Graves 2016, arXiv 1603.08983, whose rule ACT is that of `accel.halting`; PACT, arXiv 1712.00386; fixed repeats as the
rival that Fojo, Campos and Giro-i-Nieto (ICLR workshop 2018, arXiv 1803.08165) found at least as good. At every step of
time the cell is applied to the input and its own state until the sample halts, and hands on the state that the policy
makes of those it went through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from accel.config import ACT, FP32, PACT, FixedRepeats
from accel.errors import ConfigError, ConversionError
from accel.halting import AddedScores, Halted, Policy, Steps
from accel.nn.modes import EVALUATION, decisions_of
from accel.nn.stage_outputs import AdaptiveOutput, StageOutput, add

INITIAL_BIAS = 1.0  # Graves's: a sample takes two steps of ACT at first, rather than all of them
State = Tensor | tuple[Tensor, ...]


@dataclasses.dataclass
class CellOutput(AdaptiveOutput):
    """What a cell did: `logits` is its output, and there is an entry of `stages` for every step of time.

    `accel.ponder_loss` sums the mean ponder costs of the steps.
    """

    @property
    def num_steps(self) -> Tensor:
        """int32 [T, N]: how often the cell was applied; 0 behind the end of a sequence."""
        return _padded([stage.num_units for stage in self.stages])

    @property
    def ponder_cost(self) -> Tensor:
        """[T, N]; differentiable."""
        return _padded([stage.ponder_cost for stage in self.stages])


class CellHead(nn.Module):
    """h = sigmoid(linear(state)): [N, hidden] -> [N]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1)
        nn.init.constant_(self.linear.bias, INITIAL_BIAS)

    def forward(self, state: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(state))

    def logits(self, state: Tensor) -> Tensor:
        """The log odds of h."""
        odds = self.linear(state)[:, 0]
        return odds.to(torch.promote_types(odds.dtype, torch.float32))


class AdaptiveCell(nn.Module):
    """A recurrent cell over a sequence, under ACT, PACT or a fixed number of repeats.

        cell = AdaptiveCell(nn.LSTMCell(8, 32), PACT(tau=0.01))
        y, state, out = cell(sequence)      # y [T, N, 32], state as the cell's own, out.num_steps [T, N]

    Args:
        cell: (input [N, features], state) -> state, the state a tensor or a tuple of tensors, the first of them the
            output [N, hidden]: nn.RNNCell, nn.GRUCell, nn.LSTMCell, or one's own, which must take None as the state
            before the first step.
        config: ACT, PACT (whose `spatial` has no meaning here) or FixedRepeats.
        hidden: width of the output; None: the cell's `hidden_size`.
        max_steps: of computation for one of time, at least 2.
        flag: whether the cell gets one feature more than the sequence has, which is 1 in the first of the repeats and 0
            in the others, as Graves has it.

    Raises:
        ConfigError: another configuration, or a number of steps below 2.
    """

    def __init__(
        self,
        cell: nn.Module,
        config: ACT | PACT | FixedRepeats,
        *,
        hidden: int | None = None,
        max_steps: int = 10,
        flag: bool = False,
    ) -> None:
        super().__init__()
        if type(config) not in (ACT, PACT, FixedRepeats):
            raise ConfigError(f"a cell takes ACT, PACT or FixedRepeats, got {type(config).__name__}")
        if config.target is not None:
            raise ConfigError("target is a share of a network's MACs: give a cell a tau, and no target")
        if config.precision != FP32:
            raise ConfigError(f"a cell computes in {FP32}, got precision {config.precision!r}: leave it out")
        if not isinstance(max_steps, int) or max_steps < 2:
            raise ConfigError(f"max_steps must be at least 2, got {max_steps!r}")
        width = hidden if hidden is not None else getattr(cell, "hidden_size", None)
        if width is None:
            raise ConfigError(f"{type(cell).__name__} has no hidden_size: say with hidden= how wide its output is")
        if isinstance(config, PACT):
            config = dataclasses.replace(config, spatial=False)
        self.cell, self.config, self.max_steps, self.flag = cell, config, max_steps, flag
        self.halting = None if isinstance(config, FixedRepeats) else CellHead(width)
        if self.halting is not None:
            self.halting.to(next(cell.parameters()))
        self.macs = sum(parameter.numel() for parameter in cell.parameters() if parameter.dim() > 1)

    def forward(
        self, sequence: Tensor | PackedSequence, state: State | None = None
    ) -> tuple[Tensor | PackedSequence, State, CellOutput]:
        """Args:
            sequence: [T, N, features], or packed.
            state: before the first step; None: the cell's own.

        Returns:
            (the outputs, [T, N, hidden] or packed; the state after the last step of every sample; what was done).

        Raises:
            ConversionError: a cell that changes the shape of its state.
        """
        packed = sequence if isinstance(sequence, PackedSequence) else None
        if packed is not None:
            steps = packed.data.split(packed.batch_sizes.tolist())
            state = _indexed(state, packed.sorted_indices)
        else:
            steps = sequence.unbind(0)
        did, outputs, ended = [], [], []
        for x in steps:
            if state is not None and len(x) < len(_first(state)):  # the shortest sequences come last
                ended.append(_rows(state, len(x), None))
                state = _rows(state, 0, len(x))
            state, done = self._step(x, state)
            outputs.append(_first(state))
            did.append(done)
            add(done)
        state = _joined([state, *ended[::-1]])
        if packed is None:
            y = torch.stack(outputs)
        else:
            y = packed._replace(data=torch.cat(outputs))
            state = _indexed(state, packed.unsorted_indices)
        return y, state, CellOutput(y, did, self.config.tau, getattr(self.config, "kl", None))

    def _step(self, x: Tensor, before: State | None) -> tuple[State, StageOutput]:
        """One step of time."""
        state = self._run_cell(x, before, first=True)
        if before is not None:
            _check_shapes(self.cell, before, state)
        if self.halting is None:
            for _ in range(self.config.repeats - 1):
                state = self._run_cell(x, state)
            return state, self._record(_fixed(_first(state), self.config.repeats))
        policy = decisions_of(self, self.config) if isinstance(self.config, PACT) else AddedScores(self.config.eps)
        head = policy.said_by(self.halting)
        flat, shapes = _flat(state), state
        hidden = _first(state).shape[1]
        budget = flat.new_ones(len(flat), dtype=torch.promote_types(flat.dtype, torch.float32))
        steps = Steps(policy, flat, budget)
        stops = not policy.sticks or policy == EVALUATION  # decisions of estimators are told apart by their number
        skips = stops and not (self.training or torch.is_grad_enabled())
        for number in range(1, self.max_steps + 1):
            if number > 1:
                if stops and not (steps.remainder > 0).any():
                    break
                flat = self._advance(policy, x, flat, shapes, steps.remainder, skips)
            last = number == self.max_steps
            steps.take(None if last else lambda flat: head(flat[:, :hidden]), flat)
        halted = steps.halted(flat)
        return _like(halted.output, shapes), self._record(halted)

    def _advance(
        self, policy: Policy, x: Tensor, flat: Tensor, shapes: State, remainder: Tensor, skips: bool
    ) -> Tensor:
        """The states after one more step of computation; with `skips`, of the samples that still run."""
        rows = (remainder > 0).nonzero()[:, 0] if skips else None
        some = rows is not None and len(rows) < len(flat)
        state = _like(flat[rows], _indexed(shapes, rows)) if some else _like(flat, shapes)
        new = self._run_cell(x[rows] if some else x, state)
        _check_shapes(self.cell, state, new)
        return flat.index_copy(0, rows, _flat(new)) if some else policy.advance(flat, _flat(new), remainder)

    def _run_cell(self, x: Tensor, state: State | None, first: bool = False) -> State:
        if self.flag:
            x = torch.cat((x, x.new_full((len(x), 1), float(first))), 1)
        return self.cell(x, state)

    def _record(self, halted: Halted) -> StageOutput:
        length = self.config.repeats if self.halting is None else self.max_steps
        spent = halted.distribution.movedim(0, 1)
        weights = torch.cat((spent, spent.new_zeros(len(spent), length - spent.shape[1])), 1)
        logits = None if halted.logits is None else halted.logits.movedim(0, 1)
        macs = halted.units.long() * self.macs
        return StageOutput(halted.ponder, halted.units, weights, macs, length * self.macs, "", logits)


def _fixed(output: Tensor, repeats: int) -> Halted:
    """What a fixed number of repeats did."""
    number = torch.full((len(output),), repeats, dtype=torch.int32, device=output.device)
    weights = output.new_zeros(repeats, len(output))
    weights[-1] = 1
    return Halted(output, number.to(output.dtype), number, weights)


def _first(state: State) -> Tensor:
    return state if isinstance(state, Tensor) else state[0]


def _map(state: State, change: Callable[[Tensor], Tensor]) -> State:
    return change(state) if isinstance(state, Tensor) else tuple(map(change, state))


def _rows(state: State, start: int, end: int | None) -> State:
    return _map(state, lambda part: part[start:end])


def _indexed(state: State | None, indices: Tensor | None) -> State | None:
    return state if state is None or indices is None else _map(state, lambda part: part[indices])


def _joined(states: list[State]) -> State:
    if isinstance(states[0], Tensor):
        return torch.cat(states)
    return tuple(torch.cat(parts) for parts in zip(*states))


def _flat(state: State) -> Tensor:
    """[N, all that the state holds], the output first."""
    return state.flatten(1) if isinstance(state, Tensor) else torch.cat([part.flatten(1) for part in state], 1)


def _like(flat: Tensor, state: State) -> State:
    """The inverse of `_flat`."""
    if isinstance(state, Tensor):
        return flat.view_as(state)
    parts = flat.split([part[0].numel() for part in state], 1)
    return tuple(part.reshape(like.shape) for part, like in zip(parts, state))


def _check_shapes(cell: nn.Module, before: State, after: State) -> None:
    shapes = [[tuple(part.shape) for part in ([s] if isinstance(s, Tensor) else s)] for s in (before, after)]
    if shapes[0] != shapes[1]:
        raise ConversionError(
            f"{type(cell).__name__} got a state of {shapes[0]} and gave one of {shapes[1]}: a cell that is applied "
            "several times must keep the shape of its state"
        )


def _padded(rows: list[Tensor]) -> Tensor:
    """[T, N] of rows that get shorter."""
    longest = len(rows[0])
    return torch.stack([torch.cat((row, row.new_zeros(longest - len(row)))) for row in rows])
