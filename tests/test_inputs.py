"""The forms in which users have example inputs and data."""

import pytest
import torch
from torch import nn

import accel
from accel import Perforate
from accel.errors import ConversionError, DataError
from accel.inputs import as_batch, batches, first_pictures, required_inputs


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Two(nn.Module):
    """Two required inputs and an optional one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(2, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, left, right, gain=1.0):
        return self.last(torch.relu(self.a(left) + gain * self.b(right)))


@pytest.fixture
def net():
    return Two().eval()


LEFT, RIGHT, LABELS = drawn(1, 4, 3, 12, 12), drawn(2, 4, 2, 12, 12), torch.arange(4)
FORMS = {
    "tuples": [(LEFT, RIGHT)],
    "tuples with labels": [(LEFT, RIGHT, LABELS)],
    "lists": [[LEFT[:2], RIGHT[:2], LABELS[:2]], [LEFT[2:], RIGHT[2:], LABELS[2:]]],
    "dicts": [{"left": LEFT[:3], "right": RIGHT[:3]}, {"left": LEFT[3:], "right": RIGHT[3:]}],
    "a bare dict": {"left": LEFT, "right": RIGHT},
    "other arguments": [{"left": LEFT, "right": RIGHT, "gain": 1.0}],
}
EXAMPLES = [(LEFT[:1], RIGHT[:1]), {"right": RIGHT[:1], "left": LEFT[:1]}]
FITTED = Perforate(keep=0.5, mask="lattice", interpolate="fitted", neighbors=4)


@pytest.mark.parametrize("example", EXAMPLES, ids=["tuple", "dict"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", ["lattice", "impact"])
def test_every_form_of_the_same_data_gives_the_same_network(net, form, example, mask):
    config = Perforate(keep=0.5, mask=mask, interpolate="fitted", neighbors=4)
    fast, same = (
        accel.convert_model(net, config, example_inputs=example, calibration=data)
        for data in (FORMS[form], FORMS["tuples"])
    )
    with torch.no_grad():
        torch.testing.assert_close(fast(LEFT, RIGHT), same(LEFT, RIGHT), rtol=1e-5, atol=1e-6)
        assert not torch.equal(fast(LEFT, RIGHT), net(LEFT, RIGHT))


@pytest.mark.parametrize(
    "data", [LEFT, [LEFT], [(LEFT, LABELS)], [{"input": LEFT}]], ids=["bare", "list", "x, y", "dict"]
)
def test_a_bare_tensor_is_one_batch(data):
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    fast, same = (accel.convert_model(one, FITTED, example_inputs=LEFT, calibration=c) for c in (data, [LEFT]))
    with torch.no_grad():
        assert torch.equal(fast(LEFT), same(LEFT))


@pytest.mark.parametrize("example", EXAMPLES, ids=["tuple", "dict"])
def test_every_tool_takes_two_inputs(net, example):
    assert accel.count_macs(net, example) == 144 * (27 * 6 + 18 * 6 + 54 * 4)
    assert accel.count_macs(net, example, per_image=True).tolist() == [accel.count_macs(net, example)]
    plan = accel.plan_conversion(net, FITTED, example_inputs=example, calibration=FORMS["dicts"])
    assert plan.total["executed_macs"] < plan.total["dense_macs"]
    assert accel.profile(net, example, baseline=net, repeats=1).total["ms"] > 0
    low = accel.decompose_model(net, calibration=FORMS["dicts"], macs=0.7)
    assert accel.count_macs(low, example) < 0.71 * accel.count_macs(net, example)
    fast = accel.convert_model(net, FITTED, example_inputs=example, calibration=FORMS["dicts"])
    before = (fast(LEFT, RIGHT) - net(LEFT, RIGHT)).abs().mean()
    accel.finetune(fast, teacher=net, data=FORMS["tuples with labels"], steps=20, lr=1e-3)
    assert (fast(LEFT, RIGHT) - net(LEFT, RIGHT)).abs().mean() < before


def test_a_search_takes_two_inputs(net):
    rules = accel.search(net, example_inputs=EXAMPLES[1], calibration=FORMS["dicts"], macs=0.6)
    fast = accel.convert_model(net, rules, example_inputs=EXAMPLES[0], calibration=FORMS["lists"])
    assert accel.count_macs(fast, EXAMPLES[0]) <= 0.6 * accel.count_macs(net, EXAMPLES[0])


def test_units_are_left_out_of_a_network_fed_by_keyword():
    from accel.zoo.cifar import CifarResNet

    class Named(CifarResNet):
        def forward(self, *, picture):
            return super().forward(picture)

    torch.manual_seed(0)
    x, model = drawn(3, 4, 3, 16, 16), Named(20).eval()
    short = accel.shorten_model(model, calibration={"picture": x}, macs=0.8)
    assert accel.count_macs(short, {"picture": x}) <= 0.8 * accel.count_macs(model, {"picture": x})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("mask", ["lattice", "impact"])
def test_pictures_that_are_not_finite_are_refused(bad, mask):
    spoilt = LEFT.clone()
    spoilt[1, 2, 3, 4] = bad
    model = nn.Sequential(nn.Conv2d(3, 6, 3)).eval()
    config = Perforate(keep=0.5, mask=mask, interpolate="fitted" if mask == "lattice" else "nearest")
    with pytest.raises(DataError, match="batch 2 of the calibration data holds NaN or infinity") as caught:
        accel.convert_model(model, config, example_inputs=LEFT, calibration=[LEFT[:1], spoilt])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tool",
    [
        lambda net, data: accel.decompose_model(net, calibration=data, macs=0.5),
        lambda net, data: accel.search(net, example_inputs=LEFT, calibration=data, macs=0.6),
        lambda net, data: accel.finetune(net, data=data, steps=1),
    ],
    ids=["decompose_model", "search", "finetune"],
)
def test_other_tools_refuse_them_too(tool):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).eval()
    with pytest.raises(DataError, match="data holds NaN or infinity"):
        tool(net, [LEFT * float("nan")])
    assert net[1].running_mean.eq(0).all()


def test_bytes_are_what_the_network_makes_of_them():
    class Scaling(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float() / 255)

    torch.manual_seed(0)
    pixels = torch.randint(256, (4, 3, 12, 12), dtype=torch.uint8)
    own, plain = (kind(nn.Conv2d(3, 6, 3, padding=1)).eval() for kind in (Scaling, nn.Sequential))
    plain.load_state_dict(own.state_dict())
    fast = accel.convert_model(own, FITTED, example_inputs=pixels, calibration=pixels)
    same = accel.convert_model(plain, FITTED, example_inputs=pixels / 255, calibration=pixels / 255)
    with torch.no_grad():
        torch.testing.assert_close(fast(pixels), same(pixels / 255))
    with pytest.raises(DataError, match=r"cannot run on the calibration data \(uint8 \[4, 3, 12, 12\]\)") as caught:
        accel.convert_model(plain, FITTED, example_inputs=pixels / 255, calibration=pixels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data, message",
    [
        ([LEFT], "batch 1 of the calibration data has 1 of the 2 inputs that the model takes"),
        ([(LEFT, RIGHT), ("x", RIGHT)], "batch 2 of the calibration data must be a tensor, a dict, .* got str"),
        ([{"left": 3}], "holds no tensor"),
        ([{0: LEFT}], "keys must be names"),
        ([(LEFT, RIGHT), {"left": LEFT, "right": RIGHT}], "have different inputs"),
        ([(LEFT, RIGHT), (LEFT[..., :8], RIGHT)], "pictures of one size are needed"),
        ([{"left": LEFT, "right": RIGHT, "gain": 1.0}, {"left": LEFT, "right": RIGHT, "gain": 2.0}], "differ between"),
        ([{"left": LEFT, "wrong": RIGHT}], "cannot run on the calibration data .*unexpected keyword argument 'wrong'"),
    ],
)
def test_what_makes_no_call_is_refused(net, data, message):
    with pytest.raises(DataError, match=message) as caught:
        accel.convert_model(net, FITTED, example_inputs=EXAMPLES[0], calibration=data)
    assert "\n" not in str(caught.value)


def test_examples_are_calls(net):
    assert as_batch(LEFT).args == (LEFT,) and as_batch((LEFT, RIGHT)).args == (LEFT, RIGHT)
    assert as_batch({"x": LEFT}).kwargs == {"x": LEFT} and len(as_batch({"x": LEFT})) == 4
    for wrong in ([LEFT], (), ("a",), {"x": 1}, {1: LEFT}, None):
        with pytest.raises(DataError, match="example_inputs must be a tensor, a tuple of arguments or a dict"):
            as_batch(wrong)
    with pytest.raises(ConversionError, match=r"cannot run on example_inputs \(float32 \[4, 3, 12, 12\]\)"):
        accel.convert_model(net, Perforate(keep=0.5), example_inputs=LEFT)


def test_required_inputs():
    assert required_inputs(Two()) == 2
    assert required_inputs(nn.Sequential()) == 1
    assert required_inputs(lambda *, x=1, y: None) == 1
    fast = accel.convert_model(Two().eval(), Perforate(keep=0.5), example_inputs=EXAMPLES[0])
    assert required_inputs(fast) == 2


class Any(Two):
    """The same, written so that nobody can count its inputs."""

    def forward(self, *inputs):
        return super().forward(*inputs)


@pytest.mark.parametrize("data", ["tuples", "tuples with labels", "lists"])
def test_the_example_counts_the_inputs_of_a_forward_that_does_not(net, data):
    other = Any().eval()
    fast, same = (
        accel.convert_model(each, FITTED, example_inputs=EXAMPLES[0], calibration=FORMS[data]) for each in (other, net)
    )
    with torch.no_grad():
        torch.testing.assert_close(fast(LEFT, RIGHT), same(LEFT, RIGHT), rtol=1e-5, atol=1e-6)


def test_what_nobody_counts_is_refused():
    assert required_inputs(Any()) is None
    fast = accel.convert_model(Any().eval(), Perforate(keep=0.5), example_inputs=EXAMPLES[0])
    with pytest.raises(
        DataError, match=r"batch 1 of the training data has 3 elements, and a forward that takes \*inputs"
    ):
        accel.finetune(fast, teacher=Any().eval(), data=[(LEFT, RIGHT, LABELS)], steps=1)
    assert [len(batch.args) for batch in batches([LEFT, (LEFT,)], Any())] == [1, 1]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_a_wrapped_network_takes_what_it_holds_takes(wrap):
    assert required_inputs(wrap(Two())) == 2
    assert required_inputs(wrap(wrap(Two()))) == 2


def test_the_first_pictures_bring_what_belongs_to_them():
    data = [(torch.arange(3.0)[:, None] + 3 * i, torch.arange(3) + 3 * i, ["a", "b", "c"]) for i in range(4)]
    batch = first_pictures(batches(data, nn.Identity()), 5)
    assert batch.args[0].flatten().tolist() == [0, 1, 2, 3, 4] and batch.labels.tolist() == [0, 1, 2, 3, 4]
    assert batch.rest[1] == ["a", "b", "c", "a", "b"]
    assert len(first_pictures(batches([torch.zeros(2, 3)], nn.Identity()), 5)) == 2
    with pytest.raises(DataError, match="one size"):
        first_pictures(batches([torch.zeros(1, 3), torch.zeros(1, 4)], nn.Identity()), 2)
    fixed = {"x": torch.zeros(2, 3), "table": torch.ones(7)}
    both = first_pictures(batches([fixed, fixed], nn.Identity()), 9)
    assert both.kwargs["x"].shape == (4, 3) and both.kwargs["table"].shape == (7,)
    pictures = [torch.zeros(3, 4, 5), torch.ones(3, 6, 7)]
    assert len(first_pictures(batches([(pictures,), (pictures,)], nn.Identity()), 3)) == 3
    maps = [torch.zeros(3, 2, 8, 8), torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 2, 2)]
    pyramid = next(batches([(maps,)], nn.Identity()))
    assert len(pyramid) == 3 and len(pyramid.part(0, 1).args[0]) == 3  # a list of maps is no list of pictures
