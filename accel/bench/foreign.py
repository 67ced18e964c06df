"""Cases of kind `foreign`: a network that others wrote keeps every promise of a conversion.

A case: `name` (FAMILY:NAME, as `accel.bench.foreign_nets` knows it), `size` [H, W], `other` [H, W] (a second size),
`images` (a folder of photographs), and maybe `seconds` that the network may take. Each runs in a process of its own:
one that crashes or hangs is a row too. The columns are those of `accel.bench.foreign_checks`.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import pathlib
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from accel.bench.runner import Row, Settings

if TYPE_CHECKING:
    from accel.bench.foreign_checks import Pictures

SHOWN = (
    *("case", "keep_1", "half", "fitted", "saved", "copied", "reverted", "other_size", "fitted_other_size"),
    *("fast", "seconds", "correct", "reason"),
)
PRELOADED = ["torchvision", "timm", "transformers", "segmentation_models_pytorch", "ultralytics.nn.tasks"]
_SEEN, _UNSEEN = 12, 12  # photographs to fit on, and to judge by
_SECONDS = 300.0  # 4 to 40 on two idle cores


def rows(case: Mapping[str, Any], settings: Settings) -> Iterator[Row]:
    from accel.zoo.picture_files import find_images

    found = find_images(pathlib.Path(case["images"]), _SEEN + _UNSEEN)
    start = time.perf_counter()
    outcome = isolated(functools.partial(examine, dict(case), found, settings.seed), case.get("seconds", _SECONDS))
    row = outcome if isinstance(outcome, dict) else {"correct": False, "reason": outcome}
    errors = [row.get(check, math.inf) for check in ("keep_1", "half", "other_size")]
    error = max(error for error in errors if error is not None)
    yield {**row, "error": error, "seconds": round(time.perf_counter() - start, 1)}


def examine(case: Mapping[str, Any], found: list[pathlib.Path], seed: int) -> Row:
    """The row of one network, in this process."""
    from accel.bench.foreign_checks import check

    row = check(case["name"], read_pictures(found, case["size"], case["other"]), seed)
    return {**row, "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)}


def read_pictures(found: list[pathlib.Path], size: list[int], other: list[int]) -> Pictures:
    """Photographs as networks like them: of mean 0 and deviation 1 or so in every channel."""
    import torch

    from accel.bench.foreign_checks import Pictures
    from accel.zoo.picture_files import read_picture

    def read(paths: list[pathlib.Path], size: list[int]) -> torch.Tensor:
        pictures = torch.stack([read_picture(path, tuple(size)) for path in paths])
        return (pictures.float() / 255 - 0.45) / 0.225  # ImageNet's mean and deviation, alike for the three colours

    return Pictures(read(found[:_SEEN], size), read(found[_SEEN:], size), read(found[:_SEEN], other))


def isolated(work: Callable[[], Row], seconds: float) -> Row | str:
    """What `work` gives in a process of its own, or in one line why it gave nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # not the engine: in a process forked after its start it runs serially
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return f"gave up after {seconds:g} s"
        return receiver.recv()
    except EOFError:
        process.join()
        return f"the process died with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        receiver.close()


def _send(sender: connection.Connection, work: Callable[[], Row]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(work())
    except Exception as error:  # of a stranger's network, before any check of it
        sender.send(f"{type(error).__name__}: {error}"[:300])


def _end_with_parent() -> None:
    """An interrupted bench leaves no network running."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
