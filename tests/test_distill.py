"""Fine-tuning: what is learnt, what stays, and that an interrupted run ends where an uninterrupted one does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import accel
from accel import Perforate
from accel.distill import distance, reestimate_norms
from accel.errors import ConfigError, DataError


def network(classes=0):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3, padding=1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)] if classes else []
    return nn.Sequential(*layers, *head).eval()


@pytest.fixture(scope="module")
def pictures():
    noise = [torch.randn(4, 2, 14, 14, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    return [3 * F.avg_pool2d(x, 5, 1) for x in noise]  # smooth, as pictures are


def fast_of(model, pictures, interpolate="fitted"):
    config = Perforate(keep=0.5, mask="lattice", interpolate=interpolate)
    return accel.convert_model(model, config, example_inputs=pictures[0], calibration=pictures)


def gap(fast, model, pictures):
    with torch.no_grad():
        return float(sum(distance(fast(x), model(x)) for x in pictures))


@pytest.mark.parametrize("interpolate, gain", [("nearest", 0.9), ("fitted", 0.98)])  # a fit leaves less to learn
@pytest.mark.parametrize("features", [0.0, 0.1])
def test_the_student_comes_closer_and_the_teacher_stays(pictures, interpolate, gain, features):
    model = network()
    reestimate_norms(model, pictures)  # as those of a trained network, fitting its data
    fast = fast_of(model, pictures, interpolate)
    before, weights = gap(fast, model, pictures), copy.deepcopy(model.state_dict())
    fits = copy.deepcopy([layer.fit.tensors() for layer in (fast[0], fast[3])]) if interpolate == "fitted" else []
    tuned = accel.finetune(fast, teacher=model, data=pictures, steps=60, lr=3e-3, features=features)
    assert tuned is fast and not fast.training
    assert gap(fast, model, pictures) < gain * before
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    for layer, kept in zip((fast[0], fast[3]), fits):
        assert all(torch.equal(kept[name], tensor) for name, tensor in layer.fit.tensors().items())


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(pictures, tmp_path):
    model = network()

    def stop(step, _loss):
        if step == 7:
            raise KeyboardInterrupt

    options = {"teacher": model, "data": pictures, "steps": 12, "lr": 1e-3, "checkpoint_every": 3}
    whole = accel.finetune(fast_of(model, pictures), **options)
    with pytest.raises(KeyboardInterrupt):
        accel.finetune(fast_of(model, pictures), **options, checkpoint=tmp_path / "c.pt", log=stop)
    steps = []
    resumed = accel.finetune(
        fast_of(model, pictures), **options, checkpoint=tmp_path / "c.pt", log=lambda step, _: steps.append(step)
    )
    assert steps == [6, 7, 8, 9, 10, 11]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert torch.equal(whole(pictures[0]), resumed(pictures[0]))


def test_labels_alone_and_mixed(pictures):
    model = network(classes=3)
    labelled = [(x, torch.arange(4) % 3) for x in pictures]
    losses = []
    fast = fast_of(model, pictures)
    with torch.no_grad():
        logits = fast.train()(pictures[0])
    accel.finetune(fast_of(model, pictures), data=labelled, steps=1, log=lambda _, loss: losses.append(loss))
    assert losses[0] == pytest.approx(float(F.cross_entropy(logits, labelled[0][1])), rel=1e-5)
    with torch.no_grad():
        target = model(pictures[0])
    expected = 0.25 * F.cross_entropy(logits, labelled[0][1]) + 0.75 * distance(logits, target)
    accel.finetune(
        fast_of(model, pictures),
        teacher=model,
        data=labelled,
        labels=0.25,
        steps=1,
        log=lambda _, loss: losses.append(loss),
    )
    assert losses[1] == pytest.approx(float(expected), rel=1e-5)


def test_a_function_of_the_step_may_give_the_batches(pictures):
    model, asked = network(), []

    def batch(step):
        asked.append(step)
        return pictures[step % 2]

    accel.finetune(fast_of(model, pictures), teacher=model, data=batch, steps=3)
    assert asked == [0, 1, 2, 0, 1, 2]  # the statistics of the norms come last


def test_norms_get_the_statistics_of_the_data(pictures):
    model = network()
    reestimate_norms(model, pictures)
    with torch.no_grad():
        values = [model[0](x).transpose(0, 1).flatten(1) for x in pictures]
    torch.testing.assert_close(model[1].running_mean, torch.stack([v.mean(1) for v in values]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([v.var(1) for v in values]).mean(0))
    assert model[1].momentum == 0.1 and not model[1].training


def test_what_is_refused(pictures):
    model = network()
    fast = fast_of(model, pictures)
    for options, message in [
        ({}, "labels= needs batches"),
        ({"labels": 0.5}, "distillation needs a teacher"),
        ({"teacher": model, "labels": 2}, r"labels must lie in \[0, 1\]"),
        ({"teacher": fast}, "share parameters"),
        ({"teacher": nn.Conv2d(2, 4, 1), "features": 1.0}, "teacher has no layer '0'"),
    ]:
        with pytest.raises((ConfigError, DataError), match=message):
            accel.finetune(fast, data=pictures, steps=1, **options)
    with pytest.raises(DataError, match="empty"):
        accel.finetune(fast, teacher=model, data=[], steps=1)
