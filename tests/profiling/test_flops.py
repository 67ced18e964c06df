import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import accel
from accel import ops
from accel.errors import AccelError
from accel.profiling.flops import SelfAccounting, count_macs, layer_macs, static_macs
from accel.running import one_by_one
from accel.zoo.registry import default_rules, get_model

SIZES = {
    "torchvision:resnet18": 64,
    "torchvision:resnet50": 32,
    "zoo:resnet20_cifar": 32,
    "zoo:hed_vgg16": 33,
    "zoo:demo_resnet": 32,
}


def flop_counter_macs(model, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", SIZES)
def test_three_counters_agree_on_dense_and_converted_networks(name):
    model = get_model(name, "none")
    x = torch.randn(2, 3, SIZES[name], SIZES[name])
    dense = count_macs(model, x)
    assert dense == static_macs(model, x) == flop_counter_macs(model, x)

    fast = accel.convert_model(model, default_rules(name), example_inputs=x)
    with one_by_one():  # dense 1x1 convolutions on compact rows execute less than the traced modules show
        executed = count_macs(fast, x)
        assert executed == static_macs(fast, x) == flop_counter_macs(fast, x)
    assert count_macs(fast, x) <= executed
    assert 0.4 * dense < executed < 0.95 * dense
    with one_by_one():
        rows = layer_macs(fast, x)
        assert sum(row.executed for row in rows) == executed
        assert sum(row.dense for row in rows) == dense
        assert count_macs(fast, x, per_image=True).tolist() == [executed // 2] * 2


def test_known_numbers():
    # torchvision's page of ResNet-50 gives 4.09 G
    assert count_macs(get_model("torchvision:resnet50", "none"), torch.zeros(1, 3, 224, 224)) == 4_089_184_256
    stages = 6 * 16 * 16 * 1024 + (16 + 5 * 32) * 32 * 256 + (32 + 5 * 64) * 64 * 64  # maps of 32, 16 and 8 pixels
    by_hand = 9 * (3 * 16 * 1024 + stages) + 64 * 10
    assert count_macs(get_model("zoo:resnet20_cifar"), torch.zeros(1, 3, 32, 32)) == by_hand


def test_only_convolutions_and_linear_layers_count():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Conv2d(4, 4, 3, padding="same", groups=2)
            self.norm = nn.BatchNorm2d(4)
            self.up = nn.ConvTranspose2d(4, 6, 3, stride=2)
            self.head = nn.Linear(6, 5)
            self.weight = nn.Parameter(torch.randn(4, 3, 1, 1))

        def forward(self, x):
            x = F.conv2d(x, self.weight)
            x = F.max_pool2d(self.norm(self.shared(F.relu(self.shared(x)))), 2)
            x = self.up(x).mean((2, 3))
            return self.head(x) @ torch.ones(5, 7)  # a product of matrices that is no layer

    x = torch.randn(3, 3, 8, 10)
    rows = {row.name: row.dense for row in layer_macs(Net(), x)}
    assert rows == {
        "": 3 * 80 * 4 * 3,
        "shared": 2 * 3 * 80 * 4 * 2 * 9,
        "up": 3 * 4 * 5 * 4 * 6 * 9,
        "head": 3 * 6 * 5,
    }
    assert count_macs(Net(), x) == sum(rows.values())


def test_dynamic_positions_count_per_image():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=1)

        def forward(self, x):
            active = ops.active_positions(x[:, 0] > 0)
            return ops.masked_conv2d(x, self.conv.weight, self.conv.bias, active, padding=(1, 1, 1, 1))

    x = -torch.ones(3, 2, 5, 5)
    x[0, 0, :2] = 1
    x[2, 0, 4, 4] = 1
    macs = count_macs(Net(), x, per_image=True)
    assert macs.dtype == torch.int64
    assert macs.tolist() == [10 * 54, 0, 54]
    assert count_macs(Net(), x) == 11 * 54


def test_a_module_may_account_for_itself():
    class Stage(SelfAccounting, nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            self.account(torch.tensor([7, 9]), 36)
            return self.conv(x)

    model = nn.Sequential(Stage(), nn.Conv2d(3, 1, 1))
    x = torch.zeros(2, 3, 2, 2)
    assert count_macs(model, x, per_image=True).tolist() == [7 + 12, 9 + 12]
    assert [(row.name, row.dense, row.executed) for row in layer_macs(model, x)] == [("0", 72, 16), ("1", 24, 24)]


def test_batches_folded_into_patches():
    class Patches(nn.Module):
        def __init__(self, patches):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            self.patches = patches

        def forward(self, x):
            return self.conv(x.reshape(self.patches, 1, 2, -1))

    x = torch.zeros(2, 1, 4, 6)
    assert count_macs(Patches(4), x, per_image=True).tolist() == [24, 24]
    with pytest.raises(AccelError, match="batch of 3, no multiple of the 2 images"):
        count_macs(Patches(3), x, per_image=True)


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, torch.randn(2, 1, 8, 8))
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks
