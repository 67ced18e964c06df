"""Tables of a whole ACT or SACT stage for the engine: frames, buffers, and the convolutions between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from accel.kernels.caches import keep_newest
from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import CPU, address, empty, pixels_first, require_float32
from accel.kernels.cpu.footprints import chain
from accel.kernels.cpu.forward import forward_kind, is_narrow
from accel.kernels.cpu.packing import packed_weight
from accel.kernels.cpu.plans import frame_pieces
from accel.kernels.cpu.record import INPUT, MAX_REACH, STATE
from accel.kernels.positions import output_size
from accel.kernels.quantize import refuse_odd
from accel.kernels.stage import StageConv, StageHead, StageResult, StageUnit

Pair = tuple[int, int]
GROUPS_A_THREAD = 8  # where the batch has so many images: threads that take groups side by side need not wait
GROUPS_TO_SHARE = 4  # a thread: with fewer, groups run one after the other with all threads in each (stage.c)
MOST_CALLS, MOST_LAYOUTS = 64, 4  # batches and threads a plan is kept ready for, and layouts of its scratch memory
FLOAT, LINE = 4, 64  # bytes of a float, and of a cache line
GROUP_POSITIONS = 1024  # of one group of images: enough rows for full tiles, few enough for the maps to stay in cache


class Grid:
    """The positions of a map inside a frame with `border` zero pixels on every side."""

    def __init__(self, size: Pair, border: int) -> None:
        self.size, self.border = size, border
        self.pitch = size[1] + 2 * border
        self.pixels = (size[0] + 2 * border) * self.pitch

    def places(self, count: Pair, stride: Pair = (1, 1)) -> Tensor:
        """int32 [count[0] * count[1]]: the frame pixel of every stride-th position."""
        rows, cols = (torch.arange(n, dtype=torch.int32, device=CPU) * s + self.border for n, s in zip(count, stride))
        return (rows[:, None] * self.pitch + cols).flatten()

    def offsets(self, kernel: Pair, padding: Pair, dilation: Pair) -> Tensor:
        """int32 [kh * kw]: where the taps of a position lie, seen from its place."""
        sides = zip(kernel, padding, dilation)
        rows, cols = (torch.arange(k, dtype=torch.int32, device=CPU) * d - p for k, p, d in sides)
        return (rows[:, None] * self.pitch + cols).flatten()

    def source(self) -> Tensor:
        """int32 [pixels]: the position that every frame pixel holds, -1 in the border."""
        held = torch.full((self.pixels,), -1, dtype=torch.int32, device=CPU)
        held[self.places(self.size).long()] = torch.arange(self.size[0] * self.size[1], dtype=torch.int32, device=CPU)
        return held


@dataclasses.dataclass(frozen=True)
class _Buffer:
    """A map's frame for every image of a group: pixels of floats, or of bytes with `zero` in its border."""

    pixels: int
    channels: int
    itemsize: int = FLOAT
    zero: int = 0

    @property
    def fields(self) -> dict[str, int]:
        """Of StageBuffer in record.py, but for its place."""
        return {"pixels": self.pixels, "channels": self.channels, "itemsize": self.itemsize}

    @property
    def bytes(self) -> int:
        """Of one image."""
        return self.pixels * self.channels * self.itemsize


class _Call(NamedTuple):
    """What a call needs besides its tensors, for one batch, number of threads and count of MACs before.

    Attributes: images of a group; threads that take groups side by side; floats of a group's buffers; where bytes of
    these begin whose border is not 0, how many, and what it is; Stage of record.py, packed but for what changes between
    calls; the tensors whose addresses that holds.
    """

    group: int
    team: int
    floats: int
    borders: tuple[tuple[int, int, int], ...]
    stage: bytes
    kept: list[Tensor]


class StagePlan:
    """See `accel.kernels.stage.StagePlan`. Its scratch memory is kept and lent to one call at a time."""

    def __init__(
        self,
        units: Sequence[StageUnit],
        shortcut: StageConv | None,
        in_size: Pair,
        *,
        spatial: bool,
        eps: float,
        sticks: bool,
    ) -> None:
        self._kept: list[Tensor] = []  # tensors whose addresses the tables hold
        self._spatial, self._eps, self._sticks, self._units = spatial, eps, sticks, len(units)
        first, size = units[0].convs, in_size
        for conv in first:
            size = _output_size(conv, size)
        self.size, self.channels = size, first[-1].weight.shape[0]
        readers = [first[0], *([shortcut] if shortcut is not None else [])]
        everyone = [conv for unit in units for conv in unit.convs]
        reaches = [_reaches(unit.convs) for unit in units]
        self._reach = max(max(found) for found in reaches[1:]) if len(units) > 1 else 0
        self._border = max(1, self._reach, *(pad for conv in everyone for pad in conv.padding))
        self._in_place = all(conv.padding == (0, 0) for conv in readers)
        self._state = Grid(size, self._border)
        self._input = Grid(in_size, 0 if self._in_place else self._border)
        self._buffers = [
            _Buffer(self._state.pixels, self.channels),
            _Buffer(self._input.pixels, _in_channels(first[0])),
        ]
        self._convs: list[list[int]] = []
        self._most_pixels = 0
        self._found_buffers: dict[tuple, int] = {}  # that later units share
        rows = [self._unit(self._first_unit(first, shortcut), 0)]
        for unit, found in zip(units[1:], reaches[1:]):
            rows.append(self._unit(self._later_unit(unit.convs, found), sum(1 << r for r in set(found))))
        self._rows, self._heads = rows, [unit.head for unit in units]
        head = chain(self._state.offsets((3, 3), (1, 1), (1, 1)))
        self._head_steps = self._keep(head), len(head)
        input_pieces = (0, 0) if self._in_place else self._pieces(self._input)
        self._frames = input_pieces, self._pieces(self._state)
        self._calls: dict[tuple[int, ...], _Call] = {}  # by batch, threads and the MACs of a shortcut
        self._spare: dict[tuple[int, int], list[Tensor]] = {}  # by group and team: see `_borrow`

    def run(self, x: Tensor, shortcut: Tensor | None, macs_before: int = 0) -> StageResult:
        require_float32(x, shortcut)
        batch, threads = x.shape[0], torch.get_num_threads()
        call = self._call(batch, threads, macs_before)
        x = pixels_first(x) if self._in_place else _even(x)
        shortcut = None if shortcut is None else _even(shortcut)
        output = empty((batch, self.channels, *self.size), memory_format=torch.channels_last)
        shape = self.size if self._spatial else ()
        ponder = torch.empty(batch, *shape, dtype=torch.float32, device=CPU)
        executed = torch.empty(batch, *shape, dtype=torch.int32, device=CPU)
        macs = torch.empty(batch, dtype=torch.int64, device=CPU)
        shares = torch.empty(batch, self._units, *shape, dtype=torch.float32, device=CPU)
        memory = self._borrow(call)
        strides, shortcut_strides = _strides(x), (0, 0, 0) if shortcut is None else _strides(shortcut)
        finite = _engine.run_stage(
            call.stage, x=x.data_ptr(), shortcut=address(shortcut), x_stride_n=strides[0], x_stride_c=strides[1],
            x_stride_pixel=strides[2], shortcut_stride_n=shortcut_strides[0], shortcut_stride_c=shortcut_strides[1],
            shortcut_stride_pixel=shortcut_strides[2], memory=memory.data_ptr(), output=output.data_ptr(),
            ponder=ponder.data_ptr(), shares=shares.data_ptr(), executed=executed.data_ptr(), macs=macs.data_ptr(),
        )  # fmt: skip
        self._spare.setdefault((call.group, call.team), []).append(memory)
        keep_newest(self._spare, MOST_LAYOUTS)
        if not finite:
            refuse_odd()
        return StageResult(output, ponder, executed, shares, macs)

    def _borrow(self, call: _Call) -> Tensor:
        """The buffers of `team` groups, their borders zero, or zero points: nothing but the insides is ever written.

        Where the borders lie depends on how many images a group has: only calls of one layout share memory.
        """
        try:
            return self._spare.setdefault((call.group, call.team), []).pop()
        except IndexError:  # none there, or another thread took it
            memory = torch.zeros(call.team * call.floats, dtype=torch.float32, device=CPU)
            for start, length, zero in call.borders:
                memory.view(torch.uint8).view(call.team, -1)[:, start : start + length] = zero
            return memory

    def _call(self, *kind: int) -> _Call:
        found = self._calls.get(kind)
        if found is None:
            found = self._calls[kind] = self._prepare(*kind)
            keep_newest(self._calls, MOST_CALLS)
        return found

    def _prepare(self, batch: int, threads: int, macs_before: int) -> _Call:
        positions = self.size[0] * self.size[1]
        group = max(1, min(GROUP_POSITIONS // max(positions, 1), -(-batch // (GROUPS_A_THREAD * threads))))
        team = threads if -(-batch // group) >= GROUPS_TO_SHARE * threads else 1
        floats, buffers = 0, []
        borders = []
        for index, buffer in enumerate(self._buffers):
            buffers.append(record.STAGE_BUFFER.row(offset=floats, **buffer.fields))
            if index != INPUT or not self._in_place:
                each = -(-group * buffer.bytes // LINE) * LINE // FLOAT
                borders += [(FLOAT * floats, FLOAT * each, buffer.zero)] * (buffer.zero != 0)
                floats += each
        kept: list[Tensor] = []
        rows = [_with_head(row, head, batch, kept) for row, head in zip(self._rows, self._heads)]
        buffers, convs, units = (
            _keep(torch.tensor(table, dtype=torch.int64, device=CPU), kept) for table in (buffers, self._convs, rows)
        )
        (input_pieces, input_count), (shortcut_pieces, shortcut_count) = self._frames
        head_steps, head_step_count = self._head_steps
        stage = record.STAGE.pack(
            images=batch, group=group, threads=threads, macs_before=macs_before, input_pieces=input_pieces,
            input_count=input_count, shortcut_pieces=shortcut_pieces, shortcut_count=shortcut_count, buffers=buffers,
            convs=convs, units=units, head_steps=head_steps, head_step_count=head_step_count, memory_each=floats,
            unit_count=self._units, height=self.size[0], width=self.size[1], channels=self.channels,
            border=self._border, pitch=self._state.pitch, reach=self._reach, most_pixels=self._most_pixels,
            spatial=self._spatial, sticks=self._sticks, eps=self._eps,
        )  # fmt: skip
        return _Call(group, team, floats, tuple(borders), stage, kept)

    def _pieces(self, frame: Grid) -> tuple[int, int]:
        """(address, number) of the pieces that fill a frame."""
        pieces = frame_pieces(frame.source(), frame.pitch)
        return self._keep(pieces), len(pieces)

    def _unit(self, convs: list[list[int]], reaches: int) -> dict[str, int]:
        self._convs += convs
        return {"first_conv": len(self._convs) - len(convs), "convs": len(convs), "reaches": reaches}

    def _first_unit(self, convs: Sequence[StageConv], shortcut: StageConv | None) -> list[list[int]]:
        """Its convolutions may change the grid, so that each writes to a buffer of its own."""
        rows: list[list[int]] = []
        if shortcut is not None:
            made, bytes = self._bytes_of(shortcut, INPUT, None)
            rows.append(self._conv(shortcut, made, self._input, STATE, self._state, adds=False, **bytes))
        source, grid = INPUT, self._input
        for conv in convs:
            last = conv is convs[-1]
            out = self._state if last else Grid(_output_size(conv, grid.size), self._border)
            target = STATE if last else self._add(_target(conv, out))
            before = shortcut if source == INPUT else None
            made, bytes = self._bytes_of(conv, source, before)
            rows.append(self._conv(conv, made, grid, target, out, adds=last, **bytes))
            source, grid = target, out
        return rows

    def _later_unit(self, convs: Sequence[StageConv], reaches: Sequence[int]) -> list[list[int]]:
        """All on the state's grid; hidden buffers of one kind serve every unit."""
        rows, source = [], STATE
        for index, (conv, reach) in enumerate(zip(convs, reaches)):
            last = index == len(convs) - 1
            hidden = _target(conv, self._state)
            target = STATE if last else self._shared(("hidden", index, hidden), hidden)
            made, bytes = self._bytes_of(conv, source, None)
            rows.append(self._conv(conv, made, self._state, target, self._state, adds=last, reach=reach, **bytes))
            source = target
        return rows

    def _add(self, buffer: _Buffer) -> int:
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def _shared(self, key: tuple, buffer: _Buffer) -> int:
        if key not in self._found_buffers:
            self._found_buffers[key] = self._add(buffer)
        return self._found_buffers[key]

    def _bytes_of(self, conv: StageConv, source: int, before: StageConv | None) -> tuple[int, dict[str, int]]:
        """The buffer that a convolution reads, `source` or the bytes of it, and what that adds to its fields; `before`
        has read the same."""
        if conv.bytes is None:
            return source, record.STAGE_OF_FLOATS
        of, levels = conv.bytes.input, conv.bytes.requantization.levels
        floats = self._buffers[source]
        fields = {
            "kind": record.KINDS["fours"], "multiplier": self._keep(conv.bytes.requantization.multiplier.contiguous()),
            "narrow": levels.out_zero is not None, "out_zero": levels.out_zero or 0, "low": levels.low,
            "high": levels.high, "zero_point": of.zero_point, "inverse": 0, "quantizes": -1,
        }  # fmt: skip
        if floats.itemsize == 1:
            return source, fields
        made = self._shared(("bytes", source), dataclasses.replace(floats, itemsize=1))
        if before is None or before.bytes is None or before.bytes.input != of:
            inverse = torch.tensor([1 / of.scale], dtype=torch.float32, device=CPU)
            fields |= {"inverse": self._keep(inverse), "quantizes": source}
        return made, fields

    def _conv(
        self,
        conv: StageConv,
        source: int,
        grid: Grid,
        target: int,
        out: Grid,
        *,
        adds: bool,
        reach: int = 0,
        **bytes: int,
    ) -> list[int]:
        """The fields of StageConv in record.py."""
        narrow = conv.bytes is None and is_narrow(conv.weight.shape[0], conv.groups)
        packed = packed_weight(conv.weight, conv.groups, "narrow" if narrow else "conv", bytes["zero_point"])
        self._kept += [conv.weight, packed]
        kernel = tuple(conv.weight.shape[2:])
        offsets = grid.offsets(kernel, conv.padding, conv.dilation)
        steps = chain(offsets) if narrow else ()
        pixels = out.size[0] * out.size[1]
        self._most_pixels = max(self._most_pixels, pixels)
        bias = 0 if conv.bias is None else self._keep(conv.bias.contiguous())
        return record.STAGE_CONV.row(
            packed=packed.address, zero=packed.zero, bias=bias, offsets=self._keep(offsets),
            steps=self._keep(steps) if narrow else 0, step_count=len(steps),
            bases=self._keep(grid.places(out.size, conv.stride)), places=self._keep(out.places(out.size)),
            pixels=pixels, source=source, target=target, in_channels=_in_channels(conv),
            out_channels=conv.weight.shape[0], taps=kernel[0] * kernel[1], groups=conv.groups,
            activation=record.ACTIVATIONS[conv.activation], adds=adds, reach=reach, macs=conv.weight.numel(), **bytes,
        )  # fmt: skip

    def _keep(self, tensor: Tensor) -> int:
        return _keep(tensor, self._kept)


def _keep(tensor: Tensor, kept: list[Tensor]) -> int:
    kept.append(tensor)
    return tensor.data_ptr()


def _with_head(unit: dict[str, int], head: StageHead | None, batch: int, kept: list[Tensor]) -> list[int]:
    """The fields of StageUnit in record.py."""
    if head is None:
        return record.STAGE_UNIT.row(**unit, weights=0, bias=0, bias_step=0, pooled=0)
    weight = 0 if head.weight is None else _keep(head.weight.contiguous(), kept)
    if head.bias.dim() == 3 and len(head.bias) != batch:
        raise ValueError(f"the halting head's bias is for {len(head.bias)} images, the input has {batch}")
    step = head.bias[0].numel() if head.bias.dim() == 3 else 0
    bias, pooled = _keep(head.bias.contiguous(), kept), _keep(head.pooled.contiguous(), kept)
    return record.STAGE_UNIT.row(**unit, weights=weight, bias=bias, bias_step=step, pooled=pooled)


def plan_stage(
    units: Sequence[StageUnit], shortcut: StageConv | None, in_size: Pair, *, spatial: bool, eps: float, sticks: bool
) -> StagePlan | None:
    """See `accel.kernels.stage.plan_stage`."""
    convs = [conv for unit in units for conv in unit.convs] + ([] if shortcut is None else [shortcut])
    if any(forward_kind(conv.weight.shape, conv.groups) != "conv" for conv in convs):
        return None
    for unit in units[1:]:  # of one convolution, it would read the state that it overwrites
        if len(unit.convs) == 1 or not all(map(_keeps_size, unit.convs)) or max(_reaches(unit.convs)) >= MAX_REACH:
            return None
    with torch.inference_mode(False), torch.no_grad():
        return StagePlan(units, shortcut, in_size, spatial=spatial, eps=eps, sticks=sticks)


def _keeps_size(conv: StageConv) -> bool:
    window = [(k - 1) * d for k, d in zip(conv.weight.shape[2:], conv.dilation)]
    return conv.stride == (1, 1) and all(2 * p == w for p, w in zip(conv.padding, window))


def _reaches(convs: Sequence[StageConv]) -> list[int]:
    """How far the set of each convolution is dilated, so that those behind it find their inputs."""
    reaches, needed = [], 0
    for conv in reversed(convs):
        reaches.append(needed)
        needed += max((k - 1) * d // 2 for k, d in zip(conv.weight.shape[2:], conv.dilation))
    return reaches[::-1]


def _target(conv: StageConv, out: Grid) -> _Buffer:
    """What a convolution that another one reads writes to."""
    zero = None if conv.bytes is None else conv.bytes.requantization.levels.out_zero
    bytes = {} if zero is None else {"itemsize": 1, "zero": zero}
    return _Buffer(out.pixels, conv.weight.shape[0], **bytes)


def _output_size(conv: StageConv, size: Pair) -> Pair:
    top, left = conv.padding
    return output_size(size, tuple(conv.weight.shape[2:]), conv.stride, (top, top, left, left), conv.dilation)


def _in_channels(conv: StageConv) -> int:
    return conv.weight.shape[1] * conv.groups


def _even(x: Tensor) -> Tensor:
    """x with evenly spaced pixels."""
    height, width = x.shape[2:]
    return x if height == 1 or width == 1 or x.stride(2) == width * x.stride(3) else x.contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of images, channels and pixels; the stride of a dimension of size 1 means nothing."""
    return x.stride(0), x.stride(1), x.stride(3) if x.shape[3] > 1 else x.stride(2)
