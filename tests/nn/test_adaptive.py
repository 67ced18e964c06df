"""ACT and SACT networks: golden constants, limits in which the answer is known, sparse against dense execution."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import accel
from accel.config import ACT, SACT
from accel.errors import ConfigError, ConversionError, WeightsError
from accel.nn.adaptive import HaltingHead, adaptive_stages, dense_execution, make_adaptive, ponder_loss
from accel.nn.residual_units import BranchStep, UnitDescription, register_unit
from accel.nn.sparse_unit import SparseUnit
from accel.tests.nn.halting_nets import relative, spread_scores, three_ways
from accel.zoo.registry import get_model

STAGES = {"resnet20": ("layer1", "layer2", "layer3"), "torchvision": ("layer1", "layer2", "layer3", "layer4")}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch statistics and affine parameters that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.0),
                (module.bias.data, -0.2, 0.2),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model


def cifar_net(config: ACT, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = randomise(get_model("zoo:resnet20_cifar"), seed)
    return make_adaptive(model, dict.fromkeys(STAGES["resnet20"], config)).eval()


def set_heads(model: nn.Module, bias: float, scale: float = 1.0) -> None:
    for name, module in model.named_modules():
        if name.endswith("halting.conv"):
            nn.init.constant_(module.bias, bias)
            torch.no_grad()(module.weight.mul_)(scale)
        if name.endswith("halting.pooled"):
            torch.no_grad()(module.weight.mul_)(scale)


@pytest.mark.parametrize("config", [ACT(), SACT()])
def test_heads_that_never_halt_give_the_dense_network(config):
    torch.manual_seed(0)
    model = randomise(get_model("zoo:resnet20_cifar"))
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        net = make_adaptive(copy.deepcopy(model), dict.fromkeys(STAGES["resnet20"], config))
        set_heads(net, -40.0, 0.0)
        out = net(x)
    assert relative(out.logits, expected) < 1e-5
    for stage in out.stages:
        assert (stage.num_units == 3).all()
        assert torch.allclose(stage.ponder_cost, torch.full_like(stage.ponder_cost, 4.0))


@pytest.mark.parametrize("config", [ACT(), SACT()])
def test_heads_that_halt_at_once_run_one_unit(config):
    net = cifar_net(config)
    set_heads(net, 40.0, 0.0)
    with torch.no_grad():
        out = net(torch.randn(2, 3, 32, 32))
    for stage in out.stages:
        assert (stage.num_units == 1).all()
        assert (stage.ponder_cost == 2).all()
        assert (stage.halting_distribution[:, 0] == 1).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("config", [ACT(eps=0.05), SACT(eps=0.05)])
def test_sparse_execution_equals_dense_execution(config, seed):
    net = cifar_net(config, seed)
    x = torch.randn(4, 3, 29, 35) * torch.tensor([0.1, 1.0, 3.0, 9.0]).view(4, 1, 1, 1)
    spread_scores(net, x)
    with torch.no_grad():
        sparse = net(x)
        with dense_execution(net):
            dense = net(x)
    assert relative(sparse.logits, dense.logits) < 1e-5
    assert any(0 < (stage.num_units == k).float().mean() < 1 for stage in dense.stages for k in (1, 2, 3))
    for a, b in zip(sparse.stages, dense.stages):
        assert torch.equal(a.num_units, b.num_units)
        assert torch.equal(a.executed_macs, b.executed_macs)
        assert torch.allclose(a.ponder_cost, b.ponder_cost, atol=1e-5)
        assert torch.allclose(a.halting_distribution, b.halting_distribution, atol=1e-5)


@pytest.mark.parametrize("build", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvision_units_run_sparsely(build):
    torch.manual_seed(0)
    model = randomise(getattr(torchvision.models, build)(num_classes=10)).eval()
    net = make_adaptive(model, dict.fromkeys(STAGES["torchvision"], SACT(eps=0.1)))
    set_heads(net, 0.0, 1.0)
    with torch.no_grad():
        sparse = net(torch.ones(1, 3, 64, 64).cumsum(3) / 32 - 1)
        with dense_execution(net):
            dense = net(torch.ones(1, 3, 64, 64).cumsum(3) / 32 - 1)
    assert relative(sparse.logits, dense.logits) < 1e-5


def test_act_is_sact_with_a_uniform_map():
    torch.manual_seed(0)
    model = randomise(get_model("zoo:resnet20_cifar"))
    nets = [make_adaptive(copy.deepcopy(model), dict.fromkeys(STAGES["resnet20"], c)).eval() for c in (ACT(), SACT())]
    for net in nets:
        set_heads(net, -0.3, 0.0)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        act, sact = (net(x) for net in nets)
    assert relative(sact.logits, act.logits) < 1e-5
    for a, s in zip(act.stages, sact.stages):
        assert torch.allclose(s.ponder_cost, a.ponder_cost[:, None, None].expand_as(s.ponder_cost))


@pytest.mark.parametrize("config", [ACT(), SACT()])
def test_means_of_a_stage_come_from_the_op(config):
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        out = cifar_net(config).eval()(torch.randn(3, 3, 32, 32))
        with Recorder():
            loss, units = ponder_loss(out), [stage.mean_units() for stage in out.stages]
    assert seen.count("accel.ponder_cost.default") == 2 * len(out.stages)
    assert loss.item() == pytest.approx(out.tau * sum(stage.ponder_cost.mean().item() for stage in out.stages))
    for stage, mean in zip(out.stages, units):
        assert torch.equal(mean, stage.num_units.double().view(3, -1).mean(1))


@pytest.mark.parametrize("config", [ACT(tau=0.1), SACT(tau=0.1)])
def test_the_ponder_loss_teaches_the_heads(config):
    net = cifar_net(config).train()
    out = net(torch.randn(4, 3, 32, 32))
    loss = ponder_loss(out)
    assert loss.item() == pytest.approx(0.1 * sum(s.ponder_cost.mean().item() for s in out.stages))
    expected = 0.1 / out.stages[0].ponder_cost.numel()
    (gradient,) = torch.autograd.grad(loss, out.stages[0].ponder_cost, retain_graph=True)
    assert torch.equal(gradient, torch.full_like(gradient, expected))  # that of a mean, to the bit
    loss.backward()
    first = net.layer1[0].halting.conv
    assert first.bias.grad < 0  # a larger score halts earlier: rho falls
    assert first.weight.grad.abs().sum() > 0
    assert net.conv1.weight.grad.abs().sum() > 0


def test_gradient_of_rho_in_a_network_is_minus_one_per_running_unit():
    net = cifar_net(SACT())
    set_heads(net, -3.0, 0.0)
    out = net(torch.randn(1, 3, 32, 32))
    stage = out.stages[0]
    stage.ponder_cost.sum().backward()
    h = torch.sigmoid(torch.tensor(-3.0))
    expected = -(h * (1 - h)) * stage.ponder_cost.numel()  # N = 3: both heads count, each with -1
    for unit in (0, 1):
        assert net.layer1[unit].halting.conv.bias.grad.item() == pytest.approx(expected.item(), rel=1e-4)


def test_executed_macs_count_what_ran():
    net = cifar_net(SACT())
    set_heads(net, -40.0, 0.0)
    with torch.no_grad():
        full = net(torch.randn(1, 3, 32, 32)).stages
    sizes, widths = (1024, 256, 64), (16, 32, 64)
    for index, stage in enumerate(full):
        positions, width = sizes[index], widths[index]
        unit = 2 * positions * width * width * 9
        narrower = 0 if index == 0 else positions * width * (width - widths[index - 1]) * 9
        heads = 2 * (positions * width * 9 + width)
        assert stage.executed_macs.tolist() == [3 * unit - narrower + heads]
    set_heads(net, 80.0, 0.0)
    with torch.no_grad():
        once = net(torch.randn(1, 3, 32, 32)).stages
    assert once[0].executed_macs.item() == 2 * 1024 * 16 * 16 * 9 + 1024 * 16 * 9 + 16


def test_positions_that_halted_keep_their_state_and_are_not_read():
    """What lies beyond the reach of the active positions may be anything: sparse execution never reads it."""
    net = cifar_net(SACT())
    unit = net.layer1._sparse[1]
    state = torch.randn(1, 16, 20, 20).to(memory_format=torch.channels_last)
    running = torch.zeros(1, 20, 20, dtype=torch.bool)
    running[0, 4:7, 4:7] = True
    with torch.no_grad():
        expected = unit(state, running)
        poisoned = state.clone()
        poisoned[:, :, 10:, :] = float("nan")
        out = unit(poisoned, running)
    assert torch.equal(out[:, :, :9, :], expected[:, :, :9, :])
    assert torch.equal(expected[:, :, ~running[0]], state[:, :, ~running[0]])


def test_empty_and_full_active_sets():
    net = cifar_net(SACT())
    unit, dense = net.layer1._sparse[1], net.layer1[1]
    state = torch.randn(2, 16, 9, 7).relu().to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(unit(state, torch.zeros(2, 9, 7, dtype=torch.bool)), state)
        assert relative(unit(state, torch.ones(2, 9, 7, dtype=torch.bool)), dense(state)) < 1e-5


def test_parameter_names_and_copies():
    torch.manual_seed(0)
    model = get_model("zoo:resnet20_cifar")
    names = set(model.state_dict())
    net = make_adaptive(copy.deepcopy(model), dict.fromkeys(STAGES["resnet20"], SACT())).eval()
    assert names <= set(net.state_dict())
    heads = [n for n, _ in net.named_modules() if n.endswith("halting.conv")]
    assert heads == [f"layer{s}.{k}.halting.conv" for s in (1, 2, 3) for k in (0, 1)]
    twin = copy.deepcopy(net)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = net(x).logits
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(net(x).logits, before)
        assert not torch.equal(twin(x).logits, before)
    assert len(adaptive_stages(twin)) == 3


class PlainUnit(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.body(x))


def test_a_described_unit_of_ones_own():
    net = nn.Sequential(nn.Sequential(PlainUnit(4), PlainUnit(4), PlainUnit(4)))
    with pytest.raises(ConversionError, match="residual units"):
        make_adaptive(copy.deepcopy(net), {"0": SACT()})
    register_unit(PlainUnit, lambda u: UnitDescription((BranchStep(u.body, None, "none"),), "relu", None))
    net = make_adaptive(net, {"0": SACT(eps=0.3)}).eval()
    set_heads(net, 0.0, 3.0)
    x = torch.randn(2, 4, 11, 13)
    with torch.no_grad():
        sparse = net(x)
        with dense_execution(net):
            dense = net(x)
    assert relative(sparse.logits, dense.logits) < 1e-5


def test_a_stage_that_changes_size_in_the_middle_is_refused():
    model = torchvision.models.resnet18()
    model.layer1 = nn.Sequential(*model.layer1, *model.layer2)
    with pytest.raises(ConversionError, match=r"layer1\.2"):
        make_adaptive(model, {"layer1": SACT()})


def test_convert_model_makes_every_stage_adaptive_and_revert_takes_it_back():
    torch.manual_seed(0)
    model = randomise(get_model("zoo:resnet20_cifar"))
    x = torch.randn(2, 3, 32, 32)
    net = accel.convert_model(model, SACT(tau=0.01), example_inputs=x)
    assert [type(stage.config) for stage in adaptive_stages(net)] == [SACT] * 3
    assert not adaptive_stages(model)
    with torch.no_grad():
        out = net(x)
        assert out.tau == 0.01
        assert torch.equal(accel.revert_model(net)(x), model(x))
    counted = accel.count_macs(net, x, per_image=True)
    outside = 3 * 16 * 9 * 1024 + 64 * 10  # stem and classifier
    assert torch.equal(counted, sum(stage.executed_macs for stage in out.stages) + outside)


def test_rules_mix_adaptive_stages_and_perforated_layers():
    model, x = randomise(get_model("zoo:resnet20_cifar")), torch.randn(1, 3, 32, 32)
    rules = accel.Rules({"layer[23]": SACT(), "layer[23].*": None, "layer1.*": accel.Perforate(keep=0.5), "*": None})
    net = accel.convert_model(model, rules, example_inputs=x)
    assert len(adaptive_stages(net)) == 2
    assert net.layer1[0].conv1.config == accel.Perforate(keep=0.5)
    with pytest.raises(ConfigError, match=r"layer2\.0\.conv1 lies in an adaptive stage"):
        accel.convert_model(model, {"layer2": SACT(), "*": accel.Perforate(keep=0.5)}, example_inputs=x)
    with pytest.raises(ConversionError, match="share tau"):
        accel.convert_model(model, {"layer1": SACT(tau=0.1), "*": SACT()}, example_inputs=x)
    with pytest.raises(ConfigError, match=r"'layer9' matches no sequence of residual units"):
        accel.convert_model(model, {"layer9": SACT()}, example_inputs=x)


@pytest.mark.parametrize(
    ("name", "options", "side", "flops"),
    [
        ("zoo:resnet32_cifar", {}, 32, 137_725_184),
        ("zoo:resnet110_cifar", {}, 32, 505_775_360),
        ("torchvision:resnet101", {"num_classes": 1001}, 224, 15_602_814_976),
    ],
)
def test_dense_flops_are_those_of_the_official_counters(name, options, side, flops):
    """The constants of the authors' tests (cifar_model_test.py, imagenet_model_test.py); FLOPs = 2 x MACs."""
    assert 2 * accel.count_macs(get_model(name, **options), torch.zeros(1, 3, side, side)) == flops


def test_adaptive_models_are_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model, x = randomise(get_model("zoo:resnet20_cifar")), torch.randn(2, 3, 32, 32)
    net = accel.convert_model(model, {"layer3": ACT(tau=0.01), "*": SACT(tau=0.01, eps=0.1)}, example_inputs=x)
    randomise(net, 1)
    accel.save_converted(net, tmp_path / "saved")
    loaded = accel.load_converted(tmp_path / "saved", get_model("zoo:resnet20_cifar"))
    assert [stage.config for stage in adaptive_stages(loaded)] == [stage.config for stage in adaptive_stages(net)]
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, net(x).logits)
    with pytest.raises(WeightsError, match="another model"):
        accel.load_converted(tmp_path / "saved", torchvision.models.alexnet())


def test_frozen_batch_norms_as_pretrained_detectors_have_them():
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10, norm_layer=FrozenBatchNorm2d).eval()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    net = make_adaptive(model, dict.fromkeys(STAGES["torchvision"], SACT(eps=0.1)))
    set_heads(net, 0.0, 1.0)
    x = torch.randn(2, 3, 64, 48)
    fused, one_by_one, dense = three_ways(net, x)
    assert relative(fused.logits, dense.logits) < 1e-5
    assert relative(one_by_one.logits, dense.logits) < 1e-5


@pytest.mark.parametrize("config", [ACT(eps=0.05), SACT(eps=0.05)])
def test_the_engine_and_the_units_one_by_one_agree(config):
    """The latter is how other backends run: the ops of the public interface, unit after unit."""
    net = cifar_net(config)
    x = torch.randn(4, 3, 29, 35) * torch.tensor([0.1, 1.0, 3.0, 9.0]).view(4, 1, 1, 1)
    spread_scores(net, x)
    with torch.no_grad():
        fused = net(x)
        for stage in adaptive_stages(net):
            stage._fused.run = lambda *_: None
        one_by_one = net(x)
    assert relative(fused.logits, one_by_one.logits) < 1e-5
    for a, b in zip(fused.stages, one_by_one.stages):
        assert torch.equal(a.num_units, b.num_units) and torch.equal(a.executed_macs, b.executed_macs)
        assert a.dense_macs == b.dense_macs and a.halting_distribution.shape == b.halting_distribution.shape


def test_the_reference_runs_full_units_densely_and_sparse_ones_masked(monkeypatch):
    net = cifar_net(SACT())
    stage, x = net.layer1, torch.randn(2, 16, 10, 12)
    calls, masked = [], SparseUnit.__call__
    monkeypatch.setattr(SparseUnit, "__call__", lambda *given: calls.append(1) or masked(*given))
    few = torch.zeros(2, 10, 12, dtype=torch.bool)
    few[0, 2, 3] = True
    with torch.no_grad(), accel.ops.use_backend("reference"):
        full = stage._run_unit(1, x, ~few)
        assert not calls
        some = stage._run_unit(1, x, few)
    assert calls
    expected = stage[1](x)
    assert relative(full, torch.where(few[:, None], x, expected)) < 1e-6
    assert relative(some, torch.where(few[:, None], expected, x)) < 1e-5


@pytest.mark.parametrize("spatial", [False, True])
def test_a_head_gives_back_gradients_in_the_layout_of_its_input(spatial):
    torch.manual_seed(0)
    head = HaltingHead(8, spatial)
    x = torch.randn(4, 8, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(head(x).square().sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last) and gradient.abs().sum() > 0


@pytest.mark.parametrize("order", [(1, 2, 1), (2, 1, 2)])
@pytest.mark.parametrize("config", [ACT(), SACT()], ids=["ACT", "SACT"])
def test_a_change_of_threads_changes_nothing(config, order):
    """Scratch is kept from call to call, with borders of zeros: those of another number of threads lie elsewhere."""
    net = cifar_net(config)
    set_heads(net, -1.0)
    inputs = [torch.randn(16, 3, 32, 32), torch.randn(5, 3, 32, 32), torch.randn(16, 3, 29, 35)]
    before = torch.get_num_threads()
    try:
        with torch.no_grad(), dense_execution(net):
            expected = [net(x).logits for x in inputs]
        for threads in order:
            torch.set_num_threads(threads)
            with torch.no_grad():
                got = [net(x).logits for x in inputs]
            assert max(map(relative, got, expected)) < 1e-5
    finally:
        torch.set_num_threads(before)
