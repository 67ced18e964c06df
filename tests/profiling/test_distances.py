"""Distances of outputs: of one call in every kind of container, and over a set of pictures."""

import collections

import pytest
import torch
import torch.nn.functional as F

from accel.profiling.distances import Fidelity, divergence, relative_norm, relative_norms
from accel.running import first_tensor, output_tensors


class Output(collections.UserDict):
    """A mapping that torch's pytree takes for a leaf."""


def test_relative_norms_of_nested_outputs():
    x = torch.ones(2, 2)
    assert relative_norms({"a": [1.5 * x, 3], "b": x}, {"a": [x, 3], "b": x}) == [0.5, 0.0]
    with pytest.raises(ValueError, match="outputs of shapes"):
        relative_norms((x, x), (x,))
    with pytest.raises(ValueError, match="outputs of shapes"):
        relative_norms(3, 3)


def test_what_is_no_number_never_passes():
    x = torch.ones(2, 2)
    assert relative_norm(x * 0, x * 0) == 0
    for got, expected in ((x, x * 0), (x * float("nan"), x), (x, x * float("nan")), (x, x * float("inf"))):
        assert relative_norm(got, expected) == float("inf")


def test_tensors_are_found_in_containers_of_any_kind():
    x, y = torch.zeros(1), torch.ones(1)
    for outputs in ((x, [y]), {"b": x, "a": y}, Output(b=x, a=[y]), ["name", Output(b=(x, None)), {y: 1}.keys()]):
        assert [float(tensor) for tensor in output_tensors(outputs)] == [0, 1]
    assert first_tensor(Output(a="words", b=y)) is y


def test_one_column_is_no_distribution():
    ours, target = torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0], [1.0]])
    assert divergence(ours, target, F.l1_loss) == 1
    wide = torch.tensor([[2.0, 0.0]])
    assert float(divergence(wide, -wide, F.l1_loss)) == pytest.approx(2 * (2 / (1 + torch.e**-2) - 1), rel=1e-5)
    judged = Fidelity()
    judged.add(target, ours)
    assert judged.summary() == {"pictures": 2, "mean_abs_difference": 1.0}


def test_fidelity_of_maps_and_classes():
    maps = Fidelity()
    maps.add(torch.tensor([[[[0.9, 0.1], [0.6, 0.4]]]]), torch.tensor([[[[0.7, 0.1], [0.4, 0.8]]]]))
    assert maps.summary() == {
        "pictures": 1,
        "mean_abs_difference": pytest.approx(0.2),
        "iou_at_0.5": pytest.approx(1 / 3),
    }
    classes = Fidelity()
    classes.add(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([[9.0, 0.0], [9.0, 0.0]]))
    assert classes.summary()["top1_agreement"] == 0.5
    assert classes.summary()["mean_abs_difference"] == pytest.approx(0.5, abs=1e-3)
