"""Recurrent cells that repeat: ACT, PACT and fixed repeats; packed sequences, gradients, tiny training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import accel
from accel.config import ACT, PACT, SACT, FixedRepeats
from accel.errors import ConfigError, ConversionError
from accel.mc import DisARM, LeaveOneOut, MeasureValued, ScoreFunction
from accel.nn.adaptive_cell import AdaptiveCell
from accel.zoo.sequence_tasks import parity

CELLS = {"RNN": nn.RNNCell, "GRU": nn.GRUCell, "LSTM": nn.LSTMCell}


def cell_of(kind: str, config, **options) -> AdaptiveCell:
    torch.manual_seed(0)
    made = AdaptiveCell(CELLS[kind](4, 6), config, max_steps=5, **options).eval()
    nn.init.normal_(made.halting.linear.weight, std=3.0)
    nn.init.constant_(made.halting.linear.bias, -0.5)
    return made


def first(state):
    return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", CELLS)
def test_fixed_repeats_are_the_cell_applied_so_often(kind):
    torch.manual_seed(0)
    cell = CELLS[kind](4, 6)
    sequence = torch.randn(3, 2, 4)
    y, state, out = AdaptiveCell(cell, FixedRepeats(2))(sequence)
    expected, outputs = None, []
    for x in sequence:
        for _ in range(2):
            expected = cell(x, expected)
        outputs.append(first(expected))
    assert torch.equal(y, torch.stack(outputs)) and torch.equal(first(state), first(expected))
    assert (out.num_steps == 2).all() and out.num_steps.shape == (3, 2) and float(accel.ponder_loss(out)) == 0


@pytest.fixture(params=[(kind, config) for config in (ACT(), PACT()) for kind in CELLS], ids=str)
def ran(request):
    """(a cell, a sequence, what the cell gives for it) of every kind that halts."""
    made, sequence = cell_of(*request.param), torch.randn(4, 7, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return made, sequence, made(sequence)


def test_written_out(ran):
    """One sample at a time: ACT's weighted sum of the states, PACT's state after the step that halts."""
    made, sequence, (y, state, out) = ran
    with torch.no_grad():
        for n in range(7):
            before = None
            for t in range(4):
                after, total, left, number = before, 0, 1.0, 0
                while True:
                    number += 1
                    after = made.cell(sequence[t, n : n + 1], after)
                    parts = after if isinstance(after, tuple) else (after,)
                    h = float(made.halting(parts[0]))
                    if isinstance(made.config, PACT):
                        weight, goes = 1.0, h <= 0.5 and number < 5
                        total = parts
                    else:
                        goes = left - h > 0.01 and number < 5
                        weight = h if goes else left
                        total = [s + weight * p for s, p in zip(total or [0] * len(parts), parts)]
                        left -= weight
                    if not goes:
                        break
                before = tuple(total) if isinstance(after, tuple) else total[0]
                assert out.num_steps[t, n] == number
                torch.testing.assert_close(y[t, n : n + 1], total[0])
        torch.testing.assert_close(first(state), y[-1])
    assert out.num_steps.unique().numel() > 1
    assert torch.equal(out.stages[0].executed_macs, out.num_steps[0].long() * made.macs)
    assert out.stages[0].halting_distribution.shape == (7, 5)


def test_samples_that_halted_are_left_out(ran):
    """What the full batch gives with gradients recorded, where every sample runs to the end."""
    made, sequence, (y, _, out) = ran
    with accel.evaluate_as(made, "thresholded") if isinstance(made.config, PACT) else torch.enable_grad():
        full, _, dense = made(sequence)
    torch.testing.assert_close(y, full.detach())
    assert torch.equal(out.num_steps, dense.num_steps)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("config", [ACT(), PACT(), FixedRepeats(2)], ids=["ACT", "PACT", "fixed"])
@pytest.mark.parametrize("given", [False, True])
def test_packed_sequences(kind, config, given):
    made = AdaptiveCell(CELLS[kind](4, 6), config, max_steps=4).eval()
    lengths = [2, 5, 1, 5]
    sequence = torch.randn(5, 4, 4)
    start = (torch.randn(4, 6), torch.randn(4, 6)) if kind == "LSTM" else torch.randn(4, 6)
    start = start if given else None
    with torch.no_grad():
        packed = pack_padded_sequence(sequence, torch.tensor(lengths), enforce_sorted=False)
        y, state, out = made(packed, start)
        y, _ = pad_packed_sequence(y)
        for n, length in enumerate(lengths):
            alone = None if start is None else made_part(start, n)
            expected, last, _ = made(sequence[:length, n : n + 1], alone)
            torch.testing.assert_close(y[:length, n : n + 1], expected)
            torch.testing.assert_close(first(state)[n : n + 1], first(last))
            if kind == "LSTM":
                torch.testing.assert_close(state[1][n : n + 1], last[1])
    assert (out.num_steps > 0).sum() == sum(lengths)


def made_part(state, n):
    return tuple(part[n : n + 1] for part in state) if isinstance(state, tuple) else state[n : n + 1]


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("config", [ACT(), PACT(), FixedRepeats(2)], ids=["ACT", "PACT", "fixed"])
def test_a_cell_moves_like_any_module(kind, config):
    made = AdaptiveCell(CELLS[kind](4, 6), config).double().to("cpu")
    assert all(parameter.dtype is torch.float64 for parameter in made.parameters())
    assert made(torch.randn(3, 2, 4, dtype=torch.float64))[0].dtype is torch.float64


@pytest.mark.parametrize("kind", CELLS)
def test_relaxed_steps_weigh_the_states(kind):
    made, sequence = cell_of(kind, PACT(tau=0.1)).train(), torch.randn(3, 4, 4)
    y, _, out = made(sequence)
    (y.square().sum() + accel.ponder_loss(out)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters())
    weights = out.stages[0].halting_distribution
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    torch.testing.assert_close(out.ponder_cost[0], (weights * torch.arange(1, 6)).sum(1))


@pytest.mark.parametrize("estimator", [ScoreFunction(LeaveOneOut()), DisARM()], ids=["leave one out", "DisARM"])
def test_expected_loss_of_a_network_with_a_cell(estimator):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell_of("GRU", PACT(tau=0.1, estimator=estimator))
            self.linear = nn.Linear(6, 2)

        def forward(self, x):
            y, _, _ = self.cell(x.transpose(0, 1))
            return self.linear(y[-1])

    net, labels = Reader(), torch.tensor([0, 1, 0, 1])
    loss = accel.expected_loss(
        net, torch.randn(4, 3, 4), lambda logits: F.cross_entropy(logits, labels, reduction="none")
    )
    loss.backward()
    assert float(loss.detach()) > 0.3  # three steps of time at the price of at least 0.1
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.parametrize("estimator", [MeasureValued(), DisARM()], ids=["measure-valued", "DisARM"])
def test_estimators_follow_the_decisions_over_several_steps_of_time(estimator):
    """In evaluation too, where one sample that halted early may not shift the decisions of the next step of time."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell_of("RNN", PACT(tau=0.1, estimator=estimator, spatial=False))

        def forward(self, x):
            return self.cell(x.transpose(0, 1))[0][-1]

    def gradient(training: bool, seed: int) -> torch.Tensor:
        net, x = Last().train(training), torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))
        loss = accel.expected_loss(net, x, lambda y: (y.sum(1) - 1) ** 2, generator=torch.Generator().manual_seed(seed))
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(net.parameters()))])

    for seed in range(6):
        torch.testing.assert_close(gradient(False, seed), gradient(True, seed))


@pytest.mark.parametrize("kind", CELLS)
def test_training_stops_where_every_sample_has_halted(kind):
    """What comes after weighs nothing in ACT: values and gradients are those of all steps."""
    found = []
    for bias in (0.0, 50.0):  # the second: the head of no step says anything but 1
        made, calls = cell_of(kind, ACT(tau=0.1)).train(), []
        made.cell.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        nn.init.constant_(made.halting.linear.bias, bias)
        y, _, out = made(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1)))
        (y.square().sum() + accel.ponder_loss(out)).backward()
        assert len(calls) == sum(int(stage.num_units.max()) for stage in out.stages)
        found.append(len(calls))
    assert found[1] == 3 < found[0]


def test_parity_of_few_bits_is_learnt():
    torch.manual_seed(0)
    made = AdaptiveCell(nn.RNNCell(5, 32), ACT(tau=0.001), max_steps=6, flag=True)
    linear, generator = nn.Linear(32, 2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([*made.parameters(), *linear.parameters()], lr=0.01)
    for _ in range(400):
        x, labels = parity(128, 4, generator=generator)
        y, _, out = made(x)
        loss = F.cross_entropy(linear(y[-1]), labels) + accel.ponder_loss(out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, labels = parity(1000, 4, generator=generator)
    with torch.no_grad():
        right = linear(made.eval()(x)[0][-1]).argmax(1) == labels
    assert right.float().mean() > 0.95


class Growing(nn.Module):
    hidden_size = 3

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x, state):
        new = self.linear(x)
        return new if state is None else torch.cat((state, new), 1)


@pytest.mark.parametrize("config", [ACT(), PACT()], ids=["ACT", "PACT"])
def test_a_cell_that_changes_the_shape_of_its_state_is_refused(config):
    with pytest.raises(ConversionError, match=r"Growing got a state of \[\(4, 3\)\] and gave one of \[\(4, 6\)\]"):
        AdaptiveCell(Growing(), config)(torch.randn(2, 4, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveCell(nn.GRUCell(2, 3), SACT()), "a cell takes ACT, PACT or FixedRepeats, got SACT"),
        (lambda: AdaptiveCell(nn.GRUCell(2, 3), ACT(target=0.5)), "target is a share of a network's MACs"),
        (lambda: AdaptiveCell(nn.GRUCell(2, 3), ACT(), max_steps=1), "max_steps must be at least 2"),
        (lambda: AdaptiveCell(nn.Linear(2, 3), ACT()), "Linear has no hidden_size"),
        (lambda: FixedRepeats(0), "repeats must be an integer of at least 1"),
        (lambda: PACT(tau=float("-inf")), "tau is the weight"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
