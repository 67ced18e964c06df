"""`accel train`: train or fine-tune a classifier by a recipe."""

from __future__ import annotations

import argparse
import pathlib

from accel.cli.common import add_verb, note


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = add_verb(
        sub,
        "train",
        run,
        "train a classifier by a recipe; goes on where it was interrupted",
        "accel train zoo/recipes/resnet32_cifar_dense.toml --weights net.safetensors --data cifar.zip -o runs/dense",
    )
    parser.add_argument("recipe", type=pathlib.Path, help="a TOML file; those in zoo/recipes are examples")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder or zip with train/ and test/")
    parser.add_argument("--weights", help="weights to start from (default: drawn, or the package's own)")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="folder of the run")


def run(args: argparse.Namespace) -> int:
    from accel.cli.training import accuracy, read_recipe, save_state, task_of, training_log
    from accel.train.classification import fit

    task = task_of(read_recipe(args.recipe), args.data, args.weights, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    with training_log(args.output / "loss.csv", lambda line: note(args, line)) as log:
        fit(task.model, task.loss_of_step, task.settings, checkpoint=args.output / "checkpoint.pt", log=log)
    save_state(task.model, args.output / "model.safetensors")
    right = accuracy(task.model, task.test, task.batches.preprocess)
    print(f"test accuracy {right:.4f} on {len(task.test)} pictures; weights in {args.output / 'model.safetensors'}")
    return 0
