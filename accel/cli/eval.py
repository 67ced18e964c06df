"""`accel eval`: what a classifier reaches on labelled pictures, what it executes for that, and how long it takes.

Of a VAE: likelihoods, outliers, and a report with pictures (`accel.cli.vae_eval`).
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import TYPE_CHECKING, Any

import accel
from accel.cli import common, models
from accel.cli.common import positive
from accel.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

_REPEATS = 15  # interleaved runs of every form


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "eval",
        run,
        "measure accuracy, executed MACs per picture and time of a dense, perforated or adaptive classifier; of a VAE, "
        "likelihoods, outliers and pictures",
        "accel eval zoo:resnet32_cifar --weights sact.safetensors --data cifar.zip --batch 64\n"
        "  accel eval zoo:vae_digits --noise 2 -o digits/\n"
        "  accel eval runs/vae --data fashion-mnist/ --samples 5000 --limit 1000",
    )
    models.add_model(parser)
    parser.add_argument(
        "--data", type=pathlib.Path, metavar="PATH", help="folder or zip with test/ or val/; of VAEs see the recipe"
    )
    parser.add_argument("--split", choices=("test", "train"), default="test", help="which pictures (default test)")
    parser.add_argument("--size", type=positive, metavar="S", help="bring the pictures to SxS (default: as they are)")
    parser.add_argument("--limit", type=positive, metavar="N", help="N pictures drawn by --seed (default: all)")
    parser.add_argument("--batch", type=positive, default=64, metavar="N", help="pictures at a time (default 64)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out of the dense forms timed")
    vae = parser.add_argument_group("of a VAE: one that ships, such as zoo:vae_digits, or the folder of a run")
    vae.add_argument("--samples", type=positive, default=200, metavar="K", help="importance samples (default 200)")
    vae.add_argument("--noise", type=float, metavar="R", help="R noise examples per picture among them, to be found")
    vae.add_argument(
        "--keep", type=float, metavar="S", help="the ELBO of the likeliest share S, to choose log alpha by"
    )
    vae.add_argument("-o", "--output", type=pathlib.Path, metavar="DIR", help="write a report with pictures")
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    from accel.cli.vae_training import is_vae

    if is_vae(args.model):
        from accel.cli.vae_eval import run_eval

        return run_eval(args)
    if args.data is None:
        raise ConfigError("a classifier is judged on labelled pictures: say with --data where they lie")
    from accel.zoo.class_names import matched
    from accel.zoo.datasets import load_pictures
    from accel.zoo.evaluation import prepared, verdicts

    resolved = models.resolve_args(args)
    pictures = load_pictures(args.data, args.split, args.size).drawn(args.limit, args.seed)
    pictures = matched(resolved.name, pictures)
    x = next(prepared(resolved.model, pictures, resolved.prepare, args.batch))[0]
    resolved.check(x[:1])
    dense = accel.revert_model(resolved.model) if resolved.converted else None
    watch = functools.partial(common.progress, args, what="evaluating")
    found = verdicts(resolved.model, pictures, resolved.prepare, args.batch, dense=dense, watch=watch).summary()
    row = {"model": args.model, "pictures": len(pictures), **found, **time_forms(args, resolved.model, dense, x)}
    common.print_rows([row], args)
    models.standardise_note(args, resolved)
    return 0


def time_forms(args: argparse.Namespace, model: nn.Module, dense: nn.Module | None, x: Tensor) -> dict[str, Any]:
    """Milliseconds a batch of the model and of its dense original in every form, and how many times faster it is."""
    import torch

    from accel.profiling.dense_forms import dense_forms
    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import DENSE, fastest, in_format, medians

    forms = dense_forms(model if dense is None else dense, x, compiled=not args.no_compile)
    sides = forms if dense is None else {**forms, "model": in_format(model, x, torch.channels_last)}
    with torch.inference_mode():
        timing = compare(sides, repeats=_REPEATS)
    best = fastest(timing, forms)
    row: dict[str, Any] = {"batch": len(x), "fastest_dense": best.removeprefix("dense_")}
    if dense is not None:
        for name in filter(timing.__contains__, DENSE):
            row[f"speedup_{name.removeprefix('dense_')}"] = round(ratio(timing[name], timing["model"]).median, 3)
        row["speedup_fastest"] = round(ratio(timing[best], timing["model"]).median, 3)
    return {**row, **medians(timing)}
