"""The sequence tasks, solved by plain arithmetic from what the networks see."""

import pytest
import torch

from accel.errors import ConfigError
from accel.zoo.sequence_tasks import BLANK, GATES, addition, logic, parity


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("prefix", [False, True])
def test_parity(prefix):
    x, labels = parity(500, 16, prefix, generator=generator())
    assert x.shape == (1, 500, 16) and x.dtype is torch.float32 and set(x.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal((x[0] == 1).sum(1) % 2, labels) and 150 < int(labels.sum()) < 350
    assert torch.equal((x[0] != 0).sum(1).unique(), torch.arange(1, 17))
    gaps = (x[0, :, :-1] == 0) & (x[0, :, 1:] != 0)
    assert gaps.any() == (not prefix)


def test_logic():
    x, labels, number = logic(200, 4, 3, generator=generator())
    assert x.shape == (4, 200, 32) and number.unique().tolist() == [1, 2, 3]
    for n in range(200):
        answer = int(x[0, n, 0])
        for t in range(4):
            assert t == 0 or x[t, n, 0] == 0
            results = [answer, int(x[t, n, 1])]
            for gate in x[t, n, 2:].view(3, 10):
                if gate.sum():
                    results.append(int(GATES[int(gate.argmax()), 2 * results[-2] + results[-1]]))
            assert len(results) == 2 + number[t, n]
            answer = results[-1]
            assert answer == labels[t, n]


@pytest.mark.parametrize(("steps", "digits"), [(3, 2), (9, 1)])
def test_addition(steps, digits):
    x, labels, number = addition(100, steps, digits, generator=generator())
    for n in range(100):
        total = 0
        for t in range(steps):
            shown = x[t, n].view(digits, 10)
            assert int(shown.sum()) == number[t, n]
            total += sum(int(d.argmax()) * 10**place for place, d in enumerate(shown.flip(0)) if d.sum())
            written = "".join(str(d) for d in labels[t, n].tolist() if d != BLANK)
            assert written == str(total)


def test_bad_sizes():
    with pytest.raises(ConfigError, match="length must be an integer of at least 1, got 0"):
        parity(3, 0)
    with pytest.raises(ConfigError, match="at most 9 steps"):
        addition(3, 10)
