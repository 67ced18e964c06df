"""torchvision's AlexNet, VGG, ResNet and MobileNet; their weights come from a file or torchvision's own download."""

from __future__ import annotations

from urllib.error import URLError

from torch import nn

from accel.errors import WeightsError

NAMES = (
    "alexnet",
    *(f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"mobilenet_{version}" for version in ("v2", "v3_small", "v3_large")),
)
FIRST_CONV = {"alexnet": "features.0", "vgg": "features.0", "resnet": "conv1", "mobilenet": "features.0.0"}


def build(name: str, **options) -> nn.Module:
    """torchvision's network with drawn weights; `options` go to torchvision (num_classes, for one)."""
    import torchvision.models

    return torchvision.models.get_model(name, weights=None, **options)


def download_weights(model: nn.Module, name: str) -> nn.Module:
    """Load torchvision's default weights, from its cache or by its download.

    Raises:
        WeightsError: they are not in the cache and cannot be fetched; names the file and how to pass it.
    """
    import torchvision.models

    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        file = weights.url.rsplit("/", 1)[-1]
        raise WeightsError(
            f"could not download the weights of torchvision:{name} ({error}): fetch {file} from {weights.url} on a "
            f"connected machine and pass it with --weights {file} (get_model(..., weights={file!r}) in Python)"
        ) from error
    model.load_state_dict(state)
    return model


def first_conv(name: str) -> str:
    """Module name of the first convolution."""
    return next(conv for family, conv in FIRST_CONV.items() if name.startswith(family))
