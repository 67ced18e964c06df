"""Runs verbs for `test_interrupt.py`, each in a child of this process, which has imported everything once.

Reads a JSON object a line: argv, folder, place ("module:function"), count, settings ("module:name" -> value); answers
with one: code (the child's exit status), calls (of the function), out, err. Before the count-th call of the function
the child waits, and its process group gets SIGINT, as from a terminal. A count of 0 lets it end.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import signal
import sys
import tempfile
import traceback


def counted(place: str, count: int, report: int) -> None:
    """Let a function write a byte as it is called, and wait before the count-th call is made."""
    module, _, name = place.partition(":")
    owner = importlib.import_module(module)
    real, calls = getattr(owner, name), 0

    def watched(*args, **kwargs):
        nonlocal calls
        calls += 1
        os.write(report, b"!" if calls == count else b".")
        while calls == count:
            signal.pause()
        return real(*args, **kwargs)

    setattr(owner, name, watched)


def child(asked: dict, report: int, output: pathlib.Path) -> int:
    """The exit code of the verb."""
    os.setpgid(0, 0)
    os.chdir(asked["folder"])
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / name, os.O_CREAT | os.O_WRONLY), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent of this one ignores
    for place, value in asked["settings"].items():
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, value)
    counted(asked["place"], asked["count"], report)
    return main.main(asked["argv"])


def run(asked: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        output, (reader, writer) = pathlib.Path(folder), os.pipe()
        pid = os.fork()
        if not pid:
            code = 70
            try:
                code = child(asked, writer, output)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(writer)
        calls = 0
        while said := os.read(reader, 4096):
            calls += len(said)
            if b"!" in said:
                os.killpg(pid, signal.SIGINT)
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        said = {name: (output / name).read_text() for name in ("out", "err")}
        return {"code": os.waitstatus_to_exitcode(status), "calls": calls, **said}


if __name__ == "__main__":
    import torch

    from accel.cli import main

    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    for module in json.loads(sys.argv[1]):
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
    os._exit(0)  # what was imported need not be taken apart
