"""Networks of the sequence tasks: their outputs, and what is said of them."""

import types

import pytest
import torch
from torch import nn

import accel
from accel.config import ACT, PACT, FixedRepeats
from accel.errors import ConfigError
from accel.zoo.sequence_nets import SequenceNet, judge
from accel.zoo.sequence_tasks import CLASSES, draw


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("task", "options", "shapes"),
    [
        ("parity", {"length": 5}, [(7, 1, 5), (7, 1, 1), (7, 1)]),
        ("logic", {"steps": 4, "gates": 2}, [(7, 4, 22), (7, 4, 1), (7, 4)]),
        ("addition", {"steps": 3, "digits": 2}, [(7, 3, 20), (7, 3, 3), (7, 3)]),
    ],
)
@pytest.mark.parametrize("config", [ACT(), PACT(), FixedRepeats(2)], ids=["ACT", "PACT", "fixed"])
def test_every_task_has_a_network(task, options, shapes, config):
    examples = draw(task, 7, options, generator=generator())
    assert [tuple(part.shape) for part in examples] == shapes
    sizes = shapes[0][2], shapes[1][2], CLASSES[task]
    net = SequenceNet(*sizes, config, kind="gru", hidden=6, max_steps=3)
    out = net(examples.x)
    assert out.logits.shape == (*shapes[1], CLASSES[task]) and out.num_steps.shape == (shapes[2][1], 7)
    (out.logits.square().mean() + accel.ponder_loss(out)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_the_difficulty_is_that_of_the_task():
    x, labels, difficulty = draw("parity", 50, {"length": 6, "prefix": True}, generator=generator())
    assert torch.equal((x[:, 0] != 0).sum(1), difficulty[:, 0])
    assert torch.equal((x[:, 0] == 1).sum(1) % 2, labels[:, 0, 0])
    x, _, difficulty = draw("addition", 50, {"steps": 2, "digits": 3}, generator=generator())
    assert torch.equal(x.sum(2).long(), difficulty)


class Known(nn.Module):
    """Says the sum of a step's features, and takes as many repeats as it is told."""

    def __init__(self, repeats):
        super().__init__()
        self.readout, self.repeats = nn.Linear(1, 1), repeats

    def forward(self, x):
        number = self.repeats(x.sum(2))
        logits = nn.functional.one_hot((x == 1).sum(2) % 2, 2).float()[:, :, None]
        return types.SimpleNamespace(logits=logits, num_steps=number.t(), ponder_cost=number.t() + 0.5)


def test_what_is_said_of_known_networks():
    def examples(count):
        return draw("parity", count, {"length": 6}, generator=generator())

    found = judge(Known(lambda total: torch.full_like(total, 2).int()), examples, 40, batch=30)
    assert found == {"accuracy": 1.0, "repeats": 2.0, "ponder": 2.5}  # nothing is ranked where nothing differs
    follows = judge(Known(lambda total: examples(40).difficulty.int()), examples, 40, batch=40)
    assert follows["correlation"] == pytest.approx(1.0) and follows["repeats"] > 2
    wrong = judge(Known(lambda total: total.int()), lambda n: examples(n)._replace(labels=1 - examples(n).labels), 40)
    assert wrong["accuracy"] == 0.0


def test_bad_names_and_options():
    with pytest.raises(ConfigError, match="no task of sequences is called 'sorting': known are parity, logic, addi"):
        draw("sorting", 1)
    with pytest.raises(ConfigError, match="the task parity has no such option"):
        draw("parity", 1, {"digits": 2})
    with pytest.raises(ConfigError, match="no cell is called 'tanh': known are rnn, gru, lstm"):
        SequenceNet(1, 1, 2, ACT(), kind="tanh", hidden=2)
