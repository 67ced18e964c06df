"""Networks for the sequence tasks: a recurrent cell that may repeat its steps, and a readout at every step of time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from accel.config import ACT, PACT, FixedRepeats
from accel.errors import ConfigError
from accel.nn.adaptive_cell import AdaptiveCell, CellOutput
from accel.zoo.sequence_tasks import Examples

CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


class SequenceNet(nn.Module):
    """[N, T, features] -> CellOutput, whose logits are [N, T, answers, classes].

    Args:
        features, answers, classes: of the task.
        config: how the cell repeats.
        kind: of the cell: "rnn" (tanh), "gru" or "lstm".
        hidden: its width.
        max_steps, flag: see `AdaptiveCell`.

    Raises:
        ConfigError: an unknown kind of cell, or what `AdaptiveCell` refuses.
    """

    def __init__(
        self,
        features: int,
        answers: int,
        classes: int,
        config: ACT | PACT | FixedRepeats,
        *,
        kind: str,
        hidden: int,
        max_steps: int = 10,
        flag: bool = True,
    ) -> None:
        super().__init__()
        if kind not in CELLS:
            raise ConfigError(f"no cell is called {kind!r}: known are {', '.join(CELLS)}")
        cell = CELLS[kind](features + flag, hidden)
        self.cell = AdaptiveCell(cell, config, max_steps=max_steps, flag=flag)
        self.readout = nn.Linear(hidden, answers * classes)
        self.classes = classes
        _start(cell, self.readout)

    def forward(self, x: Tensor) -> CellOutput:
        y, _, out = self.cell(x.transpose(0, 1))
        logits = self.readout(y.transpose(0, 1))
        return dataclasses.replace(out, logits=logits.unflatten(2, (-1, self.classes)))


@torch.no_grad()
def _start(cell: nn.RNNCellBase, readout: nn.Linear) -> None:
    """Glorot's weights, the cell's as one matrix, biases of 0, forget gates open by 1: those of the papers' TensorFlow.

    Torch's own are half as large, and parity was not learnt from them in time.
    """
    rows, columns = cell.weight_ih.shape[0], cell.weight_ih.shape[1] + cell.hidden_size
    bound = math.sqrt(6 / (rows + columns))
    for weight in (cell.weight_ih, cell.weight_hh):
        weight.uniform_(-bound, bound)
    nn.init.xavier_uniform_(readout.weight)
    for bias in (cell.bias_ih, cell.bias_hh, readout.bias):
        bias.zero_()
    if isinstance(cell, nn.LSTMCell):
        cell.bias_ih[cell.hidden_size : 2 * cell.hidden_size] = 1


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """bool [N, T]: whether all answers of a step are the labels."""
    return (logits.argmax(-1) == labels).all(-1)


@torch.inference_mode()
def judge(net: SequenceNet, draw: Callable[[int], Examples], count: int, batch: int = 1000) -> dict[str, float]:
    """What a network in evaluation reaches on `count` examples, drawn `batch` at a time.

    Returns:
        accuracy, the share of steps with all answers right; repeats, the mean of how often the cell was applied;
        ponder, the mean ponder cost; and, where it is not always as often, correlation, Spearman's of the repeats with
        the difficulty of the step.
    """
    right, repeats, ponder, difficulty = [], [], [], []
    for start in range(0, count, batch):
        examples = draw(min(batch, count - start))
        device = net.readout.weight.device
        out = net(examples.x.to(device))
        right.append(is_right(out.logits.cpu(), examples.labels))
        repeats.append(out.num_steps.t().cpu())
        ponder.append(out.ponder_cost.t().cpu())
        difficulty.append(examples.difficulty)
    number, hard = torch.cat(repeats), torch.cat(difficulty)
    means = {"accuracy": right, "repeats": repeats, "ponder": ponder}
    found = {name: float(torch.cat(parts).double().mean()) for name, parts in means.items()}
    if number.min() < number.max():
        from scipy.stats import spearmanr

        found["correlation"] = float(spearmanr(number.flatten(), hard.flatten()).statistic)
    return found
