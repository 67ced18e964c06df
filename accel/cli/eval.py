"""`accel eval`: what a classifier reaches on labelled pictures, what it executes for that, and how long it takes."""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import TYPE_CHECKING, Any

from accel.cli import common, models
from accel.cli.common import positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from accel.zoo.datasets import LabelledPictures

_REPEATS = 15  # interleaved runs of every form


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "eval",
        run,
        "measure accuracy, executed MACs per picture and time of a dense, perforated or adaptive classifier",
        "accel eval zoo:resnet32_cifar --weights sact.safetensors --data cifar.zip --batch 64",
    )
    models.add_model(parser)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="PATH", help="folder or zip with test/")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="which pictures (default test)")
    parser.add_argument("--size", type=positive, metavar="S", help="bring the pictures to SxS (default: as they are)")
    parser.add_argument("--limit", type=positive, metavar="N", help="N pictures drawn by --seed (default: all)")
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help="pictures at a time (default 64)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out of the dense forms timed")
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    from accel.zoo.datasets import load_pictures

    resolved = models.resolve_args(args)
    pictures = load_pictures(args.data, args.split, args.size).drawn(args.limit, args.seed)
    resolved.check(next(_batches(resolved, pictures, 1))[0])
    watch = functools.partial(common.progress, args, what="evaluating")
    row = {"model": args.model, "pictures": len(pictures), **judge(resolved, pictures, args.batch, watch)}
    common.print_rows([{**row, **time_forms(args, resolved, pictures)}], args)
    models.standardise_note(args, resolved)
    return 0


def judge(
    resolved: models.Resolved, pictures: LabelledPictures, batch: int, watch: Callable[[Iterable], Iterable] = iter
) -> dict[str, Any]:
    """Accuracy, executed MACs per picture, and the mean units of every adaptive stage.

    `watch` is put around the batches, to show how far it is.

    Raises:
        DataError: labels for which the model has no output.
    """
    import torch

    import accel
    from accel.cli.training import logits_of
    from accel.errors import DataError
    from accel.nn.adaptive import AdaptiveOutput

    model = resolved.model
    dense = original(resolved)
    per_picture = accel.count_macs(dense, next(_batches(resolved, pictures, 1))[0])
    right, executed, units = 0, [], []
    for x, labels in watch(list(_batches(resolved, pictures, batch))):
        with torch.inference_mode():
            out = model(x)
        if isinstance(out, AdaptiveOutput):
            saved = sum(stage.dense_macs - stage.executed_macs for stage in out.stages)
            executed.append(per_picture - saved)
            units.append(torch.stack([stage.num_units.double().view(len(x), -1).mean(1) for stage in out.stages]))
        else:
            executed.append(accel.count_macs(model, x, per_image=True) if resolved.converted else _same(x, per_picture))
        scores = logits_of(out)
        if scores.shape[1] < len(pictures.classes):
            raise DataError(
                f"{resolved.name or 'the model'} tells {scores.shape[1]} classes apart, the data set has "
                f"{len(pictures.classes)}: give the data set it was trained on"
            )
        right += int((scores.argmax(1) == labels).sum())
    macs = torch.cat(executed).double()
    low, middle, high = (round(float(q)) for q in torch.quantile(macs, torch.tensor([0.05, 0.5, 0.95]).double()))
    stages = torch.cat(units, dim=1).mean(1).tolist() if units else []
    return {
        "accuracy": round(right / len(pictures), 4),
        "dense_macs": per_picture,
        "macs": round(float(macs.mean())),
        "macs_share": round(float(macs.mean()) / per_picture, 4),
        "macs_deviation": round(float(macs.std(unbiased=False))),
        "macs_5%": low,
        "macs_50%": middle,
        "macs_95%": high,
        **{f"units_{k + 1}": round(mean, 3) for k, mean in enumerate(stages)},
    }


def time_forms(args: argparse.Namespace, resolved: models.Resolved, pictures: LabelledPictures) -> dict[str, Any]:
    """Milliseconds a batch of the model and of its dense original in every form, and how many times faster it is."""
    import torch

    from accel.cli.dense_forms import dense_forms
    from accel.cli.sides import medians
    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import DENSE, fastest, in_format

    x = next(_batches(resolved, pictures, args.batch))[0]
    forms = dense_forms(original(resolved), x, compiled=not args.no_compile)
    sides = {**forms, "model": in_format(resolved.model, x, torch.channels_last)} if resolved.converted else forms
    with torch.inference_mode():
        timing = compare(sides, repeats=_REPEATS)
    best = fastest(timing, forms)
    row: dict[str, Any] = {"batch": len(x), "fastest_dense": best.removeprefix("dense_")}
    if resolved.converted:
        for name in filter(timing.__contains__, DENSE):
            row[f"speedup_{name.removeprefix('dense_')}"] = round(ratio(timing[name], timing["model"]).median, 3)
        row["speedup_fastest"] = round(ratio(timing[best], timing["model"]).median, 3)
    return {**row, **medians(timing)}


def original(resolved: models.Resolved) -> nn.Module:
    """The dense network that a converted model came from; a dense model itself."""
    import accel

    return accel.revert_model(resolved.model) if resolved.converted else resolved.model


def _batches(resolved: models.Resolved, pictures: LabelledPictures, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    import torch

    for pixels, labels in zip(pictures.pictures.split(size), pictures.labels.split(size)):
        yield resolved.prepare(pixels).contiguous(memory_format=torch.channels_last), labels


def _same(x: Tensor, macs: int) -> Tensor:
    import torch

    return torch.full((len(x),), macs, dtype=torch.int64)
