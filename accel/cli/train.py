"""`accel train`: train or fine-tune a classifier, plain or adaptive, by a recipe."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from accel.cli.common import add_verb

if TYPE_CHECKING:
    from accel.cli.training import Task


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = add_verb(
        sub,
        "train",
        run,
        "train a classifier, plain or with ACT or SACT, by a recipe; goes on where it was interrupted",
        "accel train zoo/recipes/resnet32_cifar_sact.toml --weights net.safetensors --data cifar.zip -o runs/sact\n"
        "  accel train RECIPE --set adaptive.tau=0.02 --set 'adaptive.kind=\"act\"' ...\n"
        "  torchrun --nproc-per-node 4 -m accel train RECIPE ...   (the recipe's batch is that of one process)",
    )
    parser.add_argument("recipe", type=pathlib.Path, help="a TOML file; those in zoo/recipes are examples")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder or zip with train/ and test/")
    parser.add_argument("--weights", help="weights to start from (default: drawn, or the package's own)")
    parser.add_argument("--teacher", help="weights of the trained network that a recipe with [teacher] learns from")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a value (TOML) in place of the recipe's, or beside them; may be given several times",
    )
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events to the folder as well")


def run(args: argparse.Namespace) -> int:
    from accel.cli.training import read_recipe, task_of
    from accel.cli.training_log import training_log
    from accel.train.classification import fit
    from accel.train.parallel import process_group

    with process_group() as place:
        recipe = read_recipe(args.recipe, args.set)
        task = task_of(recipe, args.data, args.weights, args.seed, place, args.teacher)
        args.output.mkdir(parents=True, exist_ok=True)
        checkpoint = args.output / "checkpoint.pt"
        if place.rank:
            fit(task.model, task.loss_of_step, task.settings, checkpoint=checkpoint)
            return 0
        with training_log(args.output, task.settings.steps, task.measured, args) as log:
            fit(task.model, task.loss_of_step, task.settings, checkpoint=checkpoint, log=log)
    return _finish(task, args.output / "model.safetensors")


def _finish(task: Task, weights: pathlib.Path) -> int:
    """Save the trained weights and say what they reach on the test pictures."""
    from accel.cli.training import save_state
    from accel.nn.adaptive import adaptive_stages
    from accel.zoo.evaluation import accuracy, dense_macs, macs_per_image

    model, test, prepare = task.model, task.test, task.batches.preprocess
    save_state(model, weights)
    right = accuracy(model, test, prepare)
    print(f"test accuracy {right:.4f} on {len(test)} pictures; weights in {weights}")
    if adaptive_stages(model):
        executed, dense = macs_per_image(model, test, prepare).double(), dense_macs(model, test, prepare)
        mean, deviation = float(executed.mean()) / dense, float(executed.std()) / dense
        print(f"executed MACs: mean {mean:.4f} of the dense network's {dense:.4g} a picture, deviation {deviation:.4f}")
    return 0
