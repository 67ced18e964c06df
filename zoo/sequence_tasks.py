"""Synthetic tasks of recurrent networks whose examples differ in how much computation they take.

Graves 2016, arXiv 1603.08983, section 3: parity, logic and addition, drawn as they are needed. Smaller addition (two or
three digits, short sequences) is learnt in minutes, the paper's takes days.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accel.errors import ConfigError

# Graves's ten gates as truth tables over (first, second) = 00, 01, 10, 11: NOR, second and not first, first and not
# second, XOR, NAND, AND, XNOR, first implies second, second implies first, OR
GATES = torch.tensor(
    [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 1, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 1],
        [1, 0, 0, 1],
        [1, 1, 0, 1],
        [1, 0, 1, 1],
        [0, 1, 1, 1],
    ],
    device="cpu",
)
BLANK = 10  # the class of a digit that is not there
CLASSES = {"parity": 2, "logic": 2, "addition": BLANK + 1}  # of an answer, by the name of the task


class Examples(NamedTuple):
    """Of any task: x float32 [N, T, features]; labels int64 [N, T, answers]; difficulty int64 [N, T]: of parity the
    entries that are not 0, of logic the gates, of addition the digits of the number."""

    x: Tensor
    labels: Tensor
    difficulty: Tensor


def draw(
    task: str, batch: int, options: Mapping[str, Any] | None = None, *, generator: torch.Generator | None = None
) -> Examples:
    """Examples of the task that is called so, `options` being its own: length, prefix; steps, gates; steps, digits.

    Raises:
        ConfigError: another task or option, or sizes that it cannot have.
    """
    if task not in CLASSES:
        raise ConfigError(f"no task of sequences is called {task!r}: known are {', '.join(CLASSES)}")
    try:
        found = {"parity": parity, "logic": logic, "addition": addition}[task](
            batch, **(options or {}), generator=generator
        )
    except TypeError as error:
        raise ConfigError(f"the task {task} has no such option: {error}") from error
    if task == "parity":
        x, labels, difficulty = found[0], found[1][None], (found[0] != 0).sum(2)
    else:
        x, labels, difficulty = found
    answers = labels if labels.dim() == 3 else labels[..., None]
    return Examples(x.transpose(0, 1), answers.transpose(0, 1), difficulty.t())


def parity(
    batch: int, length: int = 64, prefix: bool = False, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Vectors with 1 to `length` entries of -1 or 1, the others 0; is the number of ones odd?

    Args:
        prefix: whether these are the first entries, as the code of Fojo et al. (arXiv 1803.08165) has it, rather than
            entries anywhere.

    Returns:
        (x [1, batch, length], a sequence of one step; labels int64 [batch], 0 or 1).
    """
    _check(batch=batch, length=length)
    signs = torch.randint(0, 2, (batch, length), generator=generator, device="cpu") * 2 - 1
    filled = torch.randint(1, length + 1, (batch, 1), generator=generator, device="cpu")
    order = torch.arange(length, device="cpu")
    if not prefix:
        order = torch.rand(batch, length, generator=generator, device="cpu").argsort(1).argsort(1)
    x = torch.where(order < filled, signs, 0)
    return x.float()[None], (x == 1).sum(1) % 2


def logic(
    batch: int, steps: int = 5, gates: int = 10, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """At every step two bits, and 1 to `gates` gates applied one after the other to the last two results.

    The first gate takes the two bits; every further one the result before and the one before that. From the second step
    on, the first bit is the answer of the step before, and is shown as 0.

    Returns:
        (x [steps, batch, 2 + 10 * gates], the gates one-hot, zeros behind the last; labels int64 [steps, batch];
        number of gates int64 [steps, batch], the difficulty).
    """
    _check(batch=batch, steps=steps, gates=gates)
    bits = torch.randint(0, 2, (steps, batch, 2), generator=generator, device="cpu")
    chosen = torch.randint(0, len(GATES), (steps, batch, gates), generator=generator, device="cpu")
    number = torch.randint(1, gates + 1, (steps, batch), generator=generator, device="cpu")
    applied = torch.arange(gates, device="cpu") < number[..., None]
    labels = torch.zeros(steps, batch, dtype=torch.int64, device="cpu")
    answer = bits[0, :, 0]
    for t in range(steps):
        older, newer = answer, bits[t, :, 1]
        for g in range(gates):
            result = GATES[chosen[t, :, g], 2 * older + newer]
            runs = applied[t, :, g]
            older, newer = torch.where(runs, newer, older), torch.where(runs, result, newer)
        labels[t] = answer = newer
    bits[1:, :, 0] = 0
    kinds = torch.nn.functional.one_hot(chosen, len(GATES)) * applied[..., None]
    return torch.cat((bits, kinds.flatten(2)), 2).float(), labels, number


def addition(
    batch: int, steps: int = 3, digits: int = 2, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of 1 to `digits` digits, and after each the sum so far.

    Returns:
        (x [steps, batch, 10 * digits], the digits one-hot, most significant first, zeros where there is none; labels
        int64 [steps, batch, digits + 1] (for up to nine steps), from the most significant digit of the sum, 10 where it
        has none; digits of the numbers int64 [steps, batch]).
    """
    _check(batch=batch, steps=steps, digits=digits)
    if steps > 9:
        raise ConfigError(f"addition: the sum of {steps} numbers may need two digits more: give at most 9 steps")
    number = torch.randint(1, digits + 1, (steps, batch), generator=generator, device="cpu")
    drawn = torch.randint(0, 10, (steps, batch, digits), generator=generator, device="cpu")
    place = torch.arange(digits - 1, -1, -1, device="cpu")
    shown = place < number[..., None]
    x = torch.nn.functional.one_hot(drawn, 10) * shown[..., None]
    total = (drawn * shown * 10**place).sum(2).cumsum(0)
    places = torch.arange(digits, -1, -1, device="cpu")
    labels = total[..., None] // 10**places % 10
    blank = (total[..., None] < 10**places) & (places > 0)
    return x.flatten(2).float(), torch.where(blank, BLANK, labels), number


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
