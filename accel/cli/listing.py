"""`accel list`: the models, masks, fills, VAEs and inpainting models there are."""

from __future__ import annotations

import argparse

from accel.cli import common


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "list",
        run,
        "list the models, the masks, the fills, the VAEs or inpainting models that ship, or the masks of pictures",
        "accel list models --format md",
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("models", "masks", "fills", "vaes", "inpainters", "picture-masks"),
        default="models",
        help="default: models",
    )
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    if args.what == "masks":
        from accel import masks

        rows = [{"mask": name} for name in masks.names()]
    elif args.what == "fills":
        from accel import fills

        rows = [{"fill": name} for name in fills.names()]
    elif args.what == "vaes":
        from accel.zoo.vaes import PACKAGED

        rows = [{"vae": f"zoo:{name}"} for name in PACKAGED]
    elif args.what == "inpainters":
        from accel.zoo import runs
        from accel.zoo.inpainters import PACKAGED

        ships = {name: runs.weights_path(name).is_file() for name in PACKAGED}
        rows = [
            {"inpainter": f"zoo:{name}", "weights": "in the package" if found else "by its recipe"}
            for name, found in ships.items()
        ]
    elif args.what == "picture-masks":
        from accel.vae.picture_masks import PICTURE_MASKS

        rows = [{"mask": kind} for kind in PICTURE_MASKS]
    else:
        from accel.zoo.registry import list_models

        rows = [{"model": name} for name in list_models()]
    common.print_rows(rows, args)
    return 0
