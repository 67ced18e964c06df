"""local_deviation on every backend, against the definition."""

from __future__ import annotations

import pytest
import torch

from accel.ops import local_deviation


def by_hand(x: torch.Tensor) -> torch.Tensor:
    """The definition, pixel by pixel."""
    batch, _, height, width = x.shape
    out = torch.zeros(batch, height, width, dtype=x.dtype)
    for y in range(height):
        for at in range(width):
            around = [(y - 1, at), (y + 1, at), (y, at - 1), (y, at + 1)]
            around = [x[:, :, v, u] for v, u in around if 0 <= v < height and 0 <= u < width]
            if around:
                out[:, y, at] = (x[:, :, y, at] - torch.stack(around).mean(0)).abs().sum(1)
    return out


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 5), (2, 16, 7, 6), (1, 35, 4, 9), (3, 64, 5, 1)])
def test_the_definition(backend, needs, device, shape):
    needs("local_deviation", "local_deviation")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for given in (x, x.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(
            local_deviation(given.to(device), 40).cpu(), by_hand(x[:, :40]), rtol=1e-5, atol=1e-5
        )


def test_a_flat_map_deviates_nowhere():
    assert not local_deviation(torch.full((2, 8, 5, 5), 3.0)).any()


def test_opcheck_and_compilation():
    x = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    results = torch.library.opcheck(torch.ops.accel.local_deviation.default, (x.detach(), 2))
    assert set(results.values()) == {"SUCCESS"}
    run = torch.compile(lambda x: local_deviation(x * 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(run(x), local_deviation(x * 2))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\]"):
        local_deviation(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="channels must be at least 1"):
        local_deviation(torch.zeros(1, 2, 3, 4), 0)
    with pytest.raises(TypeError, match="must be floating"):
        local_deviation(torch.zeros(1, 2, 3, 4, dtype=torch.int32))
