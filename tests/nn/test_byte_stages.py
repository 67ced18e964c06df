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
from accel.nn.stage_outputs import recorded_stages
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
    """Stage by stage, each for what it reads in the network, to the bit; on the reference, where sums of heads have
    another order, but for the last ones of scores and averages."""
    net, x, read = byte_net(config), pictures(4, seed=3), {}
    handles = [s.register_forward_pre_hook(lambda s, args: read.update({s: args[0]})) for s in adaptive_stages(net)]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    for stage, given in read.items():
        (sparse, one_by_one, dense), did = did_of(three_ways, stage, given)
        assert stage._fused._plans[tuple(given.shape[2:])] is not None
        for out, record in zip((sparse, one_by_one), did):
            assert torch.equal(record.num_units, did[2].num_units)
            assert torch.equal(record.executed_macs, did[2].executed_macs)
            torch.testing.assert_close(record.ponder_cost, did[2].ponder_cost)
            exact = isinstance(config, PACT) or out is sparse
            assert torch.equal(out, dense) if exact else relative(out, dense) < 1e-6
        assert 0 < float(did[0].executed_macs.sum()) < 0.98 * len(x) * did[0].dense_macs


def did_of(run, *args) -> tuple:
    """What a call returns, and what the stages did in it."""
    with recorded_stages() as did:
        return run(*args), did


@each_config
def test_a_network_equals_its_dense_execution_and_is_near_its_fp32_form(config):
    net, x = byte_net(config), pictures(4, seed=3)
    with torch.no_grad():
        first = net(x)
        with dense_execution(net):
            dense = net(x)
        with floating():
            fp32 = net(x)
    assert len(first.stages) == len(dense.stages) == 3  # the first call compares two ways to run, and records one
    assert all(map(torch.equal, said(first), said(dense)))
    assert 1e-5 < relative(first.logits, fp32.logits) < 0.3  # it did run in eight bits
    assert all(stage.config.in_bytes and stage.in_bytes for stage in adaptive_stages(net))


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
    assert all(map(torch.equal, said(sparse), said(dense)))


@each_config
def test_saved_loaded_copied_and_reverted(config, tmp_path):
    net, x = byte_net(config), pictures(3, seed=3)
    accel.save_converted(net, tmp_path / "net")
    loaded = accel.load_converted(tmp_path / "net", CifarResNet(20).eval())
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
    for layer in list(net.layer2.modules()):
        if isinstance(layer, PerforatedConv2d):
            layer.release()
    accel.save_converted(net, tmp_path)
    with pytest.raises(WeightsError, match="lacks the scales of stage 'layer2'"):
        accel.load_converted(tmp_path, CifarResNet(20))


def test_an_adaptive_network_as_it_was_trained():
    """Rules for its convolutions bring it into eight bits; its heads stay as they are."""
    trained, x = get_model("zoo:resnet32_cifar_sact").eval(), pictures(6, 32, seed=5)
    net = convert(trained, WHOLE, x)
    config = dataclasses.replace(trained.layer1.config, precision="int8")
    assert all(stage.config == config for stage in adaptive_stages(net))
    heads = [head for head in net.modules() if isinstance(head, HaltingHead)]
    assert len(heads) == 12 and not any(isinstance(m, PerforatedConv2d) for head in heads for m in head.modules())
    sparse, _, dense = three_ways(net, x)
    with torch.no_grad():
        fp32 = trained(x)
    assert all(map(torch.equal, said(sparse), said(dense)))
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
    assert all(map(torch.equal, said(three[0]), said(three[2])))


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
        (torch.full((2, 3, 20, 20), float("nan")), "NaN or infinity"),
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
    assert all(map(torch.equal, said(sparse), said(dense)))


def test_hooks_within_a_unit_see_its_numbers():
    net, x, seen = byte_net(CONFIGS["PACT, positions"]), pictures(2, seed=3), []
    handle = net.layer2[1].conv2.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    with torch.no_grad():
        hooked = net(x)
        with dense_execution(net):
            assert relative(hooked.logits, net(x).logits) < 0.02
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
