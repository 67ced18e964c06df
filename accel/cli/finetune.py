"""`accel finetune`: a converted model learns to give the outputs of its dense original."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time

from accel.cli import common, learning, models

_HELD_OUT = 0.25  # of the pictures of a folder, to compare the outputs on


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "finetune",
        run,
        "train a converted model to give the outputs of its dense original; goes on where it was interrupted",
        "accel finetune out/model --teacher zoo:hed_vgg16 --weights hed.safetensors --images photos/ -o tuned/",
    )
    parser.add_argument("model", type=pathlib.Path, metavar="FOLDER", help="a model saved by convert")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help=f"the dense original: {models.MODEL_HELP}")
    parser.add_argument("--weights", metavar="FILE", help="the teacher's weights: .safetensors or .pt, or download")
    parser.add_argument("--steps", type=common.positive, default=200, metavar="N", help="batches (default 200)")
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw", help="default adamw")
    parser.add_argument("--lr", type=float, default=1e-5, help="peak learning rate (default 1e-5, which suits AdamW)")
    parser.add_argument("--weight-decay", type=float, default=0.01, metavar="W", help="default 0.01; 5e-4 suits SGD")
    parser.add_argument("--pad", type=int, default=0, metavar="N", help="with --data: pad, crop at random, flip")
    parser.add_argument("--labels", type=float, default=0.0, metavar="W", help="weight of the labels of --data, 0 to 1")
    parser.add_argument("--features", type=float, default=0.0, metavar="W", help="weight of the layers' own outputs")
    parser.add_argument("--checkpoint-every", type=common.positive, default=50, metavar="N", help="steps (default 50)")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events to the folder as well")
    learning.add_pictures(parser)
    models.add_standardise(parser)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="folder of the run")
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    import accel
    from accel.cli.training_log import training_log

    weights = args.weights or models.trained_weights(args.teacher)
    teacher = dataclasses.replace(
        models.resolve(args.teacher, weights), standardise=models.saved_standardise(args.model)
    )
    resolved = models.with_standardise(args, teacher)
    fast = accel.load_converted(args.model, resolved.model)
    data = learning.learn_from(args, resolved, _HELD_OUT)
    lessons = dataclasses.replace(data.batches, pad=args.pad) if args.pad and args.data else data.batches
    rows = [{"model": "before", **data.judge(fast)}]
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)  # dropout
    start = time.perf_counter()
    with training_log(args.output, args.steps, {}, args) as log:
        accel.finetune(
            fast,
            teacher=resolved.model,
            data=lessons,
            steps=args.steps,
            lr=args.lr,
            optimizer=args.optimizer,
            weight_decay=args.weight_decay,
            labels=args.labels,
            features=args.features,
            checkpoint=args.output / "checkpoint.pt",
            checkpoint_every=args.checkpoint_every,
            log=log,
        )
    minutes = (time.perf_counter() - start) / 60
    accel.save_converted(fast, args.output / "model")
    models.write_source(args.output / "model", resolved)
    rows.append({"model": "after", **data.judge(fast)})
    common.print_rows(rows, args)
    models.standardise_note(args, resolved)
    common.note(args, f"{minutes:.1f} minutes of training; saved in {args.output / 'model'}/")
    return 0
