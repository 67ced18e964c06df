"""`accel demo`: a small network that ships with the package, dense and perforated, on pictures drawn on the spot."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accel.cli import common
from accel.files import output_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel.cli.demo_report import Findings
    from accel.profiling.latency import Timing
    from accel.zoo.shapes import Shapes

MODEL = "zoo:demo_resnet"
MASK = "lattice"  # the kind the network was trained under; see its recipe
KEEPS = {"keep 1/2": 1 / 2, "keep 1/3": 1 / 3, "keep 1/4": 1 / 4}
SIZE = 128
REPORT_FILE = "report.html"
PORT = 7860
_BATCH = 8
_REPEATS = 15  # interleaved rounds: about 10 s on two cores
_TEST_PICTURES = 256  # one standard deviation of an accuracy of 95 % is 1.4 %


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub,
        "demo",
        run,
        "convert a small network, time it against its dense form, and write a report with pictures",
        "accel demo -o demo\n"
        "  accel demo vae -o demo_vae    (the VAE that ships: samples, its latent torus, outliers)\n"
        "  accel demo --serve            (a page to try pictures and tables on, until Ctrl-C; extra 'demo')",
    )
    parser.add_argument("what", nargs="?", choices=("network", "vae"), default="network", help="default: network")
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, default=pathlib.Path("demo"), metavar="DIR", help="default: demo"
    )
    parser.add_argument("--serve", action="store_true", help="a live page instead, at an address of this machine only")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"of that page (default {PORT})")
    common.add_format(parser)


@dataclasses.dataclass(frozen=True)
class Trial:
    """The dense network, its conversions by name, and the pictures they are tried on."""

    dense: nn.Module
    converted: dict[str, nn.Module]
    shapes: Shapes
    inputs: Tensor

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"dense": self.dense, **self.converted}


def run(args: argparse.Namespace) -> int:
    if args.serve:
        return serve(args)
    if args.what == "vae":
        from accel.cli.vae_eval import run_demo

        return run_demo(args)
    import torch

    from accel.cli.demo_report import write_report

    started = time.monotonic()
    with output_folder(args.output, REPORT_FILE) as folder, torch.inference_mode():
        trial = prepare(args)
        found = examine(args, trial)
        write_report(folder / REPORT_FILE, found)
        (folder / "results.json").write_text(
            json.dumps({"rows": found.rows, "machine": found.machine}, indent=2) + "\n"
        )
    show(args, found)
    common.note(args, f"written in {time.monotonic() - started:.0f} s: open {args.output / REPORT_FILE}")
    return 0


def serve(args: argparse.Namespace) -> int:
    """The live page, until it is interrupted."""
    from accel.errors import ConfigError

    if args.what == "vae":
        raise ConfigError("the live page shows networks and tables: leave 'vae' out, or --serve")
    try:
        from accel.cli.live_page import served
    except ModuleNotFoundError as error:
        raise ConfigError(f"the live page needs {error.name}: pip install 'skimconv[demo]'") from error
    with served(args.port, args.seed) as (address, server, listening):
        print(f"open {address} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listening])
    return 0


def prepare(args: argparse.Namespace) -> Trial:
    """Load the network, convert it once per keep, draw the pictures."""
    import torch

    import accel
    from accel.zoo.registry import default_rules, get_model
    from accel.zoo.shapes import draw_shapes, normalise

    dense = get_model(MODEL).to(memory_format=torch.channels_last)
    shapes = draw_shapes(_TEST_PICTURES, SIZE, torch.Generator().manual_seed(args.seed))
    inputs = normalise(shapes.images).contiguous(memory_format=torch.channels_last)
    converted = {}
    for name, keep in KEEPS.items():
        rules = default_rules(MODEL, accel.Perforate(keep=keep, mask=MASK, seed=args.seed))
        converted[name] = accel.convert_model(dense, rules, example_inputs=inputs[:_BATCH])
    return Trial(dense, converted, shapes, inputs)


def examine(args: argparse.Namespace, trial: Trial) -> Findings:
    """Quality first, then time, then pictures."""
    import torch

    import accel
    from accel.cli.demo_pictures import kept_positions, object_masks
    from accel.cli.demo_report import Findings
    from accel.profiling.machine import machine_record

    batches = common.progress(args, trial.inputs.split(_BATCH), "looking at pictures")
    outputs: dict[str, list] = {name: [] for name in trial.networks}
    for x in batches:
        for name, net in trial.networks.items():
            outputs[name].append(net(x))
    joined = {name: tuple(torch.cat(part) for part in zip(*parts)) for name, parts in outputs.items()}
    timings = measure(args, trial)
    middle = next(iter(trial.converted))
    return Findings(
        rows=table_rows(trial, joined, timings),
        layers=accel.profile(trial.converted[middle], trial.inputs[:_BATCH], baseline=trial.dense),
        pictures={
            "objects.png": object_masks(trial.shapes, joined),
            "kept_positions.png": kept_positions(trial.shapes, trial.converted),
        },
        machine=machine_record(),
        batch=_BATCH,
        test_pictures=_TEST_PICTURES,
    )


def measure(args: argparse.Namespace, trial: Trial) -> dict[str, Timing]:
    """Interleaved times of a batch: three dense forms, and every conversion."""
    import torch

    x = trial.inputs[:_BATCH]
    common.note(args, f"measuring on {tuple(x.shape)}, {torch.get_num_threads()} threads")
    return times(trial.dense, trial.converted, x, _REPEATS)


def times(dense: nn.Module, converted: Mapping[str, nn.Module], x: Tensor, repeats: int) -> dict[str, Timing]:
    """Interleaved times of a call on x: three dense forms, whose names start with "dense", and every conversion."""
    import torch
    from torch.fx.experimental.optimization import fuse

    from accel.profiling.latency import compare
    from accel.profiling.sides import FORMATS, in_format

    folded = fuse(dense)  # batch norms folded, as conversion does
    sides = {name: in_format(dense, x, memory_format) for name, memory_format in FORMATS.items()}
    sides["dense_folded"] = in_format(folded, x, torch.channels_last)
    sides |= {name: in_format(net, x, torch.channels_last) for name, net in converted.items()}
    return compare(sides, repeats=repeats)


def fastest_dense(timings: Mapping[str, Timing]) -> Timing:
    """Of what `times` found."""
    from accel.profiling.sides import fastest

    return timings[fastest(timings, [name for name in timings if name.startswith("dense")])]


def table_rows(trial: Trial, outputs: Mapping[str, tuple], timings: Mapping[str, Timing]) -> list[dict[str, Any]]:
    """One row per dense form and per conversion; speed-ups are against the fastest dense form."""
    from accel.profiling.flops import count_macs, static_macs
    from accel.profiling.latency import ratio
    from accel.zoo.demo_net import mask_iou

    dense_macs = static_macs(trial.dense, trial.inputs[:1])
    best = fastest_dense(timings)
    rows = []
    for name, timing in timings.items():
        net = "dense" if name.startswith("dense") else name
        logits, masks = outputs[net]
        macs = count_macs(trial.networks[net], trial.inputs[:1])
        speedup = ratio(best, timing)
        rows.append(
            {
                "network": name.replace("_", ", ", 1).replace("_", " "),
                "macs": macs,
                "share_of_macs": macs / dense_macs,
                "ms_per_picture": timing.median_ms / _BATCH,
                "speedup": speedup.median,
                "speedup_low": speedup.low,
                "speedup_high": speedup.high,
                "speedup_by_macs": dense_macs / macs,
                "accuracy": float((logits.argmax(1) == trial.shapes.labels).float().mean()),
                "mask_iou": float(mask_iou(masks, trial.shapes.masks).mean()),
            }
        )
    return rows


def show(args: argparse.Namespace, found: Findings) -> None:
    """Print the table: coloured columns on a terminal, plain rows in the other formats."""
    if args.format != "table":
        common.print_rows(found.rows, args)
        return
    import rich.console
    import rich.table
    from rich import box

    from accel.cli.demo_report import COLUMNS

    table = rich.table.Table(title=found.title(), box=box.SIMPLE_HEAD, title_justify="left")
    for index, (heading, _) in enumerate(COLUMNS):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in found.rows:
        table.add_row(*(text(row) for _, text in COLUMNS), style="" if row["network"].startswith("dense") else "bold")
    rich.console.Console(width=116).print(table)  # on a narrower terminal lines wrap, columns stay whole
