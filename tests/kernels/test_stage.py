"""Whole stages on the C engine, forced through every instruction set, against the loop that says what they compute."""

import copy

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("accel.kernels.cpu.binding", reason="the C engine was not built", exc_type=ImportError)

import accel
from accel.config import PACT, SACT
from accel.kernels.stage import StageConv, StageHead, StageUnit, plan_stage
from accel.nn.adaptive import AdaptiveStage
from accel.nn.stage_outputs import recorded_stages
from accel.tests.kernels.stages import BASIC, CONFIGS, SHAPES, run_both_ways, stage_of
from accel.tests.threads import in_threads


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Every buffer that is allocated without being filled starts as NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))


def poison(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-7)


def compare(stage: AdaptiveStage, x: torch.Tensor) -> None:
    """The engine ran, and everything it reports is what dense execution under the mask reports."""
    (out, got), (expected_out, expected) = run_both_ways(stage, x)
    assert (out - expected_out).norm() <= 1e-5 * expected_out.norm()
    assert torch.allclose(got.ponder_cost, expected.ponder_cost, atol=1e-5)
    assert torch.allclose(got.halting_distribution, expected.halting_distribution, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("shape", SHAPES)
def test_a_stage_is_the_dense_loop(shape, config, isa):
    stage = stage_of(config, **SHAPES[shape])
    x = torch.randn(3, SHAPES[shape]["channels_in"], 13, 10) * torch.tensor([0.3, 1.0, 4.0]).view(3, 1, 1, 1)
    compare(stage, x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("spatial", [False, True])
def test_decisions_leave_the_state_and_nothing_else(spatial, isa):
    """Weights are one-hot and the cost counts units, to the bit; a head that gives NaN is refused."""
    stage = stage_of(PACT(spatial=spatial), 6, 20, 9, BASIC, stride=2)
    x = torch.randn(3, 6, 13, 10) * torch.tensor([0.3, 1.0, 4.0]).view(3, 1, 1, 1)
    with torch.no_grad(), recorded_stages() as did:
        stage(x)
    assert stage._fused._plans[(13, 10)] is not None and did[0].num_units.min() < 4 and did[0].num_units.max() > 1
    assert torch.equal(did[0].ponder_cost, did[0].num_units.float())
    one_hot = F.one_hot(did[0].num_units.long() - 1, 4).float()
    assert torch.equal(did[0].halting_distribution, one_hot.movedim(-1, 1))
    with torch.no_grad():
        stage[1].halting.conv.bias.fill_(float("nan"))
        with pytest.raises(ValueError, match="a halting head gave NaN at"):
            stage(x)


@pytest.mark.parametrize("config", [SACT(eps=0.05), PACT()], ids=["SACT", "PACT"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch, size", [(1, (40, 33)), (40, (6, 7)), (9, (36, 36)), (2, (1, 1)), (3, (1, 9))])
def test_groups_of_images_and_threads_change_nothing(batch, size, threads, config):
    """Many groups, one group, a group of many images, and maps of one line."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stage = stage_of(config, 16, 16, 16, BASIC)
        x = torch.randn(batch, 16, *size)
        compare(stage, x)
        with torch.no_grad():
            together = stage(x)
            alone = torch.cat([stage(image[None]) for image in x])
        assert (together - alone).norm() <= 1e-6 * alone.norm()
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def threads():
    """Sets torch's number of threads; the test's end sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", ["basic, smaller", "bottleneck, smaller"])
@pytest.mark.parametrize("batch", [16, 32])
def test_a_plan_serves_one_number_of_threads_after_another(threads, shape, batch):
    """Groups of two images and one thread, or of one image and two threads, take equally much memory, cut otherwise."""
    stage = stage_of(SACT(eps=0.05), **SHAPES[shape])
    x = torch.randn(batch, SHAPES[shape]["channels_in"], 16, 16)
    for count in (1, 2, 3, 1):
        threads(count)
        compare(stage, x)


def test_a_plan_serves_one_batch_after_another(threads):
    stage = stage_of(SACT(eps=0.05), 8, 8, 8, BASIC)
    for count, batch in ((2, 32), (1, 32), (2, 16), (1, 8), (2, 64), (1, 1), (2, 0), (1, 16)):
        threads(count)
        compare(stage, torch.randn(batch, 8, 8, 8))


def test_a_plan_serves_several_python_threads_at_once(threads):
    threads(1)
    stage = stage_of(SACT(eps=0.05), 8, 8, 8, BASIC)
    with torch.no_grad():
        stage(torch.randn(2, 8, 12, 9))
    plan = stage._fused._plans[12, 9]
    inputs = [torch.randn(batch, 8, 12, 9) for batch in (1, 3, 16, 3)]
    expected = [plan.run(x, x).output for x in inputs]
    wrong = []

    def work(x, right):
        for _ in range(20):
            if not torch.equal(plan.run(x, x).output, right):
                wrong.append(len(x))

    in_threads(work, zip(inputs, expected))
    assert not wrong


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cut out"])
def test_inputs_of_any_layout(layout):
    stage = stage_of(SACT(), 8, 8, 8, BASIC)
    x = torch.randn(2, 8, 12, 9)
    if layout == "cut out":
        x = torch.randn(2, 10, 15, 11)[:, 1:9, 2:14, 1:10]
    elif layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    compare(stage, x)


def test_a_changed_parameter_is_noticed():
    stage = stage_of(SACT(eps=0.05), 8, 8, 8, BASIC)
    x = torch.randn(2, 8, 12, 9)
    compare(stage, x)
    stage[1].conv2.weight.data.mul_(0.5)  # through .data: no version is raised
    accel.refresh(stage)
    compare(stage, x)
    stage[0].halting.bn.running_mean.add_(0.3)
    compare(stage, x)
    with torch.no_grad():
        stage[2].bn1.weight[3] = 1.7  # one value among many
    compare(stage, x)
    stage[1].conv1 = copy.deepcopy(stage[2].conv1)
    compare(stage, x)


def test_a_hook_is_called():
    stage = stage_of(SACT(), 8, 8, 8, BASIC)
    seen = []
    stage[1].halting.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        stage(torch.randn(1, 8, 12, 9))
    assert seen


def test_what_the_engine_cannot_run_is_refused():
    def conv(k, c, size, padding, groups=1):
        return StageConv(torch.randn(k, c // groups, size, size), None, (1, 1), padding, (1, 1), groups, "relu")

    def plan(*later):
        first = StageUnit((conv(8, 8, 3, (1, 1)), conv(8, 8, 3, (1, 1))), head)
        return plan_stage([first, StageUnit(later, None)], None, (9, 9), spatial=True, eps=0.01)

    head = StageHead(torch.zeros(9, 8), torch.zeros(9, 9), torch.zeros(8))
    good = conv(8, 8, 3, (1, 1))
    assert plan(good, good) is not None
    assert plan(good) is None  # it would read the state that it overwrites
    assert plan(good, conv(8, 8, 3, (0, 0))) is None
    assert plan(conv(8, 8, 3, (1, 1), groups=8), good) is None
    assert plan(conv(8, 8, 17, (8, 8)), good, conv(8, 8, 1, (0, 0))) is not None
    assert plan(good, conv(8, 8, 17, (8, 8))) is None  # the first would need a set of reach 8


def test_a_bias_map_for_other_images_is_refused():
    conv = StageConv(torch.randn(4, 4, 3, 3), None, (1, 1), (1, 1), (1, 1), 1, "relu")
    head = StageHead(torch.zeros(9, 4), torch.zeros(3, 5, 5), torch.zeros(4))
    units = [StageUnit((conv, conv), head), StageUnit((conv, conv), None)]
    plan = plan_stage(units, None, (5, 5), spatial=True, eps=0.01)
    x = torch.randn(2, 4, 5, 5)
    with pytest.raises(ValueError, match="for 3 images, the input has 2"):
        plan.run(x, x)
