"""`accel profile`: MACs and milliseconds per layer, of a model alone or beside another one."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from accel.cli import common, conversion, models
from accel.files import output_folder

if TYPE_CHECKING:
    from accel.cli.profile_report import Findings

MARKER = "profile.json"
_BY = ("layer", "op", "stage")  # as accel.profiling.grouping has them, which a parser need not load
ORIGINAL = ""  # what --baseline says without a MODEL


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "profile",
        run,
        "show MACs and milliseconds per layer, dense and converted side by side",
        "accel profile torchvision:vgg16 --keep 0.5 --batch-size 1 8 32\n"
        "  accel profile zoo:resnet32_cifar_sact --data photos/ --by stage -o out/",
    )
    conversion.add_options(parser, several=True)
    runs = parser.add_argument_group("how it runs")
    runs.add_argument("--threads", type=common.positive, metavar="N", help="of torch and the engine (default: torch's)")
    runs.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of all tensors (default: its own)")
    runs.add_argument("--channels-last", action="store_true", help="a dense model in that memory format")
    runs.add_argument("--compile", action="store_true", help="time the whole under torch.compile, too")
    runs.add_argument(
        "--baseline",
        nargs="?",
        const=ORIGINAL,
        metavar="MODEL",
        help="what runs beside it (default, of a conversion: its dense original)",
    )
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--by", choices=_BY, default="layer", help="the tree of layers, or a row per kind of op or stage"
    )
    shown.add_argument("--depth", type=common.positive, metavar="D", help="layers down to D parts of their names")
    shown.add_argument(
        "--data", type=pathlib.Path, metavar="PATH", help="pictures: how the executed MACs of single ones differ"
    )
    shown.add_argument("-o", "--output", type=pathlib.Path, metavar="DIR", help="folder for a page and the numbers")


def run(args: argparse.Namespace) -> int:
    from accel.cli.profile_runs import measure
    from accel.profiling.grouping import check_grouping

    check_grouping(args.by, args.depth)
    resolved = models.resolve_args(args)
    with contextlib.ExitStack() as stack:
        folder = None if args.output is None else stack.enter_context(output_folder(args.output, MARKER))
        stack.enter_context(_threads(args.threads))
        found = measure(args, resolved)
        if folder is not None:
            _write(folder, args.model, found)
    if args.output is not None:
        common.note(args, f"a page to look at is {args.output / 'profile.html'}")
    print(found.text(args.format), end="")
    if args.images is not None or args.data is not None:
        models.standardise_note(args, resolved)
    return 0


def _write(folder: pathlib.Path, model: str, found: Findings) -> None:
    import json

    from accel.cli.profile_report import page
    from accel.profiling.machine import machine_record

    machine = machine_record()
    peaks = found.peaks and {"gops": dict(found.peaks.gops), "gbps": found.peaks.gbps}
    numbers = {"schema": 1, **found.numbers(), "per_picture": found.per_picture, "machine": machine, "peaks": peaks}
    (folder / MARKER).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (folder / "profile.html").write_text(page(model, found, machine), encoding="utf-8")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
