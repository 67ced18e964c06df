"""active_positions on every backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from accel.ops import active_positions


def random_mask(n: int, height: int, width: int, share: float) -> torch.Tensor:
    return torch.rand(n, height, width, generator=torch.Generator().manual_seed(0)) < share


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 1, 63), (2, 23, 29)])
@pytest.mark.parametrize("dilate", [0, 1, 2])
def test_positions_and_counts(backend, needs, device, shape, share, dilate):
    needs("active_positions", "active_positions")
    mask = random_mask(*shape, share)
    window = 2 * dilate + 1
    dilated = F.max_pool2d(mask.float()[:, None], window, 1, dilate)[:, 0].bool()
    active = active_positions(mask.to(device), dilate=dilate)
    total = active.total
    assert active.positions.dtype is active.counts.dtype is torch.int32
    assert torch.equal(active.positions[:total].cpu().long(), dilated.flatten().nonzero().flatten())
    assert (active.positions[total:] == -1).all()
    assert torch.equal(active.counts.cpu().long(), dilated.flatten(1).sum(1))
    assert (active.batch, active.height, active.width) == shape


def test_one_image_empty_and_a_strided_mask(backend, needs, device):
    needs("active_positions", "active_positions")
    mask = random_mask(3, 5, 8, 0.5).to(device)
    mask[1] = False
    active = active_positions(mask[:, :, ::2])
    assert active.counts[1] == 0
    expected = mask[:, :, ::2].flatten().nonzero().flatten()
    assert torch.equal(active.positions[: active.total].long(), expected)


def test_no_image_at_all(backend, needs, device):
    needs("active_positions", "active_positions")
    active = active_positions(torch.zeros(0, 4, 4, dtype=torch.bool, device=device), dilate=1)
    assert active.total == 0 and active.counts.shape == (0,)


@pytest.mark.parametrize("dilate", [0, 1])
def test_opcheck(dilate):
    op = torch.ops.accel.active_positions.default
    results = torch.library.opcheck(op, (random_mask(3, 7, 5, 0.5), dilate))
    assert set(results.values()) == {"SUCCESS"}


def test_compiled_capacity_is_the_whole_map():
    """A compiled graph cannot depend on the count: the positions keep their tail of -1."""
    mask = random_mask(3, 7, 5, 0.5)
    run = torch.compile(lambda mask: active_positions(mask).positions + 0, fullgraph=True, backend="aot_eager")
    positions = run(mask)
    assert positions.shape == (105,)
    assert torch.equal(positions[positions >= 0], active_positions(mask).positions)


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="mask must be bool, got"):
        active_positions(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match=r"mask must be \[N, H, W\]"):
        active_positions(torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="dilate must be 0 or more"):
        active_positions(torch.zeros(1, 2, 2, dtype=torch.bool), dilate=-1)
