"""The models there are, by name: how to build one, what it reads, and which of its layers to perforate.

| name                                            | weights                                   |
|-------------------------------------------------|-------------------------------------------|
| torchvision:alexnet, vgg*, resnet*, mobilenet_* | a file, or "download"                     |
| zoo:resnet14_cifar to resnet110_cifar           | a file                                    |
| zoo:resnet32_cifar_sact                         | in the package; returns an AdaptiveOutput |
| zoo:hed_vgg16                                   | a file                                    |
| zoo:demo_resnet                                 | in the package                            |
| zoo:ppocr_det                                   | in the package rapidocr-onnxruntime       |
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from accel.errors import ConfigError, WeightsError
from accel.zoo import cifar, demo_net, hed, shapes, text_detector, torchvision_models
from accel.zoo.weights_io import load_weights

if TYPE_CHECKING:
    from accel.config import Perforate, Rules

__all__ = [
    "can_be_drawn",
    "default_rules",
    "get_model",
    "has_weights",
    "input_size",
    "is_adaptive",
    "list_models",
    "load_weights",
    "preprocess",
]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WEIGHTS = pathlib.Path(__file__).parent / "weights"


def _imagenet(pictures: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(v, device=pictures.device, dtype=torch.float32).view(1, 3, 1, 1)
        for v in (_IMAGENET_MEAN, _IMAGENET_STD)
    )
    return (pictures.float() / 255 - mean) / std


def _drawn(pictures: Tensor) -> Tensor:
    return shapes.normalise(pictures.float() / 255)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Attributes: build; size [H, W] it is usually run at; preprocess, uint8 RGB to its input; dense, the layers its
    default rules leave alone (patterns); packaged, its weights file inside the package; whole, whether build gives it
    weights and all; adaptive, whether it has ACT or SACT stages already."""

    build: Callable[..., nn.Module]
    size: tuple[int, int]
    preprocess: Callable[[Tensor], Tensor] = _imagenet
    dense: tuple[str, ...] = ()
    packaged: str | None = None
    whole: bool = False
    adaptive: bool = False


def _entries() -> dict[str, Entry]:
    # The first convolution reads 3 channels: few MACs, and every later layer inherits what it loses. Strided 1x1
    # shortcuts of ResNets read a quarter of their input already. The last layers of the map networks draw the output.
    found = {}
    for name in torchvision_models.NAMES:
        shortcuts = ("*.downsample.0",) if name.startswith("resnet") else ()
        dense = (torchvision_models.first_conv(name), *shortcuts)

        def build(name: str = name, **options) -> nn.Module:
            return torchvision_models.build(name, **options)

        found[f"torchvision:{name}"] = Entry(build=build, size=(224, 224), dense=dense)
    for depth in cifar.DEPTHS:

        def build_cifar(depth: int = depth, **options) -> nn.Module:
            return cifar.CifarResNet(depth, **options)

        found[f"zoo:resnet{depth}_cifar"] = Entry(build=build_cifar, size=(32, 32), dense=("conv1",))
    found["zoo:resnet32_cifar_sact"] = Entry(
        build=cifar.sact_resnet32, size=(32, 32), packaged="resnet32_cifar_sact.safetensors", adaptive=True
    )
    found["zoo:hed_vgg16"] = Entry(
        build=hed.HED, size=(240, 320), preprocess=hed.preprocess, dense=("features.0", "side.*", "fuse")
    )
    found["zoo:demo_resnet"] = Entry(
        build=demo_net.DemoResNet,
        size=(160, 160),
        preprocess=_drawn,
        dense=("stem.0", "outline"),
        packaged="demo_resnet.safetensors",
    )
    found["zoo:ppocr_det"] = Entry(
        build=text_detector.build,
        size=(480, 640),
        preprocess=text_detector.preprocess,
        dense=text_detector.DENSE,
        whole=True,
    )
    return found


_REGISTRY = _entries()


def list_models() -> list[str]:
    """Every name `get_model` knows."""
    return list(_REGISTRY)


def get_model(name: str, weights: str | os.PathLike | None = None, **options) -> nn.Module:
    """Build a model by name, in eval mode.

    Args:
        weights: a .safetensors, .pt or .pth file; "download" for torchvision's own; "none" for drawn weights, of a
            model that can have them; None for those in the package where there are any, drawn ones otherwise.
        options: go to the model's constructor, such as num_classes=10.

    Raises:
        ConfigError: unknown name, or "download" for a model that torchvision does not have.
        WeightsError: the weights cannot be had, read, or fitted to the model.
    """
    entry = _entry(name)
    if entry.whole and weights not in (None, "none"):
        raise WeightsError(f"{name} brings its own weights, and takes no others")
    model = entry.build(**options)
    if weights == "download":
        if not name.startswith("torchvision:"):
            raise ConfigError(f"only torchvision models can be downloaded, not {name}: pass a weights file")
        torchvision_models.download_weights(model, name.partition(":")[2])
    elif weights is None and entry.packaged is not None:
        load_weights(model, _WEIGHTS / entry.packaged)
    elif weights is not None and weights != "none":
        load_weights(model, weights)
    return model.eval()


def has_weights(name: str) -> bool:
    """Whether `get_model` gives it trained weights without being told which."""
    return _entry(name).packaged is not None or _entry(name).whole


def can_be_drawn(name: str) -> bool:
    """Whether `get_model(name, "none")` is a plain network of drawn weights."""
    return not (_entry(name).adaptive or _entry(name).whole)


def is_adaptive(name: str) -> bool:
    """Whether the model has ACT or SACT stages, and so returns an AdaptiveOutput."""
    return _entry(name).adaptive


def default_rules(name: str, config: Perforate | None = None) -> Rules:
    """Rules that give `config` (half the positions unless told otherwise) to every layer worth perforating.

    Layers that are not stay dense; in eight bits or bf16 they are so too, every position.

    Raises:
        ConfigError: an unknown model, or an adaptive one, whose stages choose their positions themselves, unless the
            config asks for eight bits at every position.
    """
    from accel.config import Perforate, Rules

    chosen = Perforate(keep=0.5) if config is None else config
    if _entry(name).adaptive and not (chosen.is_whole and chosen.in_bytes):
        raise ConfigError(
            f"{name} is adaptive already: perforate the plain network instead, or give keep 1 and precision 'int8'"
        )
    whole = Perforate(keep=1.0, seed=chosen.seed, precision=chosen.precision) if chosen.rounds else None
    return Rules({**dict.fromkeys(_entry(name).dense, whole), "*": chosen})


def dense_layers(name: str) -> tuple[str, ...]:
    """Patterns of the layers that `default_rules` leave dense. ConfigError: an unknown model."""
    return _entry(name).dense


def input_size(name: str | None) -> tuple[int, int]:
    """The height and width a model is usually run at; ImageNet's 224 x 224 for a model that is not in the registry."""
    return (224, 224) if name is None else _entry(name).size


def preprocess(name: str | None, pictures: Tensor) -> Tensor:
    """uint8 RGB pictures [N, 3, H, W] to the float32 input of a model; ImageNet's standardisation for `name` None."""
    return _imagenet(pictures) if name is None else _entry(name).preprocess(pictures)


def _entry(name: str) -> Entry:
    if name not in _REGISTRY:
        raise ConfigError(f"no model {name!r}: 'accel list' names the models there are")
    return _REGISTRY[name]
