"""The pictures that search and finetune learn from: a folder of any, or a data set with labels."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from accel.cli import common, models
from accel.errors import DataError

if TYPE_CHECKING:
    from torch import nn

_ADAPTED = 64  # pictures of a data set in a batch, where --batch does not say


def add_pictures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=pathlib.Path, metavar="PATH", help="a picture or a folder, without labels")
    source.add_argument("--data", type=pathlib.Path, metavar="PATH", help="folder or zip with train/ and test/ classes")
    group.add_argument(
        "--limit",
        type=common.positive,
        metavar="N",
        help="N pictures only: the first, or with --data drawn by --seed",
    )
    group.add_argument("--size", type=common.image_size, metavar="HxW", help="picture size (default: the model's own)")
    group.add_argument("--batch", type=common.positive, metavar="N", help="pictures at a time (1; with --data 64)")


@dataclasses.dataclass(frozen=True)
class Learning:
    """Attributes: batches, to learn from (re-iterable, or a function of the step); judge, what a network is worth on
    pictures it did not learn from, as columns of a table."""

    batches: Iterable | Callable[[int], tuple]
    judge: Callable[[nn.Module], dict[str, float]]


def learn_from(args: argparse.Namespace, dense: models.Resolved, held_out: float = 0.0) -> Learning:
    """The pictures of --images or --data.

    Args:
        dense: the model that reads them; what networks are compared with where there are no labels.
        held_out: share of the --images that is kept for judging; of --data it is the test split.

    Raises:
        DataError: no pictures, or too few to keep some aside.
    """
    return _labelled(args, dense) if args.data is not None else _plain(args, dense, held_out)


def _plain(args: argparse.Namespace, dense: models.Resolved, held_out: float) -> Learning:
    import torch

    from accel.cli.pictures import read_pictures
    from accel.profiling.distances import Fidelity
    from accel.running import first_tensor
    from accel.zoo.picture_files import find_images

    pictures, _ = read_pictures(args, find_images(args.images, args.limit), args.size or dense.size)
    count = len(pictures)
    kept = round(held_out * count)
    if held_out and not 0 < kept < count:
        raise DataError(f"{args.images} holds {count} pictures, too few to keep some aside: give more")
    prepared = dense.prepare(pictures)
    dense.check(prepared[:1])
    learning, judged = prepared[: count - kept], prepared[count - kept :]

    @torch.inference_mode()
    def judge(network: nn.Module) -> dict[str, float]:
        fidelity = Fidelity()
        for x in judged.split(1):
            fidelity.add(first_tensor(dense.model(x)), first_tensor(network(x)))
        return fidelity.summary()

    return Learning(learning.split(args.batch or 1), judge)


def _labelled(args: argparse.Namespace, dense: models.Resolved) -> Learning:
    from accel.train.batches import PictureBatches
    from accel.zoo.datasets import load_pictures
    from accel.zoo.evaluation import accuracy

    train, test = (load_pictures(args.data, split, args.size) for split in ("train", "test"))
    train = train.drawn(args.limit, args.seed)
    prepare = dense.prepare
    dense.check(prepare(train.pictures[:1]))
    batch = min(args.batch or _ADAPTED, len(train))
    batches = PictureBatches(train.pictures, train.labels, prepare, batch=batch, seed=args.seed)
    return Learning(batches, lambda network: {"pictures": len(test), "accuracy": accuracy(network, test, prepare)})
