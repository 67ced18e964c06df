"""select_positions on every backend."""

from __future__ import annotations

import pytest
import torch

from accel.ops import select_positions


def by_hand(score: torch.Tensor, budget: int) -> list[int]:
    """Sort (-score, index) pairs in Python."""
    chosen = []
    for n, image in enumerate(score.flatten(1).tolist()):
        order = sorted(range(len(image)), key=lambda i: (-image[i], i))
        chosen += sorted(n * len(image) + i for i in order[:budget])
    return chosen


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 1, 63), (2, 17, 19)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("levels", [3, 10**6], ids=["many ties", "few ties"])
def test_highest_scores_ties_to_the_lower_index(backend, needs, device, shape, share, levels):
    needs("select_positions", "select_positions")
    score = torch.randint(-levels, levels, shape, generator=torch.Generator().manual_seed(0)).float() / levels
    budget = int(share * shape[1] * shape[2])
    active = select_positions(score.to(device), budget)
    assert active.positions.tolist() == by_hand(score, budget)
    assert active.counts.tolist() == [budget] * shape[0]
    assert active.positions.dtype is active.counts.dtype is torch.int32


def test_infinities_and_signed_zeros_are_ordered(backend, needs, device):
    needs("select_positions", "select_positions")
    score = torch.tensor([[[0.0, -0.0, float("inf"), -1.0, float("-inf"), 0.0]]], device=device)
    assert select_positions(score, 3).positions.tolist() == [0, 1, 2]
    assert select_positions(score, 5).positions.tolist() == [0, 1, 2, 3, 5]


def test_opcheck():
    score = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0))
    results = torch.library.opcheck(torch.ops.accel.select_positions.default, (score, 11))
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_as_one_graph():
    score = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    run = torch.compile(lambda s: select_positions(s * 2, 11).positions + 0, fullgraph=True, backend="aot_eager")
    assert run(score).tolist() == by_hand(score.detach(), 11)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="takes a budget of 0 to 6, got 7"):
        select_positions(torch.zeros(1, 2, 3), 7)
    with pytest.raises(ValueError, match=r"score must be \[N, H, W\]"):
        select_positions(torch.zeros(2, 3), 1)
    with pytest.raises(TypeError, match="score must be floating"):
        select_positions(torch.zeros(1, 2, 3, dtype=torch.int32), 1)
