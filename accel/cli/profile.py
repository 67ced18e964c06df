"""`accel profile`: MACs and milliseconds per layer, of a dense model or of a conversion beside its dense original."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from accel.cli import common, conversion, models
from accel.files import output_folder

if TYPE_CHECKING:
    from torch import Tensor

    from accel.cli.models import Resolved
    from accel.profiling.layers import Profile

MARKER = "profile.json"
_BY = ("layer", "op", "stage")  # as accel.profiling.grouping has them, which a parser need not load


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "profile",
        run,
        "show MACs and milliseconds per layer, dense and converted side by side",
        "accel profile torchvision:vgg16 --keep 0.5 --size 224 --batch 8\n"
        "  accel profile zoo:resnet32_cifar_sact --data photos/ --by stage -o out/",
    )
    conversion.add_options(parser)
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--by", choices=_BY, default="layer", help="a row for each layer, kind of op, or stage")
    shown.add_argument("--depth", type=common.positive, metavar="D", help="layers down to D parts of their names")
    shown.add_argument(
        "--threads", type=common.positive, metavar="N", help="of torch and the engine (default: torch's)"
    )
    shown.add_argument(
        "--data", type=pathlib.Path, metavar="PATH", help="pictures: how the executed MACs of single ones differ"
    )
    shown.add_argument("-o", "--output", type=pathlib.Path, metavar="DIR", help="folder for a page and the numbers")


def run(args: argparse.Namespace) -> int:
    from accel.cli.profile_report import said_of
    from accel.profiling.grouping import check_grouping, grouped

    check_grouping(args.by, args.depth)
    resolved = models.resolve_args(args)
    with contextlib.ExitStack() as stack:
        folder = None if args.output is None else stack.enter_context(output_folder(args.output, MARKER))
        stack.enter_context(_threads(args.threads))
        found, spread = _measure(args, resolved)
        shown = grouped(found, args.by, args.depth)
        if folder is not None:
            _write(folder, args.model, shown, spread)
    if args.output is not None:
        common.note(args, f"a page to look at is {args.output / 'profile.html'}")
    summary = None if spread is None else {"per_picture": spread}
    common.print_report(shown, args, summary, [] if spread is None else [said_of(spread)])
    if args.images is not None or args.data is not None:
        models.standardise_note(args, resolved)
    return 0


def _measure(args: argparse.Namespace, resolved: Resolved) -> tuple[Profile, dict[str, float] | None]:
    """The profile, and how pictures of --data differ."""
    import torch

    import accel
    from accel.profiling.flops import macs_spread

    if resolved.converted:
        conversion.refuse_conversion(args)
    rules = conversion.read_rules(args, resolved.name) if conversion.wants_conversion(args) else None
    x, calibration = conversion.example(args, resolved, rules)
    model, baseline = resolved.model, None
    if resolved.converted:
        baseline = accel.revert_model(model)
    elif rules is not None:
        baseline = model
        model = accel.convert_model(baseline, rules, example_inputs=x, calibration=calibration)
    with torch.inference_mode():
        spread = None if args.data is None else macs_spread(model, _pictures(args, resolved, x))
        return accel.profile(model, x, baseline=baseline), spread


def _pictures(args: argparse.Namespace, resolved: Resolved, like: Tensor) -> Iterator[Tensor]:
    """The inputs made of the pictures of --data, one by one."""
    from accel.zoo.picture_files import find_images, read_each, read_picture

    paths, size = find_images(args.data), tuple(like.shape[2:])
    watched = common.progress(args, paths, "counting")
    for _, picture in read_each(watched, lambda path: read_picture(path, size), str(args.data)):
        yield resolved.prepare(picture[None]).to(like.device)


def _write(folder: pathlib.Path, model: str, found: Profile, spread: dict[str, float] | None) -> None:
    import json

    from accel.cli.profile_report import page
    from accel.profiling.machine import machine_record
    from accel.profiling.peaks import measured_peaks

    peaks, machine = measured_peaks(), machine_record()
    numbers = {"schema": 1, **json.loads(found.to_json()), "per_picture": spread, "machine": machine}
    numbers["peaks"] = {"gops": dict(peaks.gops), "gbps": peaks.gbps}
    (folder / MARKER).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (folder / "profile.html").write_text(page(model, found, peaks, machine, spread), encoding="utf-8")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
