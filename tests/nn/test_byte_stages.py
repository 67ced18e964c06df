"""ACT, SACT and PACT in eight bits: conversions, against dense execution of the same quantized network."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import ACT, PACT, SACT, Perforate, dense_execution
from accel.config import config_from_dict
from accel.errors import ConfigError, DataError, WeightsError
from accel.nn.adaptive import HaltingHead, adaptive_stages, make_adaptive
from accel.nn.adaptive_cell import AdaptiveCell
from accel.nn.perforated import PerforatedConv2d
from accel.nn.quantized import floating
from accel.tests.nn.eight_bits import WHOLE, convert, pictures
from accel.tests.nn.halting_nets import relative, spread_scores, three_ways
from accel.zoo.cifar import CifarResNet
from accel.zoo.registry import get_model

CONFIGS = {
    "ACT": ACT(precision="int8"),
    "SACT": SACT(precision="int8"),
    "PACT, images": PACT(spatial=False, precision="int8"),
    "PACT, positions": PACT(precision="int8"),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def dense_net() -> nn.Module:
    torch.manual_seed(0)
    net = CifarResNet(20).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return net


def byte_net(config) -> nn.Module:
    """In eight bits, its heads telling images and positions apart."""
    net = convert(dense_net(), {"layer[123]": config}).eval()
    with floating():
        return spread_scores(net, pictures(seed=2))


def said(output) -> list[torch.Tensor]:
    return [output.logits, *(t for stage in output.stages for t in (stage.ponder_cost, stage.num_units))]


@each_config
def test_sparse_execution_equals_dense_execution(config):
    net, x = byte_net(config), pictures(4, seed=3)
    sparse, one_by_one, dense = three_ways(net, x)
    for other in (sparse, one_by_one):
        for stage, expected in zip(other.stages, dense.stages):
            assert torch.equal(stage.num_units, expected.num_units)
            assert torch.equal(stage.executed_macs, expected.executed_macs)
            torch.testing.assert_close(stage.ponder_cost, expected.ponder_cost)
        assert relative(other.logits, dense.logits) < 1e-5
    assert 0 < sparse.executed_share < 0.95
    assert all(stage.config.in_bytes and stage.in_bytes for stage in adaptive_stages(net))
    with torch.no_grad(), floating():
        assert 1e-5 < relative(sparse.logits, net(x).logits) < 0.2  # it did run in eight bits


@each_config
@pytest.mark.parametrize("bias", [-30.0, 30.0], ids=["never", "at once"])
def test_heads_that_never_halt_and_heads_that_halt_at_once(config, bias):
    net, x = convert(dense_net(), {"layer[123]": config}).eval(), pictures(3, seed=3)
    for module in net.modules():
        if isinstance(module, HaltingHead):
            nn.init.constant_(module.conv.bias, bias)
    sparse, _, dense = three_ways(net, x)
    units = 3 if bias < 0 else 1
    assert all((stage.num_units == units).all() for stage in sparse.stages)
    assert relative(sparse.logits, dense.logits) < 1e-6


@pytest.mark.parametrize("batch", [1, 5])
def test_threads_and_batches_change_nothing(batch):
    net, x, before = byte_net(CONFIGS["SACT"]), pictures(batch, seed=4), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                stages = net(x).stages
                found.append([t for stage in stages for t in (stage.num_units, stage.executed_macs)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


@each_config
def test_saved_loaded_copied_and_reverted(config, tmp_path):
    net, x = byte_net(config), pictures(3, seed=3)
    accel.save_converted(net, tmp_path / "net")
    loaded = accel.load_converted(tmp_path / "net", CifarResNet(20))
    with torch.no_grad():
        expected = said(net(x))
        for other in (loaded, copy.deepcopy(net)):
            assert all(map(torch.equal, said(other(x)), expected))
    assert [stage.config.to_dict() for stage in adaptive_stages(loaded)] == [
        stage.config.to_dict() for stage in adaptive_stages(net)
    ]
    assert config_from_dict(loaded.layer1.config.to_dict()).in_bytes
    dense = accel.revert_model(net)
    assert not any(isinstance(module, (HaltingHead, PerforatedConv2d)) for module in dense.modules())
    with torch.no_grad():
        torch.testing.assert_close(dense(x), dense_net()(x))


def test_a_folder_without_the_scales_of_a_stage_is_refused(tmp_path):
    net = byte_net(CONFIGS["SACT"])
    for name, layer in list(net.layer2.named_modules()):
        if isinstance(layer, PerforatedConv2d):
            layer.release()
    accel.save_converted(net, tmp_path)
    with pytest.raises(WeightsError, match="lacks the scales of stage 'layer2'"):
        accel.load_converted(tmp_path, CifarResNet(20))


def test_an_adaptive_network_as_it_was_trained():
    """Rules for its convolutions bring it into eight bits; its heads stay as they are."""
    trained, x = get_model("zoo:resnet32_cifar_sact").eval(), pictures(6, 32, seed=5)
    net = convert(trained, WHOLE, x)
    assert all(stage.config == dataclasses.replace(trained.layer1.config, precision="int8") for stage in adaptive_stages(net))
    heads = [head for head in net.modules() if isinstance(head, HaltingHead)]
    assert len(heads) == 12 and not any(isinstance(m, PerforatedConv2d) for head in heads for m in head.modules())
    sparse, _, dense = three_ways(net, x)
    with torch.no_grad():
        fp32 = trained(x)
    assert relative(sparse.logits, dense.logits) < 1e-4
    assert relative(sparse.logits, fp32.logits) < 0.1
    assert abs(float(sparse.executed_share) - float(fp32.executed_share)) < 0.03
    assert not any(stage.config.in_bytes for stage in adaptive_stages(trained))
    stages_only = convert(trained, {"layer*.halting.*": None, "layer*": WHOLE}, x)
    assert type(stages_only.conv1) is nn.Conv2d and stages_only.layer3.in_bytes
    again = accel.revert_model(net)
    assert not adaptive_stages(again)


def test_a_network_in_eight_bits_made_adaptive():
    """The other way round: it keeps its precision, and the whole network has one beside the stages."""
    net, x = convert(dense_net()), pictures(3, seed=3)
    adaptive = accel.convert_model(net, SACT(), example_inputs=x)
    assert all(stage.in_bytes and stage.config.in_bytes for stage in adaptive_stages(adaptive))
    both = convert(dense_net(), {"layer[123]": SACT(precision="int8"), "*": WHOLE})
    assert isinstance(both.conv1, PerforatedConv2d) and both.layer1.in_bytes
    three = three_ways(both, x)
    assert relative(three[0].logits, three[2].logits) < 1e-5


def test_rules_that_a_stage_cannot_follow():
    net, trained = dense_net(), make_adaptive(dense_net(), {"layer1": SACT()})
    with pytest.raises(ConfigError, match=r"precision 'int8' of stage 'layer1' needs data: pass calibration="):
        accel.convert_model(net, SACT(precision="int8"), example_inputs=pictures())
    with pytest.raises(ConfigError, match=r"layer1\.0\.conv1 lies in an adaptive stage"):
        convert(net, {"layer1": SACT(), "layer1.*": WHOLE})
    with pytest.raises(ConfigError, match=r"layer1\.0\.conv1 lies in an adaptive stage"):
        convert(trained, Perforate(keep=0.5, precision="int8"))
    with pytest.raises(ConfigError, match=r"leave 'layer1\.0\.conv1' in fp32: let them match all"):
        convert(trained, {"*.conv2": WHOLE})
    with pytest.raises(ConfigError, match=r"precision 'int8' of stage 'layer1' needs data: convert the network by"):
        make_adaptive(net, {"layer1": SACT(precision="int8")})
    with pytest.raises(ConfigError, match="a cell computes in fp32, got precision 'int8'"):
        AdaptiveCell(nn.GRUCell(4, 4), ACT(precision="int8"))
    with pytest.raises(ConfigError, match="unknown precision 'int4': choose one of fp32, int8"):
        SACT(precision="int4")
    assert not adaptive_stages(net)


def test_bad_calibration_is_refused():
    for x, message in (
        (torch.zeros(2, 3, 20, 20), "nothing but zeros"),
        (torch.full((2, 3, 20, 20), float("nan")), "NaN or infinities"),
    ):
        net = dense_net()
        with torch.no_grad():
            net.bn1.bias.zero_(), net.bn1.running_mean.zero_()
        with pytest.raises(DataError, match=message):
            accel.convert_model(net, SACT(precision="int8"), example_inputs=pictures(), calibration=[x])


@pytest.mark.parametrize("config", [SACT(precision="int8"), PACT(precision="int8")], ids=["SACT", "PACT"])
def test_training_goes_through_fake_quantization(config):
    net, x, y = byte_net(config), pictures(4, seed=3), torch.tensor([0, 1, 2, 3])
    net.requires_grad_(True)
    with dense_execution(net):
        with torch.no_grad():
            bytes = net(x)
        faked = net(x)  # under autograd
    if isinstance(config, SACT):
        assert relative(faked.logits.detach(), bytes.logits) < 0.05
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    out = net.train()(x)
    (F.cross_entropy(out.logits, y) + accel.ponder_loss(out)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in net.named_parameters() if "layer" in n)
    optimizer.step()
    sparse, _, dense = three_ways(net.eval(), x)
    assert not torch.equal(sparse.logits, bytes.logits)
    assert relative(sparse.logits, dense.logits) < 1e-5


def test_hooks_within_a_unit_see_its_numbers():
    net, x, seen = byte_net(CONFIGS["PACT, positions"]), pictures(2, seed=3), []
    handle = net.layer2[1].conv2.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    with torch.no_grad():
        hooked = net(x)
        with dense_execution(net):
            assert relative(hooked.logits, net(x).logits) < 1e-6
        handle.remove()
        again = net(x)
    assert seen == [(torch.float32, torch.float32)] * 2
    assert relative(hooked.logits, again.logits) < 0.1


def test_reports_say_so():
    x = pictures(2, seed=3)
    net = byte_net(CONFIGS["SACT"])
    rows = {row["layer"]: row for row in accel.profile(net, x, repeats=1).rows}
    assert rows["layer1"]["note"] == "in int8" and rows["layer1"]["precision"] == "int8"
    assert int(accel.count_macs(net, x)) == int(rows["layer1"]["executed_macs"]) + sum(
        int(rows[name]["executed_macs"]) for name in ("conv1", "layer2", "layer3", "linear")
    )
    plan = accel.plan_conversion(dense_net(), CONFIGS["SACT"], example_inputs=x, calibration=[pictures()])
    assert "in int8" in str(plan)
