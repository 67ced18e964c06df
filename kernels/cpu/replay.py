"""Chains of convolutions recorded from one run and run again as one call of the engine: see replay.c."""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import empty, pixels_first
from accel.kernels.quantize import refuse_odd

# What a group of images may take of a core's caches. ResNet-32 at half the positions took 14.0 ms on 64 pictures with 1
# and with 2 MiB, 14.9 ms with 4 MiB.
CACHE = 2 << 20  # bytes
MOST = 256 << 20  # bytes of all maps together: recording keeps every one of them, and longer calls gain nothing
BALANCED = 0.9  # share of the threads' time that must find work


# Of a recorded call: its record, and the fields that a replay fills in.
_JOBS = {
    "convolve": (record.JOB, ("x", "residual", "out", "threads")),
    "footprints": (record.FOOTPRINT_JOB, ("x", "residual", "added", "out", "bytes", "threads")),
    "quantize": (record.QUANTIZING, ("x", "out", "threads")),
    "round_bf16": (record.ROUNDING, ("x", "out", "threads")),
    "max_rows": (record.MAX_JOB, ("rows", "out", "threads")),
    "frame": (record.FRAME, ("x", "out", "threads")),
    "place": (record.PLACING, ("rows", "other", "out", "threads")),
    "mean_rows": (record.MEAN_JOB, ("rows", "out", "threads")),
}
_LONGEST = record.RECORDED_CALL.size + max(job.size for job, _ in _JOBS.values())  # engine.h's ReplayCall
_LINE = 64  # bytes of a cache line


@dataclasses.dataclass
class _Buffer:
    """A tensor that recorded calls read or write, from the `first` to the `last` of them; those outside for ever."""

    tensor: Tensor
    first: int
    last: int
    outside: int = -1


class TooLarge(Exception):
    """The maps of one image alone are more than a recording may keep: there is no need to go on."""


class Tape:
    """The engine calls of one run. It keeps the tensors alive, so that an address says which one is meant."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.buffers = [_Buffer(x, 0, 0, index) for index, x in enumerate(inputs)]
        self.calls: list[bytes] = []
        self.kept: list[object] = []
        self.weights = 0  # bytes of the largest
        self.bytes = sum(x.nbytes for x in inputs)
        self.understood = True
        self._places = {x.data_ptr(): index for index, x in enumerate(inputs)}

    def append(
        self,
        kind: str,
        x: Tensor,
        residual: Tensor | None,
        out: Tensor,
        job: bytes | None,
        given: Mapping[str, float],
        weights: Tensor | None = None,
        others: tuple = (),
        edges: Tensor | None = None,
    ) -> None:
        """A call of one of `record.CALLS`, packed but for what is `given`; `others` hold what else it points to."""
        tensors = {name: t for name, t in (("x", x), ("residual", residual), ("edges", edges)) if t is not None}
        read = {name: self._places.get(t.data_ptr(), -1) for name, t in tensors.items()}
        if any(at < 0 or self.buffers[at].tensor.nbytes != tensors[name].nbytes for name, at in read.items()):
            self.understood = False  # something else was computed in between, or what is read is a part of a map
            return
        for buffer in read.values():
            self.buffers[buffer].last = len(self.calls)
        place = self._places.get(out.data_ptr())
        if place is None:
            place = self._write_to(out)
        else:  # another call wrote a part of it
            self.buffers[place].last = len(self.calls)
        call = record.RECORDED_CALL.struct(**{"residual": -1, "edges": -1, **read}, kind=record.CALLS[kind], out=place)
        made, filled_in = _JOBS[kind]
        self.calls.append(call + made.struct(job, **dict.fromkeys(filled_in, 0), **given))
        self.kept += (weights, others)
        self.weights = max(self.weights, 0 if weights is None else weights.nbytes)

    def _write_to(self, out: Tensor) -> int:
        """A buffer for what the next call is the first to write to."""
        self.bytes += out.nbytes
        if self.bytes > MOST:
            raise TooLarge
        place = self._places[out.data_ptr()] = len(self.buffers)
        self.buffers.append(_Buffer(out, len(self.calls), len(self.calls)))
        return place

    def mark_outputs(self, outputs: Sequence[object], inputs: int) -> bool:
        """Whether calls wrote every one of these maps, each another one; they lie outside from then on."""
        for index, out in enumerate(outputs):
            if not isinstance(out, Tensor) or out.dim() != 4 or out.dtype not in (torch.float32, torch.uint8):
                return False
            buffer = self.buffers[self._places.get(out.data_ptr(), 0)]
            same = out.dtype is torch.uint8 or buffer.tensor.shape == out.shape  # maps in bytes are made as rows
            if buffer.outside >= 0 or buffer.tensor.nbytes != out.nbytes or not same:
                return False
            buffer.outside = inputs + index
        return self.understood and inputs + len(outputs) <= record.MOST_OUTSIDE


_tape: contextvars.ContextVar[Tape | None] = contextvars.ContextVar("accel_tape", default=None)


def tape() -> Tape | None:
    """The tape that engine calls are recorded on, if any is."""
    return _tape.get()


class Program:
    """A recorded run of `group` images, made ready for `batch`."""

    def __init__(self, tape: Tape, outputs: Sequence[Tensor], group: int, batch: int) -> None:
        self._groups, self._threads = batch // group, torch.get_num_threads()
        self._made = [((batch, *out.shape[1:]), torch.channels_last, out.dtype) for out in outputs]
        offsets, self._bytes = arrange(tape.buffers)
        buffers = [
            record.REPLAY_BUFFER.struct(outside=b.outside, bytes=offset if b.outside < 0 else b.tensor.nbytes)
            for b, offset in zip(tape.buffers, offsets)
        ]
        self._tables = [_table(tape.calls, _LONGEST), _table(buffers, record.REPLAY_BUFFER.size)]
        calls, places = self._tables
        outside = sum(b.outside >= 0 for b in tape.buffers)
        self._replay = record.REPLAY.pack(
            calls=calls.data_ptr(), buffers=places.data_ptr(), call_count=len(calls), buffer_count=len(buffers),
            memory_each=self._bytes, groups=self._groups, threads=self._threads, outside_count=outside,
        )  # fmt: skip
        self._kept = tape.kept

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs for channels_last inputs of the recorded shapes and dtypes, of the whole batch.

        Raises:
            ValueError: a NaN or an infinity, of which no byte can be made.
        """
        outputs = tuple([empty(*made) for made in self._made])
        memory = empty((min(self._groups, self._threads) * self._bytes,), dtype=torch.uint8)
        at = [x.data_ptr() for x in (*inputs, *outputs)]
        if not _engine.replay(self._replay, *at, memory=memory.data_ptr()):
            refuse_odd()
        return outputs


def _table(structs: Sequence[bytes], size: int) -> Tensor:
    """uint8 [structs, size], each filled up."""
    whole = bytearray(b"".join(each.ljust(size, b"\0") for each in structs))
    return torch.frombuffer(whole, dtype=torch.uint8).view(len(structs), size).clone()


def prepare_replay(run: Callable[..., Sequence[object]], inputs: Sequence[Tensor]) -> Program | None:
    """See `accel.kernels.replay.prepare_replay`."""
    batch = len(inputs[0])
    try:
        recorded = _record(run, [x[:1] for x in inputs])
    except TooLarge:
        return None
    if recorded is None:
        return None
    probe = recorded[0]
    held = arrange(probe.buffers)[1] + max(b.tensor.nbytes for b in probe.buffers if b.outside >= 0)
    group = group_size(batch, held, probe.weights, torch.get_num_threads())
    if group * sum(buffer.tensor.nbytes for buffer in probe.buffers) > MOST:
        return None
    if group > 1:
        recorded = _record(run, [x[:group] for x in inputs])
    return Program(*recorded, group, batch)


def _record(run: Callable[..., Sequence[object]], inputs: Sequence[Tensor]) -> tuple[Tape, Sequence[Tensor]] | None:
    maps: list[Tensor] = []
    for x in map(pixels_first, inputs):  # one map given twice must lie in two places: the next call brings two maps
        maps.append(x.clone() if any(x.data_ptr() == other.data_ptr() for other in maps) else x)
    made = Tape(maps)
    token = _tape.set(made)
    try:
        outputs = run(*(buffer.tensor for buffer in made.buffers))
    finally:
        _tape.reset(token)
    return (made, outputs) if made.mark_outputs(outputs, len(inputs)) else None


def group_size(batch: int, held: int, weights: int, threads: int) -> int:
    """Images of a group, a divisor of the batch: as many as fit the caches, if there are enough groups; else all.

    Args:
        held: bytes that the maps of one image take at a time.
        weights: bytes of the largest layer's, which every group reads again.
    """
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n * held + weights <= CACHE]
    rounds = {n: -(-batch // n // threads) for n in fitting}
    return max((n for n in fitting if batch // n >= BALANCED * rounds[n] * threads), default=batch)


def arrange(buffers: Sequence[_Buffer]) -> tuple[list[int], int]:
    """(offset of each buffer that lies inside, bytes in all), so that none overlaps another while both are in use."""
    offsets, placed, end = [], [], 0
    for buffer in buffers:
        if buffer.outside >= 0:
            offsets.append(0)
            continue
        size = -(-buffer.tensor.nbytes // _LINE) * _LINE
        start = 0
        for other, low, high in sorted(placed, key=lambda entry: entry[1]):
            if other.last >= buffer.first and low < start + size and start < high:
                start = high
        placed.append((buffer, start, start + size))
        offsets.append(start)
        end = max(end, start + size)
    return offsets, end


def isa() -> str:
    """The instruction set in use, which packed weights are for."""
    return _engine.isa()
