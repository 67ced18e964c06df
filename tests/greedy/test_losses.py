"""The losses of a search against whole converted networks, and the definitions of loss and drop."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate
from accel.greedy.candidates import label_of, open_space
from accel.greedy.losses import Judge, Losses
from accel.inputs import Batch

CONFIGS = [
    Perforate(keep=keep, mask="lattice", interpolate=filled) for keep in (0.5, 0.25) for filled in ("nearest", "fitted")
]


class Net(nn.Module):
    """A skip connection, an in-place activation, and a convolution that is called twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 3, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.first(x))
        x = self.norm(self.shared(x)) + x
        return self.last(self.act(self.shared(x)))


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.randn(4, 2, 12, 10, generator=torch.Generator().manual_seed(1))


def losses_of(net, pictures):
    space = open_space(net, pictures[:1], [pictures], CONFIGS, None, None)
    return space, Losses(space.model, space.candidates, Batch((pictures,)), None, at_once=1)


def converted_loss(net, pictures, state):
    """The loss of the network that convert_model makes of a state, fitted on every second picture, on the others."""
    by_label = {label_of(config): config for config in CONFIGS}
    rules = {name: by_label[label] for name, label in state.items()}
    fast = accel.convert_model(net, rules, example_inputs=pictures[:1], calibration=[pictures[::2]])
    with torch.no_grad():
        return float(F.mse_loss(fast(pictures[1::2]), net(pictures[1::2])))


@pytest.mark.parametrize("state", [{}, {"first": 3}, {"first": 0, "last": 1, "shared": 2}])
def test_a_look_tells_what_whole_converted_networks_lose(net, pictures, state):
    labels = [label_of(config) for config in CONFIGS]
    state = {name: labels[index] for name, index in state.items()}
    space, losses = losses_of(net, pictures)
    look = losses.look(state, dict.fromkeys(space.candidates, labels))
    expected = converted_loss(net, pictures, state) if state else 0.0
    assert losses.measure(state).loss == pytest.approx(expected, rel=1e-4, abs=1e-9)
    plain = not any("fitted" in label for label in state.values())
    assert look.loss == pytest.approx(expected, rel=1e-4 if plain else 0.05, abs=1e-9)
    for name in ("first", "shared"):  # behind a change, the layers of the state would be fitted anew
        later = [other for other in state if other != name and list(space.candidates).index(other) > 0]
        for label in labels:
            if any("fitted" in state[other] for other in later):
                continue
            whole = converted_loss(net, pictures, {**state, name: label})
            # a look judges the fit of every layer by itself, a conversion those of the whole network in turn
            exact = plain and "fitted" not in label
            assert look.loss + look.extra[name][label] == pytest.approx(whole, rel=1e-4 if exact else 0.05), (
                name,
                label,
            )


def test_whole_networks_are_judged_on_further_pictures(net, pictures):
    space, losses = losses_of(net, pictures)
    further = torch.randn(3, 2, 12, 10, generator=torch.Generator().manual_seed(2))
    more = Losses(space.model, space.candidates, Batch((pictures,)), None, at_once=2, more=Batch((further,)))
    state = {"first": label_of(CONFIGS[1]), "last": label_of(CONFIGS[2])}
    fast = accel.convert_model(
        net, {"first": CONFIGS[1], "last": CONFIGS[2]}, example_inputs=pictures[:1], calibration=[pictures[::2]]
    )
    x = torch.cat([pictures[1::2], further])
    with torch.no_grad():
        expected = F.mse_loss(fast(x), net(x))
    assert more.measure(state).loss == pytest.approx(float(expected), rel=1e-4)
    assert more.measure(state).loss != pytest.approx(losses.measure(state).loss, rel=0.01)
    assert more.look(state, {}).loss == pytest.approx(losses.look(state, {}).loss, rel=1e-6)
    assert more.seconds(state, {}) > 0


def test_outputs_of_all_pictures_together_are_judged_on_the_same_pictures_everywhere(pictures):
    class Mean(Net):
        def forward(self, x):
            return super().forward(x).mean(0)

    space, _ = losses_of(Mean().eval(), pictures)
    losses = Losses(space.model, space.candidates, Batch((pictures,)), None, at_once=1, more=Batch((pictures,)))
    assert losses.judged is losses.looked and losses.at_once == 2


def test_a_look_leaves_the_network_as_it_was(net, pictures):
    space, losses = losses_of(net, pictures)
    before = copy.deepcopy(space.model.state_dict())
    label = label_of(CONFIGS[1])
    losses.look({"first": label}, {"last": [label]})
    assert all(torch.equal(before[name], tensor) for name, tensor in space.model.state_dict().items())
    assert all("forward" not in module.__dict__ for module in space.model.modules())


def test_loss_and_drop_with_labels():
    logits, dense = torch.tensor([[2.0, 0, 0], [0, 1, 0]]), torch.tensor([[2.0, 0, 0], [1, 0, 0]])
    judge = Judge(dense, Batch((torch.zeros(2),), rest=(torch.tensor([0, 0]),)))
    assert judge.loss(logits) == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 0]))))
    assert judge.drop(logits) == pytest.approx(0.5)
    assert judge.drop(dense) == 0


def test_loss_and_drop_without_labels():
    logits, dense = torch.randn(5, 3), torch.randn(5, 3)
    judge = Judge(dense, Batch((torch.zeros(5),)))
    p, q = dense.softmax(1), logits.softmax(1)
    assert judge.loss(logits) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    assert judge.drop(logits) == pytest.approx(float((logits.argmax(1) != dense.argmax(1)).float().mean()))
    maps = {"a": torch.tensor([[[1.0, 2.0]]]), "b": torch.zeros(1, 1, 1)}
    judge = Judge({"a": torch.zeros(1, 1, 2), "b": torch.zeros(1, 1, 1)}, Batch((torch.zeros(1),)))
    assert judge.loss(maps) == pytest.approx(2.5)
    assert judge.drop(maps) == pytest.approx(0.75)


def test_a_loss_of_ones_own():
    judge = Judge(torch.zeros(4), Batch((torch.zeros(2),)), lambda outputs, batch: outputs.sum() + 4)
    assert judge.loss(torch.ones(4)) == 4.0
    assert judge.drop(torch.ones(4)) == 2.0
