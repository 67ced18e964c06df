"""VAEs as recipes describe them, and those that ship with the package."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from accel import mc
from accel.config import VERSION, config_from_dict
from accel.errors import ConfigError
from accel.nn.adaptive import make_adaptive
from accel.vae import VAE, latents, likelihoods
from accel.vae.topics import topic_model
from accel.zoo.picture_decoder import STAGES, PictureDecoder
from accel.zoo.weights_io import load_weights

PACKAGED = ("vae_digits",)  # recipes/NAME.toml and weights/NAME.safetensors
NETWORKS = ("perceptron", "residual", "topics")
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
ESTIMATORS: Mapping[str, Callable[[], mc.Estimator]] = {
    "pathwise": mc.Pathwise,
    "score": mc.ScoreFunction,
    "leave_one_out": lambda: mc.ScoreFunction(mc.LeaveOneOut()),
    "measure_valued": mc.MeasureValued,
    "disarm": mc.DisARM,
    "arm": mc.ARM,
    "rebar": mc.REBAR,
    "concrete": lambda: mc.Concrete(2 / 3),
    "enumerate": mc.Enumerate,
}
_TWO_COMPONENT_SHARE = 0.1  # of noise, where learning starts


def load_vae(table: Mapping[str, Any], weights: str | pathlib.Path) -> VAE:
    """The VAE that a recipe's table [vae] describes, in eval mode, with these weights.

    Raises:
        ConfigError: as `build_vae`.
        WeightsError: they cannot be read, or are another model's.
    """
    return load_weights(build_vae(table), weights).eval()


def build_vae(table: Mapping[str, Any]) -> VAE:
    """The VAE that a recipe's table [vae] describes, with drawn weights.

    Keys: shape, of an example; intensity, the mean of the data, from which the decoder starts; latent, a table of a
    kind and the arguments of `accel.vae.latents`, or a list of such tables; estimator, one of ESTIMATORS, or one a
    latent; network, one of NETWORKS; hidden, widths of its layers; activation; likelihood, "bernoulli", "normal" or
    "two_component" (noise of the data's intensity beside a Bernoulli). Of topics also smoothing. Of a residual
    decoder also width and units, see `PictureDecoder`, and halting, what `accel.PACT` takes, if its units are to be
    adaptive.

    Raises:
        ConfigError: an unknown key or value, or a missing one.
    """
    options = dict(table)
    network = options.pop("network", "perceptron")
    if network not in NETWORKS:
        raise ConfigError(f"the recipe's vae.network must be one of {', '.join(NETWORKS)}, got {network!r}")
    try:
        return _topics(**options) if network == "topics" else _pictures(network, **options)
    except TypeError as error:
        raise ConfigError(f"the recipe's table [vae] does not fit: {error}") from error


def _topics(
    shape: Sequence[int], latent: Mapping, hidden: Sequence[int] = (300, 300, 300), smoothing: float = 0.0
) -> VAE:
    (made,) = _latents(latent)
    if len(shape) != 1:
        raise ConfigError(f"topics are of counts of words, and the data's shape is {list(shape)}: give texts")
    return topic_model(shape[0], made, hidden, smoothing)


def _pictures(
    network: str,
    shape: Sequence[int],
    latent: Mapping | Sequence[Mapping],
    intensity: float = 0.5,
    hidden: Sequence[int] = (200, 200),
    activation: str = "tanh",
    likelihood: str = "bernoulli",
    estimator: str | Sequence[str] | None = None,
    **own: Any,
) -> VAE:
    """`own`: of the decoder."""
    chosen, parts = _named(ACTIVATIONS, activation, "activation"), _latents(latent)
    encoder = _encoder(shape, hidden, parts, chosen)
    made, start = _likelihood(likelihood, intensity)
    features = sum(part.num_features for part in parts)
    if network == "residual":
        decoder = _residual_decoder(features, shape, start, **own)
    else:
        decoder = _perceptron(features, shape, start, hidden, chosen, **own)
    return VAE(encoder, decoder, parts, made, _estimators(estimator))


def _perceptron(
    features: int, shape: Sequence[int], start: float, hidden: Sequence[int], activation: Callable[[], nn.Module]
) -> nn.Module:
    layers = _layers([features, *reversed(hidden), torch.Size(shape).numel()], activation)
    nn.init.constant_(layers[-1].bias, start)
    return nn.Sequential(*layers, nn.Unflatten(1, tuple(shape)))


def _residual_decoder(
    features: int, shape: Sequence[int], start: float, width: int = 32, units: int = 4, halting: Mapping | None = None
) -> nn.Module:
    decoder = PictureDecoder(features, shape, width, units)
    nn.init.constant_(decoder.last.bias, start)
    if halting is None:
        return decoder
    config = config_from_dict({"kind": "pact", "version": VERSION, **halting})
    return make_adaptive(decoder, dict.fromkeys(STAGES, config))


def _encoder(
    shape: Sequence[int], hidden: Sequence[int], parts: Sequence[latents.Latent], activation: Callable[[], nn.Module]
) -> nn.Module:
    widths = [torch.Size(shape).numel(), *hidden, sum(part.num_parameters for part in parts)]
    return nn.Sequential(nn.Flatten(), *_layers(widths, activation))


def _estimators(given: str | Sequence[str] | None) -> mc.Estimator | list[mc.Estimator | None] | None:
    names = [given] if given is None or isinstance(given, str) else given
    found = [name if name is None else _named(ESTIMATORS, name, "estimator")() for name in names]
    return found if len(found) > 1 else found[0]


def _likelihood(name: str, intensity: float) -> tuple[likelihoods.Likelihood, float]:
    """(the likelihood, the decoder's output that stands for the mean of the data)."""
    if not 0 < intensity < 1:
        raise ConfigError(f"the mean of the data must lie between 0 and 1, got vae.intensity = {intensity!r}")
    mean = torch.tensor(intensity, dtype=torch.float32, device="cpu")
    if name == "normal":
        return likelihoods.Normal(scale=0.3), intensity
    if name == "bernoulli":
        return likelihoods.Bernoulli(), float(mean.logit())
    if name == "two_component":
        bits, start = likelihoods.Bernoulli(), mean.logit()
        return likelihoods.TwoComponent(bits, bits, start, _TWO_COMPONENT_SHARE), float(start)
    raise ConfigError(f"the recipe's vae.likelihood must be bernoulli, normal or two_component, got {name!r}")


def _latents(given: Mapping | Sequence[Mapping]) -> list[latents.Latent]:
    found = []
    for table in [given] if isinstance(given, Mapping) else given:
        options = dict(table)
        found.append(_named(latents.LATENTS, options.pop("kind", None), "latent.kind")(**options))
    return found


def _layers(widths: Sequence[int], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        found += [nn.Linear(width, following), activation()]
    return found[:-1]


def _named(known: Mapping[str, Any], name: object, key: str) -> Any:
    if name not in known:
        raise ConfigError(f"the recipe's vae.{key} must be one of {', '.join(known)}, got {name!r}")
    return known[name]
