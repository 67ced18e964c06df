"""`accel train`: train a classifier, a recurrent or a segmenting network, a VAE, an inpainting model, by a recipe."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

from accel.cli.common import add_verb, positive
from accel.errors import ConfigError, fitting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accel.cli.recipe_task import RecipeTask
    from accel.cli.training import Task
    from accel.train.parallel import Place


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = add_verb(
        sub,
        "train",
        run,
        "train a classifier, plain or with ACT, SACT or PACT, a recurrent network that repeats its steps, a segmenting "
        "one, a VAE or an inpainting model, by a recipe; goes on where it was interrupted",
        "accel train zoo/recipes/resnet32_cifar_sact.toml --weights net.safetensors --data cifar.zip -o runs/sact\n"
        "  accel train vae --data fashion-mnist/ -o runs/vae\n"
        "  accel train inpaint_shapes -o runs/inpaint\n"
        "  accel train parity -o runs/parity\n"
        "  accel train RECIPE --set adaptive.tau=0.02 --set 'adaptive.kind=\"act\"' ...\n"
        "  accel train RECIPE --seeds 3 -o runs/three ...   (a folder a seed, and what they reach together)\n"
        "  torchrun --nproc-per-node 4 -m accel train RECIPE ...   (the recipe's batch is that of one process)",
    )
    parser.add_argument("recipe", type=pathlib.Path, help="a TOML file, or the name of one in zoo/recipes")
    parser.add_argument("--data", type=pathlib.Path, help="folder or zip with train/ and test/; of VAEs see the recipe")
    parser.add_argument("--weights", help="weights to start from (default: drawn, or the package's own)")
    parser.add_argument("--teacher", help="weights of the trained network that a recipe with [teacher] learns from")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a value (TOML) in place of the recipe's, or beside them; SECTION={...} gives it anew; may be repeated",
    )
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument(
        "--seeds",
        type=positive,
        metavar="N",
        help="train N times, with --seed and those that follow it, each in the folder seed_K of --output",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events to the folder as well")


def run(args: argparse.Namespace) -> int:
    from accel.train.parallel import process_group
    from accel.zoo.runs import read_recipe, write_summary

    recipe = read_recipe(args.recipe, args.set)
    with process_group() as place, fitting(f"the recipe {args.recipe}"):
        if args.seeds is None:
            _train(args, recipe, place, args.seed, args.output)
            return 0
        found = {}
        for seed in range(args.seed, args.seed + args.seeds):
            found[seed] = _train(args, recipe, place, seed, args.output / f"seed_{seed}")
        if not place.rank:
            print(write_summary(args.output, found))
    return 0


def _train(
    args: argparse.Namespace, recipe: Mapping, place: Place, seed: int, folder: pathlib.Path
) -> dict[str, float] | None:
    """Train with one seed in the folder, or go on there; what the model reaches, in the first of the processes."""
    from accel.cli.training_log import training_log
    from accel.train.loop import fit
    from accel.zoo.runs import write_results

    task = _task(args, recipe, place, seed)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    if place.rank:
        fit(task.model, task.loss_of_step, task.settings, checkpoint=checkpoint)
        return None
    task.begin(folder)
    with training_log(folder, task.settings.steps, task.measured, args) as log:
        fit(task.model, task.loss_of_step, task.settings, checkpoint=checkpoint, log=log)
    found = task.finish(folder)
    write_results(folder, seed, found)
    return found


def _task(args: argparse.Namespace, recipe: Mapping, place: Place, seed: int) -> Task | RecipeTask:
    from accel.cli.inpainter_training import inpainter_task
    from accel.cli.segmentation_training import segmentation_task
    from accel.cli.sequence_training import sequence_task
    from accel.cli.training import task_of
    from accel.cli.vae_training import vae_task
    from accel.zoo.runs import trained_by

    tasks = {"sequence": sequence_task, "segmentation": segmentation_task, "vae": vae_task, "vaeac": inpainter_task}
    drawn = tasks.get(trained_by(recipe))
    if drawn is not None:
        given = [f"--{key}" for key in ("weights", "teacher") if getattr(args, key) is not None]
        if given:
            raise ConfigError(
                f"such a model starts from drawn weights and has no teacher: leave out {' and '.join(given)}"
            )
        return drawn(recipe, args.data, seed, place)
    if args.data is None:
        raise ConfigError("a classifier is trained on labelled pictures: say with --data where they lie")
    return task_of(recipe, args.data, args.weights, seed, place, args.teacher)
