"""Cases of kind `vae_rivals`: VAEs trained by ours and by pythae, on one network from the same drawn weights.

A case: `data` and `train`, how many of its training pictures (bits drawn once), `dim`, `hidden`; `num_samples` of the
bound (1: the ELBO, else IWAE) and `gradients`, those of ours, a row each; `batch`, `lr` (Adam, constant) and `epochs`,
alike for all; `pictures` of the test set and importance `samples` that everybody's weights are judged with.

The sides take turns, an epoch each. Ours is what `accel.train.fit` takes, with a checkpoint read and written every
epoch; pythae's is its trainer's `train_step`, without the copies and files that its `train` makes. Rows: `nll` in nats
and its standard error; of ours also `behind`, how much higher than pythae's on the same pictures, with its standard
error, and `time_share`, the median over the turns of our epoch's time over pythae's (`cpu_share`: of the processor's
time, which other programs disturb less). `error`: relative, the loss that pythae computes against that of the VAE by
which its weights are judged.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td

from accel.bench.runner import Row, Settings
from accel.bench.vae_runs import evidence, standard_error, test_bits
from accel.errors import ConfigError
from accel.train.batches import Epochs
from accel.train.loop import FitSettings, fit
from accel.vae import VAE, divergence
from accel.vae.latents import Latent
from accel.vae.objective import Bound, Objective
from accel.vae.pictures import BitPictures
from accel.zoo.grey_pictures import load_grey
from accel.zoo.vaes import build_vae

SHOWN = ("case", "method", "epochs", "nll", "nll_error", "behind", "behind_error", "time_share", "cpu_share", "error")
TOLERANCE = 1e-5  # of fp32 sums over 784 pixels
_RIVAL = "pythae"
_CHECKED = 20  # test pictures that pythae's loss is compared on


@dataclasses.dataclass(frozen=True)
class Side:
    """Attributes: vae, what is judged, which the epochs train; epoch, which runs the one of this number from 0."""

    vae: VAE
    epoch: Callable[[int], None]


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    pictures = load_grey(case["data"], "train")[: case["train"]]
    train = BitPictures(pictures[: len(pictures) // case["batch"] * case["batch"]], "static", seed=settings.seed)
    x = test_bits(case["data"], case["pictures"])
    with tempfile.TemporaryDirectory() as folder:
        sides, difference = _sides(case, train, x[:_CHECKED], pathlib.Path(folder), settings.seed)
        seconds = _take_turns(sides, case["epochs"])
        error = difference()
    found = {name: evidence(side.vae.eval(), x, case["samples"], settings.seed) for name, side in sides.items()}
    for name, values in found.items():
        row = {
            "method": name,
            "steps": case["epochs"] * (len(train) // case["batch"]),
            "epochs": case["epochs"],
            "train": len(train),
            "nll": round(-float(values.mean()), 3),
            "nll_error": round(standard_error(values), 3),
            "epoch_s": round(statistics.median(clock for clock, _ in seconds[name]), 3),
        }
        if name != _RIVAL:
            turns = list(zip(seconds[name], seconds[_RIVAL]))
            shares = [statistics.median(own[kind] / other[kind] for own, other in turns) for kind in (0, 1)]
            row |= {
                "behind": round(float((found[_RIVAL] - values).mean()), 3),
                "behind_error": round(standard_error(found[_RIVAL] - values), 3),
                "time_share": round(shares[0], 3),
                "cpu_share": round(shares[1], 3),
            }
        yield {**row, "error": error, "correct": error <= TOLERANCE}


def _take_turns(sides: Mapping[str, Side], epochs: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every epoch: of the clock, and of the processor."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(epochs):
        for name, side in sides.items():
            begin = time.perf_counter(), time.process_time()
            side.epoch(number)
            seconds[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return seconds


def _sides(
    case: Mapping[str, Any], train: BitPictures, x: Tensor, folder: pathlib.Path, seed: int
) -> tuple[dict[str, Side], Callable[[], float]]:
    """(all sides, how far pythae's loss is from that of the VAE it is judged by)."""
    latent = {"kind": "normal", "dim": case["dim"]}
    table = {"shape": list(train.pictures.shape[1:]), "intensity": train.intensity, "latent": latent}

    def drawn() -> VAE:
        torch.manual_seed(seed)
        return build_vae({**table, "hidden": case["hidden"]})

    train.take(torch.zeros(1, dtype=torch.int64))  # bits are drawn before the clock
    sides = {
        f"ours, {name}": _ours(drawn(), case, train, name, folder / f"{name}.pt", seed) for name in case["gradients"]
    }
    sides[_RIVAL], difference = _pythae(drawn(), case, train, x, folder, seed)
    return sides, difference


def _ours(
    vae: VAE, case: Mapping[str, Any], train: BitPictures, gradient: str, checkpoint: pathlib.Path, seed: int
) -> Side:
    count = case["num_samples"]
    bound = Bound(kind="elbo" if count == 1 else "iwae", num_samples=count, gradient=gradient)
    objective, epochs = Objective(vae, bound), Epochs(len(train), case["batch"], seed)

    def loss(model: nn.Module, step: int) -> Tensor:
        drawn = epochs.generator(step)
        return model(train.take(epochs.rows(step), drawn), step, drawn)

    def epoch(number: int) -> None:
        settings = FitSettings(
            steps=(number + 1) * epochs.steps,
            lr=case["lr"],
            warmup=0.0,
            schedule="constant",
            weight_decay=0.0,
            checkpoint_every=epochs.steps,
        )
        fit(objective, loss, settings, checkpoint=checkpoint)

    return Side(vae, epoch)


def _pythae(
    drawn: VAE, case: Mapping[str, Any], train: BitPictures, x: Tensor, folder: pathlib.Path, seed: int
) -> tuple[Side, Callable[[], float]]:
    """Its model of the same layers, with the weights that `drawn` has; the decoder ends in a sigmoid, as it wants."""
    try:
        from pythae.data.datasets import BaseDataset
        from pythae.models import IWAE, IWAEConfig, VAEConfig
        from pythae.models import VAE as PythaeVAE
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
    except ImportError as error:
        raise ConfigError(f"a case of kind vae_rivals needs pythae ({error}): pip install 'skimconv[bench]'") from error
    count = case["num_samples"]
    options = {"input_dim": tuple(x.shape[1:]), "latent_dim": case["dim"], "reconstruction_loss": "bce"}
    encoder, decoder = _pythae_networks(drawn)
    if count == 1:
        model = PythaeVAE(VAEConfig(**options), encoder, decoder)
    else:
        model = IWAE(IWAEConfig(number_samples=count, **options), encoder, decoder)
    data = train.take(torch.arange(len(train)))
    plan = BaseTrainerConfig(
        output_dir=str(folder / _RIVAL),
        num_epochs=case["epochs"],
        per_device_train_batch_size=case["batch"],
        learning_rate=case["lr"],
        optimizer_cls="Adam",
        no_cuda=True,
        seed=seed,
    )
    trainer = BaseTrainer(model, BaseDataset(data, torch.zeros(len(data))), training_config=plan)
    trainer.prepare_training()
    vae = VAE(drawn.encoder, drawn.decoder, _log_variance_normal(case["dim"]), drawn.likelihood)

    def epoch(number: int) -> None:
        trainer.train_step(number + 1)

    return Side(vae, epoch), functools.partial(_difference, model, vae, x, count)


def _pythae_networks(drawn: VAE) -> tuple[nn.Module, nn.Module]:
    """(encoder, decoder) in pythae's interfaces around those of `drawn`, which they train."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = drawn.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            raw = self.layers(x).unflatten(-1, (-1, 2))
            return ModelOutput(embedding=raw[..., 0], log_covariance=raw[..., 1])

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = drawn.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(z).sigmoid())

    return Encoder(), Decoder()


def _log_variance_normal(dim: int) -> Latent:
    """A Normal whose encoder gives the log of the variance, as pythae has it."""

    def links(raw: Tensor) -> dict[str, Tensor]:
        return {"loc": raw[..., 0], "scale": (raw[..., 1] / 2).exp()}

    return Latent(td.Normal, links, {"loc": 0.0, "scale": 1.0}, sites=dim, raw=2)


@torch.no_grad()
def _difference(model: nn.Module, vae: VAE, x: Tensor, count: int) -> float:
    """Relative difference of pythae's reconstruction and divergence terms from those of `vae` at the same samples."""
    found = model.encoder(x)
    mean, log_variance = (part[:, None].expand(-1, count, -1) for part in (found.embedding, found.log_covariance))
    z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    pictures = model.decoder(z.flatten(0, 1)).reconstruction.reshape(len(x), count, -1)
    posteriors = vae.posterior(x, repeat=count)
    right = -vae.log_conditional(x[:, None].expand(-1, count, *x.shape[1:]), [z], 2).mean()
    if count == 1:
        pictures, mean, log_variance, z = pictures[:, 0], mean[:, 0], log_variance[:, 0], z[:, 0]
        apart = divergence(vae, x).mean()
    else:
        (latent,), (q,) = vae.latents, posteriors
        apart = (q.log_prob(z) - latent.prior().log_prob(z)).mean()
    _, reconstruction, spread = model.loss_function(pictures, x, mean, log_variance, z)
    return max(_relative(reconstruction, right), _relative(spread, apart))


def _relative(value: Tensor, right: Tensor) -> float:
    return float((value - right).abs() / right.abs())
