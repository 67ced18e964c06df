"""plan_conversion, convert_model and revert_model: what they change, what they must not, and what they refuse."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn

import accel
from accel import Perforate, Rules
from accel.convert import perforated_layers
from accel.errors import ConfigError, ConversionError, DataError
from accel.nn.perforated import PerforatedConv2d

HALF = Perforate(keep=0.5)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(5)
    )


def image(size=16, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    net = small_net()
    net(image())
    return net.eval()


def shaken(model):
    """The model with batch norm statistics and scales that are not the initial ones."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in [
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ]:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18", "resnet50", "googlenet", "densenet121"])
def test_keep_one_equals_the_dense_network(name):
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = shaken(torchvision.models.get_model(name, weights=None, **options))
    x = image(64, batch=1)
    with torch.no_grad():
        expected = model(x)
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            actual = accel.convert_model(model, Perforate(keep=1.0), example_inputs=x)(given)
            assert (actual - expected).norm() <= 1e-5 * expected.norm()


def test_parameters_keep_names_and_values_in_their_own_storage(net):
    fast = accel.convert_model(net, HALF, example_inputs=image())
    assert list(fast.state_dict()) == list(net.state_dict())
    for mine, theirs in zip(fast.parameters(), net.parameters()):
        assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr()
    assert not perforated_layers(net) and type(net[0]) is nn.Conv2d


def test_inplace_converts_the_model_itself(net):
    pointers = [p.data_ptr() for p in net.parameters()]
    fast = accel.convert_model(net, HALF, example_inputs=image(), inplace=True)
    assert fast is net and isinstance(net[0], PerforatedConv2d)
    assert [p.data_ptr() for p in fast.parameters()] == pointers
    assert accel.revert_model(fast, inplace=True) is net and type(net[0]) is nn.Conv2d


def test_modes_and_statistics_survive_planning_and_converting():
    model = torchvision.models.resnet18().train()
    model.layer1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    fast = accel.convert_model(
        model, Perforate(keep=0.5, mask="impact"), example_inputs=image(32), calibration=[image(32)]
    )
    accel.plan_conversion(model, HALF, example_inputs=image(32))
    for each in (model, fast):
        assert [module.training for module in each.modules()] == modes
        assert all(torch.equal(value, before[key]) for key, value in each.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rules_choose_layers(net):
    rules = Rules({"0": None, "*": Perforate(keep=0.25, mask="uniform")})
    fast = accel.convert_model(net, rules, example_inputs=image())
    assert list(perforated_layers(fast)) == ["3"] and fast[3].config.keep == 0.25 and fast[3].layer_name == "3"


def test_a_shared_layer_is_found_under_every_name():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.second = self.first
            self.aside = [self.first]

        def forward(self, x):
            return self.second(self.aside[0](self.first(x)))

    model = Shared()
    fast = accel.convert_model(model, Rules({"second": HALF}), example_inputs=image())
    assert fast.first is fast.second is fast.aside[0] and isinstance(fast.first, PerforatedConv2d)
    row = accel.plan_conversion(model, HALF, example_inputs=image()).rows[0]
    assert row["note"].endswith("called 3 times") and row["dense_macs"] == 3 * 2 * 16 * 16 * 3 * 3 * 9


def test_sizes_may_change_between_calls(net):
    model = nn.Sequential(*list(net)[:4])
    fast = accel.convert_model(model, HALF, example_inputs=image())
    for size in (16, 33, 20):
        assert fast(image(size)).shape == model(image(size)).shape
    assert len(fast[0]._sets) >= 3


def test_converting_again_changes_the_configuration(net):
    fast = accel.convert_model(net, HALF, example_inputs=image())
    again = accel.convert_model(fast, Rules({"3": Perforate(keep=0.25)}), example_inputs=image())
    assert [layer.config.keep for layer in perforated_layers(again).values()] == [0.5, 0.25]


def test_training_a_converted_model_moves_it_and_not_the_original(net):
    fast = accel.convert_model(net, HALF, example_inputs=image()).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(fast(image()), torch.tensor([1, 2]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_masks_that_follow_pooling_and_calibration(net):
    fast = accel.convert_model(
        net,
        {"0": Perforate(keep=0.3, mask="pooling"), "3": Perforate(keep=0.3, mask="impact")},
        example_inputs=image(),
        calibration=[image(), (image(), torch.tensor([0, 1]))],
    )
    assert fast[0].pooling.kernel == (3, 3) and fast[0].pooling.stride == (2, 2)
    assert fast[3].pooling is None and fast[3].impact.shape == (5, 5)
    kept = fast[3].position_set(5, 5).positions.long()
    assert fast[3].impact.flatten()[kept].min() >= fast[3].impact.flatten().sort(descending=True).values[len(kept) - 1]


def test_the_plan_adds_up(net):
    plan = accel.plan_conversion(net, Rules({"0": None, "*": HALF}), example_inputs=image())
    rows = {row["layer"]: row for row in plan.rows}
    assert list(rows) == ["0", "3", "5"] and not perforated_layers(net)
    assert rows["0"]["dense_macs"] == rows["0"]["executed_macs"] == 2 * 16 * 16 * 8 * 27
    assert rows["0"]["mask"] is None and rows["0"]["keep"] is None
    assert rows["3"]["dense_macs"] == 2 * 5 * 5 * 8 * 72
    assert rows["3"]["executed_macs"] == 2 * 16 * 8 * 72 and rows["3"]["keep"] == 16 / 25  # grid: 4 x 4 of 5 x 5
    assert rows["5"]["dense_macs"] == 2 * 200 * 5
    assert plan.total["dense_macs"] == sum(row["dense_macs"] for row in plan.rows) == accel.count_macs(net, image())


def test_what_is_left_dense_and_what_is_never_called_is_said():
    class Own(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Own(4, 4, 1))
    model[0].extra = nn.Conv2d(1, 1, 1)
    plan = accel.plan_conversion(model, HALF, example_inputs=image())
    notes = {row["layer"]: row["note"] for row in plan.rows}
    assert notes == {"0": None, "0.extra": "not called", "1": "is a Own, whose own forward would be lost"}


@pytest.mark.parametrize(
    "rules, options, error, message",
    [
        ({"layer7.*": HALF}, {}, ConfigError, "rule 'layer7.*' matches no convolution"),
        ({"*": None}, {}, ConversionError, "leave every convolution of Sequential dense"),
        (0.5, {}, ConfigError, "expected a configuration such as Perforate"),
        (
            Perforate(keep=0.5, mask="impact"),
            {},
            ConfigError,
            "mask 'impact' of layer '0' needs data: pass calibration=",
        ),
        (Perforate(keep=0.5, mask="impact"), {"calibration": []}, DataError, "calibration data is empty"),
        (
            Perforate(keep=0.5, mask="impact"),
            {"calibration": 3},
            DataError,
            "must be iterable, got int",
        ),
        (
            Perforate(keep=0.5, mask="impact"),
            {"calibration": ["a"]},
            DataError,
            "batch 1 .* must be a tensor, .* got str",
        ),
        (HALF, {"example_inputs": torch.zeros(1, 4, 16, 16)}, ConversionError, r"cannot run .* \[1, 4, 16, 16\]"),
        (HALF, {"example_inputs": [1]}, DataError, "example_inputs must be a tensor, a tuple .* or a dict"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(net, rules, options, error, message):
    with pytest.raises(error, match=message) as caught:
        accel.convert_model(net, rules, **{"example_inputs": image(), "inplace": True, **options})
    assert isinstance(caught.value, accel.errors.AccelError)
    assert not perforated_layers(net)


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(ConversionError, match=r"Linear has no nn\.Conv2d"):
        accel.convert_model(nn.Linear(3, 4), HALF, example_inputs=torch.zeros(2, 3))
    with pytest.raises(ConversionError, match="dense already"):
        accel.revert_model(nn.Conv2d(3, 4, 1))


def test_revert_restores_the_dense_outputs_with_the_current_weights(net):
    fast = accel.convert_model(net, HALF, example_inputs=image())
    with torch.no_grad():
        fast[3].weight.mul_(2)
        net[3].weight.mul_(2)
    dense = accel.revert_model(fast)
    assert torch.equal(dense(image()), net(image()))
    assert type(dense[0]) is nn.Conv2d and isinstance(fast[0], PerforatedConv2d)
    assert dense[0].weight.data_ptr() != fast[0].weight.data_ptr()


def test_convolutions_left_dense_hand_over_channels_last(net):
    fast = accel.convert_model(net, {"0": None, "*": accel.Perforate(keep=0.5)}, example_inputs=image())
    seen = []
    fast[0].register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    with torch.no_grad():
        fast(image())
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_attributes_of_a_layer_survive_conversion_and_revert(net):
    own = {"config": {"name": "mine"}, "fit": "good", "pooling": None, "impact": 3, "_sets": [1], "_aside": 1}
    for name, value in own.items():
        setattr(net[0], name, value)
    fast = accel.convert_model(net, HALF, example_inputs=image())
    again = accel.convert_model(fast, Perforate(keep=0.25), example_inputs=image())
    for back in (accel.revert_model(fast), accel.revert_model(copy.deepcopy(again))):
        assert type(back[0]) is nn.Conv2d and back[0].__dict__.keys() == net[0].__dict__.keys()
        assert {name: getattr(back[0], name) for name in own} == own


def test_a_submodule_with_a_result_is_counted():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    dense = accel.count_macs(model, image())
    model[1].result, model[2].result = "mine", None
    fast = accel.convert_model(model.eval(), Perforate(keep=1.0), example_inputs=image())
    assert accel.count_macs(model, image()) == accel.count_macs(fast, image()) == dense


def test_a_forward_set_on_a_layer_is_honoured(net):
    plain = copy.deepcopy(net)
    net[3].forward = lambda x: plain[3](x) + 1
    expected = net(image())
    fast = accel.convert_model(net, Perforate(keep=1.0), example_inputs=image())
    assert list(perforated_layers(fast)) == ["0"]
    with torch.no_grad():
        torch.testing.assert_close(fast(image()), expected)
    rows = accel.plan_conversion(net, HALF, example_inputs=image()).rows
    assert "forward" in rows[1]["note"] and rows[1]["keep"] is None
    net[0].forward = lambda x: plain[0](x)
    with pytest.raises(ConversionError, match="has a forward set on the layer itself"):
        accel.convert_model(net, HALF, example_inputs=image())


def test_a_forward_set_on_another_module_is_honoured(net):
    net[1].forward = lambda x: x.abs()  # an activation that nothing may take for a ReLU
    net[2].forward = lambda x: x[:, :, 1::2, 1::2]
    fast = accel.convert_model(net, Perforate(keep=1.0), example_inputs=image(15))
    with torch.no_grad():
        torch.testing.assert_close(fast(image(15)), net(image(15)))


def test_a_layer_whose_parameter_has_a_name_that_conversion_needs_stays_dense(net):
    net[0].fit = nn.Parameter(torch.ones(1))
    net[3].register_buffer("impact", torch.ones(1))
    with pytest.raises(ConversionError, match="'fit'"):
        accel.convert_model(net, HALF, example_inputs=image())


@pytest.mark.parametrize("channels, stride, warned", [(8, 2, True), (16, 2, False), (8, 1, False)])
def test_layers_that_torch_cannot_train_are_named(channels, stride, warned):
    model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 16, 1, stride)).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accel.convert_model(model, Rules({"0": Perforate(keep=0.5)}), example_inputs=torch.randn(1, 3, 8, 8))
        accel.convert_model(model, Perforate(keep=1.0), example_inputs=torch.randn(1, 3, 8, 8))  # our own gradients
    said = [str(w.message) for w in caught if "do not train" in str(w.message)]
    assert len(said) == warned and all("gradient of 1," in message for message in said)
