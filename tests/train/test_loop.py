import pytest
import torch
import torch.nn.functional as F
from torch import nn

from accel.errors import ConfigError, WeightsError
from accel.train.loop import FitSettings, fit, learning_rate

SETTINGS = FitSettings(steps=12, lr=0.05, checkpoint_every=5)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def loss_of_step(net, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 4, generator=generator)
    return F.cross_entropy(net(x), x[:, :3].argmax(1))


def state(net):
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


def test_training_learns_and_is_deterministic():
    losses = []
    first = fit(model(), loss_of_step, SETTINGS, log=lambda step, loss: losses.append((step, loss)))
    assert [step for step, _ in losses] == list(range(12))
    assert losses[-1][1] < 0.7 * losses[0][1]
    assert not first.training
    assert torch.equal(state(first), state(fit(model(), loss_of_step, SETTINGS)))


def test_an_interrupted_run_ends_like_a_whole_one(tmp_path):
    whole = fit(model(), loss_of_step, SETTINGS)

    def interrupted(net, step):
        if step == 7:
            raise KeyboardInterrupt
        return loss_of_step(net, step)

    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(model(), interrupted, SETTINGS, checkpoint=path)
    steps = []
    resumed = fit(model(), loss_of_step, SETTINGS, checkpoint=path, log=lambda step, _: steps.append(step))
    assert steps == [5, 6, 7, 8, 9, 10, 11]
    assert torch.equal(state(resumed), state(whole))
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    again = fit(model(), loss_of_step, SETTINGS, checkpoint=path)  # nothing left to do
    assert torch.equal(state(again), state(whole))


def test_schedule():
    settings = FitSettings(steps=100, lr=2.0, warmup=0.2)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[19] == pytest.approx(2.0) and rates[20] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.0) and 0 < rates[-1] < 0.01
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)


def test_weight_decay_leaves_vectors_alone():
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.bias.fill_(1.0)
    fit(net, lambda m, _: 0 * (m.weight.sum() + m.bias.sum()), FitSettings(steps=3, lr=0.1, weight_decay=0.5))
    assert net.weight.max() < 1 and net.bias.tolist() == [1.0, 1.0]


def test_bad_checkpoints_and_losses(tmp_path):
    path = tmp_path / "c.pt"
    fit(nn.Linear(2, 2), lambda m, _: m.weight.sum(), FitSettings(steps=1, lr=0.1), checkpoint=path)
    with pytest.raises(WeightsError, match="not a checkpoint of this model"):
        fit(model(), loss_of_step, SETTINGS, checkpoint=path)
    path.write_bytes(b"junk")
    with pytest.raises(WeightsError, match="delete it to start anew"):
        fit(model(), loss_of_step, SETTINGS, checkpoint=path)
    with pytest.raises(FloatingPointError, match="loss of step 0 is nan"):
        fit(model(), lambda m, _: loss_of_step(m, 0) * float("nan"), SETTINGS)


def test_learning_rate_factors_and_frozen_norms():
    start = model().state_dict()
    settings = FitSettings(
        steps=1, lr=0.1, optimizer="sgd", weight_decay=0.0, lr_factors={"3.*": 0.0}, freeze_norms=True
    )
    after = fit(model(), loss_of_step, settings).state_dict()
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    assert moved == {"0.weight", "0.bias", "1.weight", "1.bias"}  # neither the last layer nor the norm's statistics
    with pytest.raises(ConfigError, match=r"lr_factors '\*\.halting\.\*' matches no parameter"):
        fit(model(), loss_of_step, FitSettings(steps=1, lr=0.1, lr_factors={"*.halting.*": 10.0}))


def test_random_numbers_go_on_where_they_stopped(tmp_path):
    def noisy(net, step):
        if step == stop:
            raise KeyboardInterrupt
        return loss_of_step(nn.Sequential(net, nn.Dropout(0.5)), step)

    stop = None
    torch.manual_seed(1)
    whole = fit(model(), noisy, SETTINGS)
    stop = 7
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), noisy, SETTINGS, checkpoint=tmp_path / "c.pt")
    stop = None
    torch.manual_seed(2)
    assert torch.equal(state(fit(model(), noisy, SETTINGS, checkpoint=tmp_path / "c.pt")), state(whole))


def test_the_learning_rate_falls_or_stays():
    falls, stays = (FitSettings(steps=100, lr=0.2, warmup=0.1, schedule=name) for name in ("cosine", "constant"))
    for settings in (falls, stays):
        assert [learning_rate(settings, step) for step in (0, 4, 9)] == pytest.approx([0.02, 0.1, 0.2])
    assert learning_rate(falls, 55) == pytest.approx(0.1) and learning_rate(falls, 99) < 1e-3
    assert {learning_rate(stays, step) for step in range(10, 100)} == {0.2}
    with pytest.raises(ConfigError, match="schedule must be one of cosine, constant, got 'linear'"):
        FitSettings(steps=1, lr=0.1, schedule="linear")
