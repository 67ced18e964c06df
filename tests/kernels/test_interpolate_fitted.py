"""interpolate with fitted weights: the reference against hand-made sums, its gradients, and the op's registration."""

import pytest
import torch

from accel import ops
from accel.kernels.positions import Neighbors, PositionSet


def drawn_problem(height=5, width=7, kept=12, taps=3, classes=2, channels=3, batch=2, dtype=torch.float64, seed=0):
    """(rows, positions, neighbors, weights, constant) with everything drawn, classes of uneven length."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(height * width, generator=generator).to(torch.int32)
    computed, skipped = order[:kept].contiguous(), order[kept:].contiguous()
    nearest = torch.randint(kept, (height * width,), generator=generator, dtype=torch.int32)
    cuts = torch.randint(len(skipped) + 1, (classes - 1,), generator=generator).sort().values
    starts = torch.cat([torch.tensor([0]), cuts, torch.tensor([len(skipped)])]).to(torch.int32)
    chosen = torch.randint(kept, (len(skipped), taps), generator=generator, dtype=torch.int32)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    positions = PositionSet(computed, nearest, height, width)
    rows = draw(batch * kept, channels)
    return rows, positions, Neighbors(skipped, chosen, starts), draw(classes, taps, channels), draw(classes, channels)


def by_hand(rows, positions, neighbors, weights, constant):
    """The definition, one number at a time."""
    kept, channels = len(positions), rows.shape[1]
    batch = len(rows) // kept
    out = torch.full((batch, channels, positions.height * positions.width), float("nan"), dtype=rows.dtype)
    ends = neighbors.starts.tolist()
    for n in range(batch):
        for p, where in enumerate(positions.positions.tolist()):
            out[n, :, where] = rows[n * kept + p]
        for k in range(neighbors.classes):
            for f in range(ends[k], ends[k + 1]):
                total = constant[k].clone()
                for t, row in enumerate(neighbors.rows[f].tolist()):
                    total += weights[k, t] * rows[n * kept + row]
                out[n, :, neighbors.skipped[f]] = total
    return out.view(batch, channels, positions.height, positions.width)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_definition(classes):
    problem = drawn_problem(classes=classes)
    out = ops.interpolate(*problem)
    torch.testing.assert_close(out, by_hand(*problem))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_activation_comes_last():
    problem = drawn_problem()
    for activation, function in (("relu", torch.relu), ("hardswish", torch.nn.functional.hardswish)):
        torch.testing.assert_close(ops.interpolate(*problem, activation=activation), function(by_hand(*problem)))


def test_one_neighbor_of_weight_one_is_the_nearest_map():
    rows, positions, neighbors, _, _ = drawn_problem()
    stand_in = positions.nearest.clone()
    stand_in[positions.positions.long()] = torch.arange(len(positions), dtype=torch.int32)
    positions = PositionSet(positions.positions, stand_in, positions.height, positions.width)
    neighbors = Neighbors(
        neighbors.skipped,
        stand_in[neighbors.skipped.long()][:, None],
        torch.tensor([0, len(neighbors.skipped)], dtype=torch.int32),
    )
    one, zero = rows.new_ones(1, 1, rows.shape[1]), rows.new_zeros(1, rows.shape[1])
    torch.testing.assert_close(ops.interpolate(rows, positions, neighbors, one, zero), ops.interpolate(rows, positions))
    residual = torch.randn(2, rows.shape[1], positions.height, positions.width, dtype=rows.dtype)
    summed = ops.interpolate(rows, positions, neighbors, one, zero, "relu", residual)
    torch.testing.assert_close(ops.interpolate(rows, positions, activation="relu", residual=residual), summed)


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_gradients_of_rows_weights_and_constant(activation):
    rows, positions, neighbors, weights, constant = drawn_problem(height=4, width=3, kept=5)
    residual = torch.randn(2, rows.shape[1], 4, 3, dtype=rows.dtype, generator=torch.Generator().manual_seed(1))

    def run(rows, weights, constant, residual):
        return ops.interpolate(rows, positions, neighbors, weights, constant, activation, residual)

    leaves = [tensor.requires_grad_() for tensor in (rows, weights, constant, residual)]
    assert torch.autograd.gradcheck(run, leaves)


def test_opcheck_and_full_graph_compilation():
    rows, positions, neighbors, weights, constant = drawn_problem(dtype=torch.float32)
    sets = (positions.positions, neighbors.skipped, neighbors.rows, neighbors.starts)
    arguments = (rows.requires_grad_(), *sets, weights, constant, 2, [5, 7], "relu")
    torch.library.opcheck(torch.ops.accel.interpolate_fitted.default, arguments)
    eager = ops.interpolate(rows, positions, neighbors, weights, constant)
    compiled = torch.compile(
        lambda *tensors: ops.interpolate(tensors[0], positions, neighbors, *tensors[1:]),
        backend="aot_eager",
        fullgraph=True,
    )
    torch.testing.assert_close(compiled(rows, weights, constant), eager)


def test_what_does_not_fit_is_named():
    rows, positions, neighbors, weights, constant = drawn_problem()
    with pytest.raises(ValueError, match="give all three or none"):
        ops.interpolate(rows, positions, neighbors, weights)
    with pytest.raises(ValueError, match="give all three or none"):
        ops.interpolate(rows, positions, weights=weights, constant=constant)
    with pytest.raises(ValueError, match="weights must have shape"):
        ops.interpolate(rows, positions, neighbors, weights[:, :1], constant)
    with pytest.raises(ValueError, match="residual must have shape"):
        ops.interpolate(rows, positions, neighbors, weights, constant, residual=rows)
    with pytest.raises(ValueError, match="do not make up"):
        ops.interpolate(rows, PositionSet.full(4, 3), neighbors, weights, constant)
    with pytest.raises(TypeError, match="float32"):
        ops.interpolate(rows, positions, neighbors, weights.float(), constant)
    with pytest.raises(ValueError, match="starts must rise"):
        Neighbors(neighbors.skipped, neighbors.rows, neighbors.starts.flip(0))
