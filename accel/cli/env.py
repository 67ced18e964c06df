"""`accel env`: the machine, the versions, and which backends can run here."""

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

    record = machine_record() | {f"backend {name}": state for name, state in backend_states().items()}
    common.print_rows([{"what": key, "value": value} for key, value in record.items()], args)
    return 0


def backend_states() -> dict[str, str]:
    """For every backend 'available', or the one line that says why it is not."""
    import torch

    from accel.kernels.dispatch import BACKENDS, use_backend

    states = {}
    for name in BACKENDS:
        try:
            with use_backend(name):
                states[name] = "available"
        except RuntimeError as error:
            states[name] = str(error)
    if states["triton"] == "available" and not torch.cuda.is_available():
        states["triton"] = "installed, but torch sees no CUDA device"
    return states
