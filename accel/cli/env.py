"""`accel env`: the machine, the versions, and which backend computes what."""

from __future__ import annotations

import argparse

from accel.cli import common


def add_parser(sub: argparse._SubParsersAction) -> None:
    parser = common.add_verb(
        sub, "env", run, "show the machine, the versions and the backends", "accel env --format json"
    )
    common.add_format(parser)


def run(args: argparse.Namespace) -> int:
    from accel.profiling.machine import machine_record

    record = machine_record()
    common.print_rows([{"what": key, "value": value} for key, value in record.items()], args)
    return 0
