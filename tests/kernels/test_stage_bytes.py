"""Whole stages in eight bits on the C engine, through every instruction set, against the loop over units in bytes."""

import dataclasses

import pytest
import torch

pytest.importorskip("accel.kernels.cpu.binding", reason="the C engine was not built", exc_type=ImportError)

from accel.calibrate import fit_interpolation
from accel.config import PACT, SACT
from accel.convert.stages import IN_BYTES
from accel.nn.adaptive import AdaptiveStage, HaltingHead, dense_execution
from accel.nn.byte_unit import EngineHead
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import Quantization
from accel.nn.residual_units import describe_unit
from accel.ops import use_backend
from accel.tests.kernels.stages import BASIC, CONFIGS, SHAPES, run_both_ways, stage_of


def bytes_of(config, *shape, zero_point=None, **more) -> AdaptiveStage:
    """A stage calibrated on `drawn`; zero_point: of what convolutions give each other, which is 0 behind a ReLU."""
    stage = stage_of(config, *shape, **more)
    for k, unit in enumerate(stage):
        described = describe_unit(unit)
        for step in (*described.steps, *filter(None, [described.shortcut_step])):
            PerforatedConv2d.adopt(step.conv, IN_BYTES, f"{k}")
    fit_interpolation(stage, [drawn(stage[0].conv1.in_channels)])
    for unit in stage if zero_point is not None else ():
        for step in describe_unit(unit).steps[1:]:
            found = step.conv.quantization.tensors()
            step.conv.quantization = Quantization(**{**found, "zero_point": torch.tensor(zero_point)})
    assert stage.in_bytes
    return stage


def drawn(channels, batch=3, size=(13, 10)) -> torch.Tensor:
    scales = torch.logspace(-0.5, 0.5, batch).view(-1, 1, 1, 1)
    return scales * torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def compare(stage: AdaptiveStage, x: torch.Tensor) -> None:
    """The engine ran, and gave the bits that dense execution under the mask gives; shares, but for a subtraction."""
    (out, got), (expected_out, expected) = run_both_ways(stage, x)
    assert torch.equal(out, expected_out)
    assert torch.equal(got.ponder_cost, expected.ponder_cost)
    assert torch.allclose(got.halting_distribution, expected.halting_distribution, atol=1e-6)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("channels, size", [(16, (13, 10)), (5, (1, 7)), (72, (3, 3))])
def test_heads_everywhere_are_those_of_torch(channels, size, spatial, isa):
    torch.manual_seed(0)
    head = HaltingHead(channels, spatial).eval()
    torch.nn.init.uniform_(head.bn.running_mean, -0.3, 0.3), torch.nn.init.uniform_(head.bn.bias, -0.3, 0.3)
    x = drawn(channels, 3, size)
    with torch.no_grad():
        torch.testing.assert_close(EngineHead(head)(x), head(x))
        torch.testing.assert_close(EngineHead(head).logits(x), head.logits(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("shape", SHAPES)
def test_a_stage_is_the_dense_loop(shape, config, isa):
    stage = bytes_of(config, **SHAPES[shape])
    compare(stage, drawn(SHAPES[shape]["channels_in"]).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("shape", ["basic, odd widths", "basic, smaller", "bottleneck, smaller"])
def test_padding_holds_the_zero_point(shape, isa):
    stage = bytes_of(PACT(), **SHAPES[shape], zero_point=11)
    for batch in (3, 1, 5):
        compare(stage, drawn(SHAPES[shape]["channels_in"], batch))


def test_the_loop_is_that_of_the_reference():
    stage, x = bytes_of(PACT(), **SHAPES["basic, smaller"]), drawn(6)
    with torch.no_grad():
        out = stage(x)
        with use_backend("reference"):
            assert torch.equal(stage(x), out)


@pytest.mark.parametrize("config", [SACT(eps=0.05), PACT()], ids=["SACT", "PACT"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch, size", [(1, (40, 33)), (40, (6, 7)), (2, (1, 1)), (3, (1, 9))])
def test_groups_of_images_and_threads_change_nothing(batch, size, threads, config):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stage = bytes_of(config, 16, 16, 16, BASIC)
        x = drawn(16, batch, size)
        compare(stage, x)
        with torch.no_grad():
            assert torch.equal(stage(x), torch.cat([stage(image[None]) for image in x]))
    finally:
        torch.set_num_threads(before)


def test_what_changes_is_noticed():
    stage, x = bytes_of(PACT(), 8, 8, 8, BASIC), drawn(8)
    compare(stage, x)
    with torch.no_grad():
        before = stage(x)
        stage[2].bn1.weight[3] = 1.7  # one value among many
    compare(stage, x)
    layer = stage[1].conv2
    tensors = layer.quantization.tensors()
    layer.quantization = Quantization(**{**tensors, "scale": 2 * tensors["scale"]})
    compare(stage, x)
    assert not torch.equal(stage(x), before)
    layer.config = dataclasses.replace(layer.config, precision="fp32")  # one of two: by modules, and so is the loop
    with torch.no_grad():
        out = stage(x)
        assert stage._fused._plans[13, 10] is None
        with dense_execution(stage):
            assert torch.equal(stage(x), out)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_no_byte_stands_for_is_refused(odd):
    stage, x = bytes_of(SACT(), 8, 8, 8, BASIC), drawn(8)
    broken = x.clone()
    broken[2, 3, 4, 5] = odd
    with torch.no_grad():
        before = stage(x)
        with pytest.raises(ValueError, match="a NaN or an infinity, which no byte stands for"):
            stage(broken)
        assert torch.equal(stage(x), before)
