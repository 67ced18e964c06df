"""Impact maps against closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate
from accel.errors import DataError
from accel.impact import default_loss, impact_maps
from accel.inputs import Batch


def image(batch=3, size=6, seed=1):
    return torch.randn(batch, 2, size, size, generator=torch.Generator().manual_seed(seed))


def conv(seed=0, out=4):
    torch.manual_seed(seed)
    return nn.Conv2d(2, out, 3, padding=1)


def test_on_a_linear_loss_the_estimate_is_the_change():
    model, g = nn.Sequential(conv()), image(1)[0, :1].repeat(4, 1, 1)
    found = impact_maps(model, {"0": model[0]}, [image()], lambda outputs, _: (outputs * g).sum())["0"]
    value = model(image()).detach()
    exact = torch.zeros(6, 6)
    for y in range(6):
        for x in range(6):
            channels = (g[:, y, x] * value[:, :, y, x]).abs()  # what zeroing each channel of the position changes
            exact[y, x] = channels.sum() / 3
    torch.testing.assert_close(found, exact)


def test_the_output_before_an_in_place_activation_is_meant():
    layer = conv()
    inplace, plain = (nn.Sequential(layer, nn.ReLU(inplace=flag)) for flag in (True, False))
    loss = lambda outputs, _: outputs.square().sum()  # noqa: E731
    found = [impact_maps(model, {"0": layer}, [image()], loss)["0"] for model in (inplace, plain)]
    value = layer(image()).detach()
    torch.testing.assert_close(found[0], (2 * value.relu() * value).abs().sum((0, 1)) / 3)
    torch.testing.assert_close(found[0], found[1])


def test_invariant_to_channel_signs_and_to_batching():
    first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
    model = nn.Sequential(first, second)
    loss = lambda outputs, _: outputs.mean((1, 2, 3)).exp().sum()  # noqa: E731
    before = impact_maps(model, {"0": first}, [image()], loss)["0"]
    with torch.no_grad():
        first.weight[1].neg_(), first.bias[1].neg_(), second.weight[:, 1].neg_()
    torch.testing.assert_close(impact_maps(model, {"0": first}, [image()], loss)["0"], before)
    one_by_one = impact_maps(model, {"0": first}, list(image().split(1)), loss)["0"]
    torch.testing.assert_close(one_by_one, before)
    assert before.min() >= 0


def test_dropout_is_off_and_nothing_of_the_model_changes():
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    first, again = (impact_maps(model, {"0": model[0]}, [image()])["0"] for _ in range(2))
    assert torch.equal(first, again) and first.sum() > 0
    assert model.training and model[2].training and model[1].num_batches_tracked == 0
    assert not model[0]._forward_hooks and all(p.grad is None for p in model.parameters())


def test_labels_give_cross_entropy_and_other_outputs_a_projection():
    logits, labels = torch.randn(3, 5), torch.tensor([0, 4, 2])
    expected = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(default_loss(logits, Batch((image(),), rest=(labels,))), expected)
    map_loss = default_loss({"a": torch.ones(2, 1, 4, 4), "steps": torch.tensor([3])}, Batch((image(),)))
    assert map_loss == default_loss([torch.ones(2, 1, 4, 4)], Batch((image(),), rest=(labels,)))
    assert map_loss.abs() <= 32 and map_loss % 2 == 0


def test_pictures_of_several_sizes_and_unreached_layers_are_refused():
    model, aside = nn.Sequential(conv()), conv()
    with pytest.raises(DataError, match=r"layer '0' has outputs of \(6, 6\) and \(8, 8\)"):
        impact_maps(model, {"0": model[0]}, [image(), image(size=8)])
    with pytest.raises(DataError, match="never reaches layer 'aside'"):
        impact_maps(model, {"aside": aside}, [image()])


def test_iterative_impact_is_measured_on_the_network_perforated_so_far():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).eval()
    data, half = [image(), image(seed=2)], {"0": Perforate(keep=0.5, mask="lattice")}
    loss = lambda outputs, _: outputs.square().sum()  # noqa: E731
    static, iterative = (
        accel.convert_model(
            model, half | {"2": Perforate(keep=0.5, mask=mask)}, example_inputs=image(), calibration=data, loss=loss
        )[2]
        for mask in ("impact", "iterative_impact")
    )
    partial = accel.convert_model(model, half | {"2": None}, example_inputs=image())
    expected = impact_maps(partial, {"2": partial[2]}, data, loss)["2"]
    torch.testing.assert_close(iterative.impact, expected)
    torch.testing.assert_close(static.impact, impact_maps(model, {"2": model[2]}, data, loss)["2"])
    assert not torch.allclose(static.impact, iterative.impact, rtol=1e-2)
    kept, rest = iterative.position_set(6, 6).positions.long(), torch.ones(36, dtype=torch.bool)
    rest[kept] = False
    assert expected.flatten()[kept].min() >= expected.flatten()[rest].max()


def test_the_first_layer_has_one_impact_however_it_is_measured():
    model = nn.Sequential(conv()).eval()
    maps = [
        accel.convert_model(model, Perforate(keep=0.5, mask=mask), example_inputs=image(), calibration=[image()])[0]
        for mask in ("impact", "iterative_impact")
    ]
    assert torch.equal(maps[0].impact, maps[1].impact)


def test_layers_in_eight_bits_have_the_iterative_impact_of_those_in_fp32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).eval()
    maps = []
    for precision in ("fp32", "int8"):
        config = Perforate(keep=0.5, mask="iterative_impact", precision=precision)
        fast = accel.convert_model(model, config, example_inputs=image(), calibration=[image()])
        maps.append((fast[0].impact, fast[2].impact))
    assert all(map(torch.equal, *maps))
