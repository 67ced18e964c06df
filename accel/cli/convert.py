"""`accel convert`: a model and a folder of pictures in; a faster model, a table and pictures of what it costs out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from accel.cli import common, conversion, models
from accel.cli.pictures import read_pictures, write_strip
from accel.errors import ConfigError, ConversionError
from accel.files import output_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from accel.config import Config, Perforate, Rules
    from accel.profiling.distances import Fidelity
    from accel.profiling.layers import Profile

REPORT_FILE, PAGE_FILE = "report.json", "report.html"
_REPORT_SCHEMA = 1
_REPEATS = 10  # interleaved runs of each whole network; the spread is in the report


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "convert",
        run,
        "convert a model, measure it on pictures, and save it",
        "accel convert zoo:hed_vgg16 --weights hed.safetensors --images photos/ --keep 0.5 -o out/",
    )
    models.add_model(parser)
    parser.add_argument(
        "--images",
        type=pathlib.Path,
        required=True,
        metavar="PATH",
        help="a picture, or a folder of them, to try it on",
    )
    parser.add_argument("--limit", type=common.positive, metavar="N", help="use the first N pictures only")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--speedup",
        type=float,
        metavar="S",
        help="search what to keep of which layer, in --precision, for a network S times faster (see accel search)",
    )
    parser.add_argument(
        "--low-rank",
        type=float,
        metavar="SHARE",
        help="first make two convolutions of each, to this share of the MACs, but for those that the rules leave dense",
    )
    common.add_minutes(parser)
    conversion.add_conversion(parser)
    conversion.add_input(parser)
    common.add_format(parser)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures as uint8 [N, 3, H, W], and the batches a network reads them in: iterate as often as you like."""

    pixels: Tensor
    names: list[str]
    prepare: Callable[[Tensor], Tensor]
    batch: int
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.pixels.split(self.batch):
            yield self.prepare(part.to(self.device))

    @property
    def first(self) -> Tensor:
        return next(iter(self))

    def part(self, start: int, end: int) -> Pictures:
        return dataclasses.replace(self, pixels=self.pixels[start:end], names=self.names[start:end])


@dataclasses.dataclass(frozen=True)
class Job:
    """One conversion under way."""

    resolved: models.Resolved
    model: nn.Module
    fast: nn.Module
    pictures: Pictures  # those that nothing was calibrated on


def run(args: argparse.Namespace) -> int:
    from accel.nn.precision import imitated_bf16

    with output_folder(args.output, REPORT_FILE) as folder:
        job = prepare(args)
        profile, speed = measure(args, job)
        fidelity = compare_pictures(args, job, folder / "pictures")
        save_verified(job, folder / "model")
        summary = {"model": args.model, **speed, **fidelity.summary()}
        if (imitated := imitated_bf16(job.fast)) is not None:
            summary["imitated"] = imitated
        report = {"schema": _REPORT_SCHEMA, "summary": summary, "layers": profile.rows}
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
        write_page(folder, job, summary, profile)
    common.print_report(profile, args, summary, sentences(summary))
    models.standardise_note(args, job.resolved)
    pictures = "pictures/, " if (args.output / "pictures").is_dir() else ""
    common.note(
        args, f"saved in {args.output}/: model/ (loaded back: same outputs), {pictures}{REPORT_FILE}, {PAGE_FILE}"
    )
    return 0


def prepare(args: argparse.Namespace) -> Job:
    """Load the model and the pictures, and convert."""
    import accel
    from accel.zoo.picture_files import find_images

    paths = find_images(args.images, args.limit)
    resolved = models.resolve_dense(args, adaptive=args.speedup is None and args.low_rank is None)
    device = conversion.device_of(args)
    pixels, files = read_pictures(args, paths, args.size or resolved.size)
    names = [f"{index:04d}_{path.stem}" for index, path in enumerate(files)]
    pictures = Pictures(pixels, names, resolved.prepare, args.batch, device)
    model = resolved.model.to(device)
    resolved.check(pictures.first)
    rules = wanted_rules(args, resolved.name)
    calibration, others = split_pictures(args, pictures, rules)
    if args.speedup is not None:
        rules = accel.search(
            model,
            example_inputs=pictures.first,
            calibration=calibration,
            speedup=args.speedup,
            **common.search_options(args),
        )
        if not any(rules.values()):
            raise ConversionError(
                f"--speedup {args.speedup:g} is met by the dense network: there is nothing to convert"
            )
    base = model
    if args.low_rank is not None:
        base = accel.decompose_model(
            model, calibration=calibration, macs=args.low_rank, ranks=whole_layers(args, resolved.name, rules)
        )
    fast = accel.convert_model(base, rules, example_inputs=pictures.first, calibration=calibration)
    return Job(resolved, model, fast, others)


def wanted_rules(args: argparse.Namespace, name: str | None) -> Rules | Perforate:
    """What the options ask for; with --speedup a target, that is still to be searched for.

    Raises:
        ConfigError: options that contradict each other, or values that make no sense.
    """
    from accel.config import Perforate

    if args.speedup is None:
        return conversion.read_rules(args, name)
    if args.low_rank is not None:
        raise ConfigError("--speedup chooses low ranks by itself: leave out --low-rank, or give --keep with it")
    if conversion.wants_conversion(args, but="precision"):
        raise ConfigError("--speedup finds what to keep: leave out --keep, --mask, --interpolate and --rules")
    given = {} if args.precision is None else {"precision": args.precision}
    return Perforate(speedup=args.speedup, seed=args.seed, **given)


def whole_layers(args: argparse.Namespace, name: str | None, rules: Rules | Perforate) -> dict[str, None]:
    """Patterns of the layers that --low-rank leaves whole: which a file's rules, or the default ones, leave dense."""
    from accel.zoo.registry import dense_layers

    if args.rules is not None:
        return {pattern: None for pattern, config in rules.items() if config is None}
    return {} if name is None else dict.fromkeys(dense_layers(name))


def split_pictures(
    args: argparse.Namespace, pictures: Pictures, rules: Config | Rules
) -> tuple[Pictures | None, Pictures]:
    """(pictures to calibrate on, pictures to compare the outputs on), disjoint; all to compare where none calibrates.

    Raises:
        ConfigError: rules that need calibration, and a single picture.
    """
    if args.low_rank is None and not conversion.needs_calibration(rules):
        return None, pictures
    count = min(conversion.CALIBRATED, len(pictures.pixels) // 2)
    if count == 0:
        raise ConfigError(
            "the rules need calibration on pictures other than those compared: give two or more with --images"
        )
    common.note(
        args, f"calibrating on the first {count} pictures, comparing on the other {len(pictures.pixels) - count}"
    )
    return pictures.part(0, count), pictures.part(count, len(pictures.pixels))


def sentences(summary: dict[str, Any]) -> list[str]:
    """The summary for a reader."""
    from accel.reports.tables import show_macs

    low, high = summary["speedup_10_to_90_percent"]
    fastest = summary["fastest_dense"].removeprefix("dense_")
    formats = {"dense_nchw_ms": "NCHW", "dense_channels_last_ms": "channels_last"}
    forms = [f"{summary[key]} ms in {name}" for key, name in formats.items() if key in summary]
    lines = [
        f"dense:     {show_macs(summary['dense_macs'])}MACs, {', '.join(forms)}",
        f"converted: {show_macs(summary['executed_macs'])}MACs, {summary['converted_ms']} ms",
        f"speed-up:  {summary['speedup']:.2f} against dense {fastest} "
        f"(10 % to 90 % of the rounds: {low:.2f} to {high:.2f}), {summary['theoretical_speedup']:.2f} in theory; "
        f"batch {summary['batch']}, {summary['threads']} threads",
        f"quality:   mean absolute difference {summary['mean_abs_difference']:.4f} on {summary['pictures']} "
        f"picture{'s' * (summary['pictures'] != 1)}",
    ]
    for key, text in (("iou_at_0.5", "IoU at 0.5"), ("top1_agreement", "top-1 agreement")):
        if key in summary:
            lines[-1] += f", {text} {summary[key]:.3f}"
    return [*lines, summary["imitated"]] if "imitated" in summary else lines


def measure(args: argparse.Namespace, job: Job) -> tuple[Profile, dict[str, Any]]:
    """The per-layer profile beside the faster dense memory format, and the whole network's times against both."""
    import torch

    import accel
    from accel.profiling.latency import compare, ratio
    from accel.profiling.sides import DENSE, fastest, network_sides

    x = job.pictures.first
    common.note(args, f"measuring on {'x'.join(map(str, x.shape))}, {torch.get_num_threads()} threads")
    with torch.inference_mode():
        timing = compare(network_sides(job.model, job.fast, x), repeats=_REPEATS)
        best = fastest(timing, DENSE)
        speedup = ratio(timing[best], timing["converted"])
        profile = accel.profile(job.fast, x, baseline=job.model)
    dense, executed = accel.count_macs(job.model, x), accel.count_macs(job.fast, x)
    return profile, {
        "batch": len(x),
        "size": "x".join(map(str, x.shape[2:])),
        "threads": torch.get_num_threads(),
        "dense_macs": dense,
        "executed_macs": executed,
        **{f"{name}_ms": round(timing[name].median_ms, 2) for name in timing},
        "fastest_dense": best,
        "speedup": round(speedup.median, 3),
        "speedup_10_to_90_percent": [round(speedup.low, 3), round(speedup.high, 3)],
        "theoretical_speedup": round(dense / executed, 3),
    }


def compare_pictures(args: argparse.Namespace, job: Job, folder: pathlib.Path) -> Fidelity:
    """Run both networks over every picture; where the output is a map, write input, dense, converted, difference."""
    import torch

    from accel.nn.stage_outputs import answer_of
    from accel.profiling.distances import Fidelity
    from accel.running import first_tensor

    fidelity, done = Fidelity(), 0
    batches = -(-len(job.pictures.pixels) // job.pictures.batch)
    with torch.inference_mode():
        for x in common.progress(args, job.pictures, "comparing outputs", total=batches):
            dense, ours = (first_tensor(answer_of(net(x))) for net in (job.model, job.fast))
            fidelity.add(dense, ours)
            if fidelity.kind == "map":
                folder.mkdir(exist_ok=True)
                for before, after in zip(dense[:, 0], ours[:, 0]):
                    tiles = [job.pictures.pixels[done], before, after, (before - after).abs()]
                    write_strip(folder / f"{job.pictures.names[done]}.png", tiles)
                    done += 1
    return fidelity


def write_page(folder: pathlib.Path, job: Job, summary: dict[str, Any], profile: Profile) -> None:
    """The page for people, and its figure of where the network computes as a file."""
    from accel.cli.convert_report import draw_looked, looked_at, page
    from accel.convert import perforated_layers
    from accel.profiling.machine import machine_record

    figure = draw_looked(job.pictures.pixels[0], *looked_at(job.fast, job.pictures.first))
    figure.savefig(folder / "computed.png", dpi=110)
    fixed = all(layer.config.masking.is_static for layer in perforated_layers(job.fast).values())
    text = page(summary["model"], summary, profile, machine_record(), figure, folder / "pictures", fixed)
    (folder / PAGE_FILE).write_text(text, encoding="utf-8")


def save_verified(job: Job, folder: pathlib.Path) -> None:
    """Save the converted model, load it back into a fresh copy of the dense one, and compare the outputs.

    Raises:
        ConversionError: the loaded model computes something else.
    """
    import torch

    import accel
    from accel.nn.stage_outputs import answer_of
    from accel.running import copied, first_tensor

    accel.save_converted(job.fast, folder)
    models.write_source(folder, job.resolved)
    blank = models.plain(copied(job.model))
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()  # so that the weights can only come from the file
    loaded = accel.load_converted(folder, blank)
    x = job.pictures.first
    with torch.inference_mode():
        expected, got = (first_tensor(answer_of(net(x))) for net in (job.fast, loaded))
    if not torch.equal(expected, got):
        worst = float((expected - got).abs().max())
        raise ConversionError(f"the saved model computes something else (up to {worst:.3g} apart): nothing was written")
