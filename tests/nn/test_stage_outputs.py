"""What a stage did travels with the call: threads, trunks called twice, nested models, exceptions, copies."""

import asyncio
import contextvars
import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn

import accel
from accel.config import ACT, SACT
from accel.errors import ConversionError
from accel.nn import stage_outputs
from accel.nn.adaptive import AdaptiveOutput, dense_execution, make_adaptive
from accel.nn.stage_outputs import recorded_stages
from accel.tests.threads import in_threads
from accel.zoo.registry import get_model


def net_of(config, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    net = accel.convert_model(get_model("zoo:resnet20_cifar"), config, example_inputs=torch.randn(1, 3, 16, 16))
    for name, module in net.named_modules():
        if name.endswith("halting.conv"):
            nn.init.constant_(module.bias, -1.0)
    return net.eval()


class Pair(nn.Module):
    """A Siamese network: one trunk, called twice in one forward."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def forward(self, a, b):
        return self.trunk(a) - self.trunk(b)


@pytest.mark.parametrize("densely", [False, True])
@pytest.mark.parametrize("config", [ACT(), SACT()], ids=["ACT", "SACT"])
def test_a_trunk_called_twice_counts_twice(config, densely):
    torch.manual_seed(0)
    model = Pair(get_model("zoo:resnet20_cifar")).eval()
    net = make_adaptive(model, {f"trunk.layer{k}": config for k in (1, 2, 3)})
    a, b = torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)[:2] * 3
    with torch.set_grad_enabled(densely):
        out = net(a, b)
        with recorded_stages() as did:
            net.trunk(a)
            net.trunk(b)
    assert [stage.name for stage in out.stages] == [f"trunk.layer{k}" for k in (1, 2, 3)] * 2
    for got, expected in zip(out.stages, did, strict=True):
        assert torch.allclose(got.ponder_cost, expected.ponder_cost, atol=1e-5)
        assert torch.equal(got.executed_macs, expected.executed_macs)
    assert not torch.equal(out.stages[0].ponder_cost, out.stages[3].ponder_cost)
    ponder = sum(float(stage.ponder_cost.detach().mean()) for stage in did)
    assert float(accel.ponder_loss(out)) == pytest.approx(out.tau * ponder, rel=1e-5)
    counted = accel.count_macs(net, (a, b), per_image=True)
    assert torch.equal(counted, sum(stage.executed_macs for stage in out.stages) + 2 * (3 * 16 * 9 * 256 + 64 * 10))


def test_the_ponder_loss_reaches_the_heads_by_every_call():
    model = make_adaptive(Pair(get_model("zoo:resnet20_cifar")), {"trunk.layer2": SACT(tau=1.0)}).train()
    a, b = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    head = model.trunk.layer2[0].halting.conv.bias
    out = model(a, b)
    assert len(out.stages) == 2
    (both,) = torch.autograd.grad(accel.ponder_loss(out), head, retain_graph=True)
    (first,) = torch.autograd.grad(out.stages[0].ponder_cost.mean(), head, retain_graph=True)
    (second,) = torch.autograd.grad(out.stages[1].ponder_cost.mean(), head)
    assert first < 0 and second < 0 and torch.allclose(both, first + second)


@pytest.mark.parametrize("densely", [False, True])
def test_threads_with_batches_of_their_own(densely):
    net = net_of(SACT())
    inputs = [torch.randn(count, 3, 16, 16) for count in (1, 3, 2)]
    with torch.no_grad():
        expected = [net(x) for x in inputs]
    faults, start = [], threading.Barrier(len(inputs))

    def call(x, wanted):
        start.wait()
        for _ in range(20):
            with torch.no_grad():
                got = net(x)
            if (
                not torch.allclose(got.logits, wanted.logits, atol=1e-4)
                or [s.name for s in got.stages] != NAMES
                or not all(torch.equal(g.num_units, w.num_units) for g, w in zip(got.stages, wanted.stages))
            ):
                faults.append(got)

    def run(x, wanted):
        try:
            if densely:
                with dense_execution(net):
                    call(x, wanted)
            else:
                call(x, wanted)
        except Exception as error:  # a thread's exception would be lost
            faults.append(error)

    in_threads(run, zip(inputs, expected))
    assert not faults
    assert not any(stage._dense for stage in (net.layer1, net.layer2, net.layer3))


NAMES = ["layer1", "layer2", "layer3"]


def test_tasks_that_share_a_context_do_not_share_a_list():
    net = net_of(SACT())
    inputs = [torch.randn(count, 3, 16, 16) for count in (1, 3, 2, 4)]

    def call(x):
        with torch.no_grad():
            return [[len(stage.executed_macs) for stage in net(x).stages] for _ in range(20)]

    async def serve():
        call(inputs[0])
        return await asyncio.gather(*[asyncio.to_thread(call, x) for x in inputs])

    for x, got in zip(inputs, asyncio.run(serve())):
        assert got == [[len(x)] * 3] * 20


def test_a_changed_network_first_called_by_two_threads():
    """One of them prepares the plans anew, the other must not run the old ones meanwhile."""
    net, x = net_of(SACT()), torch.randn(2, 3, 16, 16)
    for _ in range(5):
        with torch.no_grad():
            net(x)
            for parameter in net.layer1.parameters():
                parameter.mul_(0.9)
            with dense_execution(net):
                expected = net(x).logits
        got, start = [], threading.Barrier(2)

        def call(got=got, start=start):
            start.wait()
            with torch.no_grad():
                got.append(net(x).logits)

        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 2 and all((out - expected).norm() < 1e-5 * expected.norm() for out in got)


def test_an_adaptive_model_inside_another_keeps_its_stages():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net_of(ACT())

        def forward(self, x):
            return self.inner(x)

    outer, x = Outer().eval(), torch.randn(1, 3, 16, 16)
    with torch.no_grad(), recorded_stages() as did:
        out = outer(x)
    assert [stage.name for stage in out.stages] == NAMES and did == []
    outer.layer = copy.deepcopy(get_model("zoo:resnet20_cifar").layer1)
    with pytest.raises(ConversionError, match="Outer is adaptive already"):
        make_adaptive(outer, {"layer": SACT()})


class Fails(nn.Module):
    """Raises what it is told to, after its trunk ran."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.error = trunk, None

    def forward(self, x):
        out = self.trunk(x)
        if self.error is not None:
            raise self.error
        return out


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_forward_that_raises_leaves_nothing_behind(error):
    model = make_adaptive(Fails(get_model("zoo:resnet20_cifar")).eval(), {"trunk.layer1": SACT(target=0.5)})
    x = torch.randn(1, 3, 16, 16)
    model.error, tau = error, float(model.trunk.layer1.tau)
    with pytest.raises(type(error)), torch.no_grad():
        model(x)
    model.error = None
    with torch.no_grad():
        assert [stage.name for stage in model(x).stages] == ["trunk.layer1"]
    assert float(model.trunk.layer1.tau) == tau
    if isinstance(error, RuntimeError):  # torch tells no hook of an interrupt
        assert not stage_outputs._of_this_thread()
    stage_outputs._of_this_thread().clear()


def test_a_model_that_catches_what_its_adaptive_part_raised():
    part = make_adaptive(Fails(get_model("zoo:resnet20_cifar")).eval(), {"trunk.layer1": SACT()})
    part.error, x = KeyboardInterrupt(), torch.randn(1, 3, 16, 16)
    with torch.no_grad(), recorded_stages() as did, pytest.raises(KeyboardInterrupt):
        part(x)
    assert did == [] and not stage_outputs._of_this_thread()
    with recorded_stages() as did, torch.no_grad():
        part.trunk.layer1(torch.randn(1, 16, 8, 8))
    assert [stage.name for stage in did] == ["trunk.layer1"]


def test_a_stage_outside_of_its_model_is_nobodys():
    net, x = net_of(SACT()), torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        alone = net.layer1(x)
        with recorded_stages() as did:
            again = net.layer1(x)
        assert len(net(torch.randn(1, 3, 16, 16)).stages) == 3
    assert torch.equal(alone, again) and len(did) == 1 and did[0].num_units.shape == (2, 8, 8)


def test_copies_and_pickles_collect_for_themselves():
    net, x = net_of(SACT()), torch.randn(2, 3, 16, 16)
    stream = io.BytesIO()
    torch.save(net, stream)
    stream.seek(0)
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(stream, weights_only=False)]
    with torch.no_grad():
        expected = net(x)
        for twin in twins:
            got = twin(x)
            assert type(got) is AdaptiveOutput and torch.equal(got.logits, expected.logits)
            assert [stage.name for stage in got.stages] == NAMES
            assert torch.equal(got.stages[1].ponder_cost, expected.stages[1].ponder_cost)


def test_a_reverted_model_has_no_trace_of_stages():
    net, x = net_of(SACT(target=0.5)), torch.randn(2, 3, 16, 16)
    plain = accel.revert_model(net)
    fresh = get_model("zoo:resnet20_cifar")
    assert plain.state_dict().keys() == fresh.state_dict().keys()
    assert [type(module) for module in plain.modules()] == [type(module) for module in fresh.modules()]
    assert [set(a.__dict__) for a in plain.modules()] == [set(b.__dict__) for b in fresh.modules()]
    assert not plain._forward_hooks and not plain._forward_pre_hooks and not plain._forward_hooks_always_called
    fresh.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.allclose(plain(x), fresh.eval()(x), atol=1e-5)


def reads_context_variables() -> bool:
    """Whether torch's compiler takes the reading of one into a graph; that of torch 2.8 breaks there."""
    variable = contextvars.ContextVar("read", default=1)
    try:
        return int(torch.compile(lambda x: x + variable.get(), backend="eager", fullgraph=True)(torch.zeros(()))) == 1
    except torch._dynamo.exc.Unsupported:
        return False


def test_compiled_in_training_as_one_graph():
    if not reads_context_variables():
        pytest.skip("this torch's compiler breaks a graph where a context variable is read")
    net = net_of(SACT()).train()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 16, 16)
    twin = copy.deepcopy(net)
    got, expected = compiled(x), twin(x)
    assert [stage.name for stage in got.stages] == NAMES
    assert torch.allclose(accel.ponder_loss(got), accel.ponder_loss(expected))
    assert torch.allclose(got.logits, expected.logits, atol=1e-4)
    assert not stage_outputs._of_this_thread()


def test_an_empty_batch_ponders_nothing():
    for config in (ACT(target=0.5), SACT(target=0.5)):
        net = net_of(config)
        with torch.no_grad():
            out = net(torch.randn(0, 3, 16, 16))
        assert out.logits.shape == (0, 10) and out.executed_share != out.executed_share
        assert float(accel.ponder_loss(out)) == 0
