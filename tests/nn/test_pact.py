"""PACT networks: three ways to evaluate, the limits, sparse execution, bad input."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import nn

import accel
from accel.config import PACT, SACT
from accel.errors import ConfigError, ConversionError
from accel.mc import (
    REBAR,
    Concrete,
    DisARM,
    Enumerate,
    LeaveOneOut,
    MeasureValued,
    MovingAverage,
    Pathwise,
    ScoreFunction,
)
from accel.nn.adaptive import adaptive_stages, dense_execution, make_adaptive
from accel.nn.sparse_unit import SparseUnit
from accel.ops import use_backend
from accel.tests.nn.halting_nets import TinyUnit, relative, spread_scores, three_ways, tiny_net
from accel.tests.nn.test_adaptive import STAGES, cifar_net, randomise, set_heads
from accel.zoo.registry import get_model

BOTH = pytest.mark.parametrize("spatial", [False, True], ids=["images", "positions"])


def pictures(batch: int = 4):
    torch.manual_seed(0)
    return torch.randn(batch, 3, 29, 35) * torch.tensor([0.1, 1.0, 3.0, 9.0])[:batch].view(-1, 1, 1, 1)


def pact_net(spatial: bool, seed: int = 0, **options) -> nn.Module:
    return spread(cifar_net(PACT(spatial=spatial, **options), seed), pictures())


def spread(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """Scores on both sides of one half, that of no image or position on the very edge."""
    spread_scores(net, x)
    with torch.no_grad():
        for name, module in net.named_modules():
            if name.endswith("halting.conv"):
                module.bias.add_(0.2)
    return net


@pytest.mark.parametrize("seed", range(3))
@BOTH
def test_sparse_execution_equals_dense_execution(spatial, seed):
    net, x = pact_net(spatial, seed), pictures()
    sparse, one_by_one, dense = three_ways(net, x)
    assert relative(sparse.logits, dense.logits) < 1e-5 and relative(one_by_one.logits, dense.logits) < 1e-5
    assert any(0 < (stage.num_units == k).float().mean() < 1 for stage in dense.stages for k in (1, 2, 3))
    for a, c, b in zip(sparse.stages, one_by_one.stages, dense.stages):
        for one in (a, c):
            assert torch.equal(one.num_units, b.num_units)
            assert torch.equal(one.executed_macs, b.executed_macs)
            assert torch.equal(one.ponder_cost, b.num_units.float())
            assert torch.equal(one.halting_distribution, b.halting_distribution)


@pytest.mark.parametrize("build", ["resnet18", "resnet50"])
@BOTH
def test_torchvision_units_run_sparsely(build, spatial):
    torch.manual_seed(0)
    model = randomise(getattr(torchvision.models, build)(num_classes=10)).eval()
    net = make_adaptive(model, dict.fromkeys(STAGES["torchvision"], PACT(spatial=spatial)))
    x = torch.randn(2, 3, 64, 64) * torch.tensor([0.3, 3.0]).view(2, 1, 1, 1)
    spread(net, x)
    sparse, one_by_one, dense = three_ways(net, x)
    assert relative(sparse.logits, dense.logits) < 1e-5 and relative(one_by_one.logits, dense.logits) < 1e-5


def test_unit_by_unit_one_state_is_all_that_is_kept(monkeypatch):
    """Every unit writes to the map that the first one gave, and that map is the output."""
    net, places, run = pact_net(True), [], SparseUnit.__call__

    def recorded(unit, state, running, in_place=False):
        out = run(unit, state, running, in_place)
        places.append((state.data_ptr(), out.data_ptr()))
        return out

    monkeypatch.setattr(SparseUnit, "__call__", recorded)
    net.layer1._fused.run = lambda *_: None
    with torch.no_grad():
        out = net.layer1(torch.randn(2, 16, 10, 12))
    assert len(places) == 2 and {place for pair in places for place in pair} == {out.data_ptr()}


@BOTH
def test_what_a_hook_saw_of_a_state_is_not_written_to(spatial):
    net, seen = pact_net(spatial), []
    net.layer1[0].register_forward_hook(lambda _module, _inputs, out: seen.append((out, out.clone())))
    with torch.no_grad():
        stages = net(pictures()).stages
    assert stages[0].num_units.max() > 1 and torch.equal(*seen[0])


def test_through_the_triton_launchers():
    """The ops of the public interface, in Triton's interpreter, unit after unit."""
    tools = pytest.importorskip("accel.tests.triton_tools.interp_switch", reason="no interpreter tools")
    net, x = tiny_net(PACT(), stages=1, dtype=torch.float32), torch.randn(2, 3, 5, 4)
    spread_scores(net, x)
    with torch.no_grad():
        with dense_execution(net):
            expected = net(x)
        with tools.interpret(), use_backend("triton"):
            got = net(x)
    assert relative(got.logits, expected.logits) < 1e-5 and expected.stages[0].num_units.unique().numel() > 1
    assert torch.equal(got.stages[0].num_units, expected.stages[0].num_units)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@BOTH
def test_thresholded_evaluation_is_the_network_cut_off(spatial, dtype):
    """Frozen where it halts, with the state as the output; there is no sum of states to round."""
    net = tiny_net(PACT(spatial=spatial), dtype=dtype)
    x = torch.randn(5, 3, 6, 4, dtype=torch.float64).to(dtype)
    spread_scores(net, x)
    state = x
    with torch.no_grad():
        for stage in adaptive_stages(net):
            running = None
            for unit in stage:
                new = unit(state)
                state = new if running is None else torch.where(running, new, state)
                if unit is not stage[-1]:
                    goes = unit.halting.logits(state) <= 0
                    goes = goes[:, None] if spatial else goes.view(-1, 1, 1, 1)
                    running = goes if running is None else running & goes
        expected = net[5](net[4](net[3](state)))
        with dense_execution(net):
            dense = net(x).logits
    assert torch.equal(dense, expected)


@BOTH
def test_heads_that_never_halt_and_heads_that_halt_at_once(spatial):
    torch.manual_seed(0)
    model = randomise(get_model("zoo:resnet20_cifar"))
    net = cifar_net(PACT(spatial=spatial))
    x = torch.randn(3, 3, 32, 32)
    for bias, ran in ((-40.0, 3), (40.0, 1)):
        set_heads(net, bias, 0.0)
        logits = []
        for mode in ("relaxed", "sampled", "thresholded"):
            with torch.no_grad(), accel.evaluate_as(net, mode):
                out = net(x)
            logits.append(out.logits)
            for stage in out.stages:
                assert (stage.num_units == ran).all()
                torch.testing.assert_close(stage.ponder_cost, torch.full_like(stage.ponder_cost, ran))
        assert relative(logits[0], logits[2]) < 1e-5 and relative(logits[1], logits[2]) < 1e-5
        if ran == 3:
            with torch.no_grad():
                assert relative(logits[2], model.eval()(x)) < 1e-5


@BOTH
def test_modes(spatial):
    net, x = pact_net(spatial), pictures()
    with torch.no_grad():
        usual = net(x).logits
        with accel.evaluate_as(net, "thresholded"):
            assert relative(net(x).logits, usual) < 1e-5
        with accel.evaluate_as(net, "sampled"):
            torch.manual_seed(1)
            first = net(x)
            assert not torch.equal(net(x).logits, first.logits)
            torch.manual_seed(1)
            with dense_execution(net):
                dense = net(x)
            with accel.evaluate_as(net, "thresholded"):
                assert relative(net(x).logits, usual) < 1e-5
        assert relative(first.logits, dense.logits) < 1e-5
        assert torch.equal(first.stages[0].num_units, dense.stages[0].num_units)
        with accel.evaluate_as(net, "relaxed"):
            out = net(x)
        assert torch.equal(net(x).logits, usual)
    weights = out.stages[0].halting_distribution
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    assert ((weights > 0) & (weights < 1)).any() and out.stages[0].ponder_cost.max() <= 3


def test_other_threads_keep_their_mode():
    net, x = pact_net(True), pictures()
    with torch.no_grad(), accel.evaluate_as(net, "sampled"), ThreadPoolExecutor(1) as pool:

        def usual():
            with torch.no_grad():
                return net(x).logits

        assert torch.equal(pool.submit(usual).result(), pool.submit(usual).result())


@BOTH
def test_training_by_concrete_teaches_heads_and_units(spatial):
    net = pact_net(spatial, tau=0.1).train()
    out = net(pictures())
    loss = out.logits.square().mean() + accel.ponder_loss(out)
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    head = net.layer1[0].halting.conv
    assert head.weight.grad.abs().sum() > 0
    net.zero_grad()
    accel.ponder_loss(net(pictures())).backward()
    assert head.bias.grad < 0  # to halt earlier costs less


def test_the_divergence_stands_in_for_the_price():
    net = pact_net(True, kl=0.3, tau=0.5).train()
    out = net(pictures())
    expected = 0.3 * sum(stage.divergence(0.5).mean() for stage in out.stages)
    torch.testing.assert_close(accel.ponder_loss(out), expected)
    accel.ponder_loss(out).backward()
    assert net.layer1[0].halting.conv.weight.grad.abs().sum() > 0
    stages = [dataclasses.replace(stage, halting_logits=None) for stage in out.stages]
    with pytest.raises(ConfigError, match="without keeping its log odds"):
        accel.ponder_loss(dataclasses.replace(out, stages=stages))


def test_ponder_loss_of_drawn_decisions_is_refused():
    net = pact_net(True, estimator=DisARM()).train()
    with pytest.raises(ConfigError, match=r"call accel\.expected_loss"):
        accel.ponder_loss(net(pictures()))
    with accel.evaluate_as(net, "relaxed"):
        assert accel.ponder_loss(net(pictures())).requires_grad
    with torch.no_grad():
        out = net.eval()(pictures())
        assert float(accel.ponder_loss(out)) == pytest.approx(
            0.005 * sum(float(stage.num_units.float().mean()) for stage in out.stages)
        )


def test_a_target_follows_what_evaluation_would_execute():
    net = cifar_net(PACT(target=0.5)).train()
    set_heads(net, 3.0, 0.0)
    out = net(pictures())
    assert all((stage.num_units == 1).all() for stage in out.stages) and out.executed_share < 0.5
    assert float(net.layer1.tau) < 0.005


@pytest.mark.parametrize(
    "estimator",
    [Concrete(0.4), ScoreFunction(LeaveOneOut()), DisARM(), REBAR(0.3, 0.9), ScoreFunction(MovingAverage(0.5))],
    ids=["Concrete", "leave one out", "DisARM", "REBAR", "moving average"],
)
def test_saved_and_loaded(tmp_path, estimator):
    torch.manual_seed(0)
    model, x = randomise(get_model("zoo:resnet20_cifar")), torch.randn(2, 3, 32, 32)
    config = PACT(tau=0.02, estimator=estimator, target=0.6)
    net = accel.convert_model(model, config, example_inputs=x)
    spread_scores(net, x)
    accel.save_converted(net, tmp_path / "saved")
    loaded = accel.load_converted(tmp_path / "saved", get_model("zoo:resnet20_cifar"))
    assert adaptive_stages(loaded)[0].config.to_dict() == config.to_dict()
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, net(x).logits)
        assert torch.equal(accel.revert_model(net)(x), model(x))
    assert set(accel.revert_model(net).state_dict()) == set(model.state_dict())


def test_weights_of_one_kind_do_not_pass_for_another():
    pact, sact = cifar_net(PACT()), cifar_net(SACT())
    with pytest.raises(RuntimeError, match="sticks"):
        sact.load_state_dict(pact.state_dict())
    with pytest.raises(RuntimeError, match="sticks"):
        pact.load_state_dict(sact.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": Pathwise()}, "Pathwise is no estimator for halting decisions, which are Bernoulli: give one of"),
        ({"estimator": DisARM}, "DisARM is no estimator .*: give an instance of it"),
        ({"estimator": None}, "NoneType is no estimator"),
        ({"estimator": MeasureValued()}, "run the network for every position of a map: give spatial=False"),
        ({"estimator": Enumerate()}, "run the network for every position of a map: give spatial=False"),
        ({"tau": -0.1}, "tau is the weight"),
        ({"tau": float("inf")}, "tau is the weight"),
        ({"tau": float("nan")}, "tau is the weight"),
        ({"kl": 0.0}, "kl is the weight of a divergence"),
        ({"kl": 0.1, "target": 0.5}, "kl keeps to a prior, and target moves it"),
        ({"estimator": Enumerate(), "spatial": False, "target": 0.5}, "target follows what was decided"),
        ({"spatial": 1}, "spatial must be True or False"),
        ({"target": 1.5}, "target is the share"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ConfigError, match=message):
        PACT(**options)


def test_bad_networks_and_modes():
    net = pact_net(True)
    with pytest.raises(ConfigError, match="unknown mode of evaluation 'soft': choose one of relaxed, sampled"):
        accel.evaluate_as(net, "soft").__enter__()
    with pytest.raises(ConversionError, match="has no PACT stage"):
        accel.evaluate_as(cifar_net(SACT()), "sampled").__enter__()
    with pytest.raises(ConversionError, match="share tau and target"):
        make_adaptive(get_model("zoo:resnet20_cifar"), {"layer1": PACT(), "layer2": PACT(estimator=DisARM())})
    one = nn.Sequential(nn.Sequential(TinyUnit(3)))
    with pytest.raises(ConversionError, match="not a sequence of two or more residual units"):
        make_adaptive(one, {"0": PACT()})


@BOTH
def test_nan_in_a_head_is_refused_however_it_runs(spatial):
    net, x = pact_net(spatial), pictures()
    with torch.no_grad():
        net.layer2[1].halting.conv.bias.fill_(float("nan"))
        net.layer2[0].halting.conv.bias.fill_(-50.0)
        with pytest.raises(ValueError, match="gave NaN"):
            net(x)
        with dense_execution(net), pytest.raises(ValueError, match="gave NaN"):
            net(x)
        with accel.evaluate_as(net, "relaxed"), pytest.raises(ValueError, match="gave NaN"):
            net(x)
