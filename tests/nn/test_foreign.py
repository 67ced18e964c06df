"""Networks that come with tools of others: feature extractors, pruning, norms of weights, versions."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor

import accel
from accel import SACT, Perforate
from accel.running import one_by_one
from accel.zoo.registry import get_model

HALF = Perforate(keep=0.5, mask="lattice")


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def stepwise(net, x):
    with torch.no_grad(), one_by_one():
        return net(x)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


X = drawn(1, 3, 64, 64)


def test_features_of_a_converted_network(resnet):
    fast = accel.convert_model(resnet, HALF, example_inputs=X)
    features = create_feature_extractor(fast, {"layer1.1.relu_1": "low", "layer3": "high", "fc": "out"})
    modes = {module.training for module in (*fast.modules(), *features.modules())}
    assert modes == {False}
    seen = {}
    for name, key in (("layer1", "low"), ("layer3", "high")):
        fast.get_submodule(name).register_forward_hook(lambda _m, _i, out, key=key: seen.__setitem__(key, out))
    seen["out"] = stepwise(fast, X)
    with torch.no_grad():
        found = features(X)
    assert found.keys() == seen.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, seen[key])


def test_layers_got_from_a_converted_network(resnet):
    fast = accel.convert_model(resnet, HALF, example_inputs=X)
    getter = IntermediateLayerGetter(fast, {"layer1": "low", "layer3": "high"})
    with torch.no_grad():
        found, expected = getter(X), stepwise(getter, X)
    for key in ("low", "high"):
        torch.testing.assert_close(found[key], expected[key])


def test_a_feature_extractor_is_converted_itself(resnet):
    extractor = create_feature_extractor(resnet, {"layer1": "low", "layer3": "high"}).eval()
    fast = accel.convert_model(extractor, HALF, example_inputs=X)
    whole = accel.convert_model(extractor, Perforate(keep=1.0), example_inputs=X)
    assert not any(module.training for module in (*fast.modules(), *extractor.modules()))
    with torch.no_grad():
        for key, value in fast(X).items():
            torch.testing.assert_close(value, stepwise(fast, X)[key], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(whole(X)[key], extractor(X)[key], rtol=1e-4, atol=1e-5)


def test_features_of_an_adaptive_network():
    net, x = get_model("zoo:resnet20_cifar").eval(), drawn(2, 3, 32, 32)
    net = accel.convert_model(net, SACT(), example_inputs=x)
    features = create_feature_extractor(net, {"layer2": "middle", "linear": "out"})
    with torch.no_grad():
        found = features(x)
        torch.testing.assert_close(found["out"], net(x).logits)
    assert not any(module.training for module in net.modules())


def small(dress):
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(dress(convs[0]), nn.ReLU(), dress(convs[1]), nn.ReLU(), convs[2]).eval()


DRESSES = {
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "pruned by channels": lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("dress", DRESSES)
def test_weights_worked_out_under_autograd(dress, tmp_path):
    """A forward under autograd leaves a weight behind that torch itself does not copy."""
    model, x = small(DRESSES[dress]), drawn(2, 3, 10, 9)
    model(x)
    fast = accel.convert_model(model, HALF, example_inputs=x)
    expected = stepwise(fast, x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), expected)
    fast(x).sum().backward()
    accel.save_converted(fast, tmp_path)
    loaded = accel.load_converted(tmp_path, model)
    with torch.no_grad():
        for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), loaded, copy.deepcopy(loaded)):
            torch.testing.assert_close(twin(x), expected)
        plan = accel.plan_conversion(model, HALF, example_inputs=x)
        assert sum(row["keep"] is not None for row in plan.rows) == 3
        torch.testing.assert_close(accel.revert_model(fast)(x), model(x))


@pytest.mark.parametrize("name", ["mnasnet0_5", "densenet121"])
def test_networks_with_a_say_in_loading(name, tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    fast = accel.convert_model(model, HALF, example_inputs=X)
    accel.save_converted(fast, tmp_path)
    with torch.no_grad():
        loaded = accel.load_converted(tmp_path, torchvision.models.get_model(name, weights=None, num_classes=5).eval())
        torch.testing.assert_close(loaded(X), fast(X))


@pytest.mark.parametrize("name", ["ghostnet_050", "ghostnetv2_100"])
def test_networks_of_timm_are_planned(name):
    timm = pytest.importorskip("timm", reason="the network is timm's")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    plan = accel.plan_conversion(model, HALF, example_inputs=X)
    convs = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {row["layer"] for row in plan.rows} >= convs
