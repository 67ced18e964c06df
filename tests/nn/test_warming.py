"""Serving begins after a warm-up: nothing is traced or prepared any more, and threads find the right numbers."""

import pytest
import torch
from torch import nn

import accel
from accel import SACT, Perforate
from accel.errors import ConversionError, DataError
from accel.nn import fused_stage, inference, replay
from accel.running import one_by_one
from accel.tests.threads import in_threads
from accel.zoo.registry import get_model

SIZES = [(1, 3, 32, 32), (4, 3, 32, 32), (2, 3, 48, 40)]
WATCHED = [
    *((inference, name) for name in ("trace", "retrace")),
    *((replay, "prepare_replay"), (fused_stage, "plan_stage"), (inference.InferencePath, "build")),
]


def drawn(shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def prepared(monkeypatch):
    """What is traced or prepared from now on."""
    seen = []

    def watch(name, run):
        def watched(*args, **kwargs):
            seen.append(name)
            return run(*args, **kwargs)

        return watched

    for holder, name in WATCHED:
        monkeypatch.setattr(holder, name, watch(name, getattr(holder, name)))
    return seen


def logits(out):
    return getattr(out, "logits", out)


@pytest.mark.parametrize("config", [Perforate(keep=0.5), SACT()], ids=["perforated", "adaptive"])
def test_eight_threads_trace_nothing(config, prepared):
    torch.manual_seed(0)
    net = accel.convert_model(get_model("zoo:resnet20_cifar").eval(), config, example_inputs=drawn((1, 3, 16, 16)))
    accel.warm_up(net, SIZES)
    assert prepared
    prepared.clear()
    pictures = [drawn(size, seed) for size in SIZES for seed in range(4)]
    with torch.no_grad(), one_by_one():
        expected = [logits(net(x)) for x in pictures]
    assert prepared == []
    found = {}

    def serve(thread):
        layout = torch.channels_last if thread % 2 else torch.contiguous_format
        with torch.inference_mode():
            for index, x in enumerate(pictures):
                found[thread, index] = logits(net(x.contiguous(memory_format=layout)))

    in_threads(serve, [(thread,) for thread in range(8)])
    assert prepared == [] and len(found) == 8 * len(pictures)
    for (_, index), out in found.items():
        torch.testing.assert_close(out, expected[index], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        net(drawn((3, 3, 20, 20)))
    assert prepared  # it would have been seen


def test_copies_and_other_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()

        def forward(self, x, gain):
            return self.act(self.conv(x)) * gain

    net = accel.convert_model(Two().eval(), Perforate(keep=0.5), example_inputs=(drawn((1, 3, 8, 8)), torch.ones(1)))
    net.train()
    example = drawn((2, 3, 9, 9)), torch.full((1,), 2.0)
    accel.warm_up(net, [example, {"x": example[0], "gain": example[1]}])
    assert all(module.training for module in net.modules())
    ((_, path),) = inference.installed(net)
    shapes = [key[0][0] for key in path.plan.verdicts]
    assert shapes.count(example[0].shape) == 2 and not any(path.plan.verdicts.values())


@pytest.mark.parametrize(
    "sizes, error, message",
    [
        ((1, 3, 8, 8), DataError, r"sizes must be a list of shapes such as .*, with int in it"),
        (["1x3x8x8"], DataError, r"sizes must be a list of shapes such as .*, with str in it"),
        ([(1, 4, 8, 8)], ConversionError, r"cannot run on example_inputs \(float32 \[1, 4, 8, 8\]\)"),
    ],
)
def test_what_is_no_size_is_refused(sizes, error, message):
    net = accel.convert_model(
        nn.Sequential(nn.Conv2d(3, 4, 3)), Perforate(keep=0.5), example_inputs=drawn((1, 3, 8, 8))
    )
    with pytest.raises(error, match=message):
        accel.warm_up(net, sizes)
