"""Interpolation, pooling of rows, dynamic position sets and halting on the engine."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from accel.kernels.caches import IdentityCache
from accel.kernels.cpu import _engine, record
from accel.kernels.cpu.arguments import CPU, address, empty, pixels_first, require_float32
from accel.kernels.cpu.replay import tape
from accel.kernels.dispatch import forced_backend
from accel.kernels.positions import PositionSet
from accel.kernels.quantization import BYTE
from accel.kernels.reference import halting_step as reference

_segments = IdentityCache()


def interpolate(rows: Tensor, nearest: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """Rows to a dense map; arguments and result as in `accel.kernels.reference.interpolate`."""
    require_float32(rows)
    rows, nearest = rows.contiguous(), nearest.contiguous()
    out = empty((batch, rows.shape[1], *size), memory_format=torch.channels_last)
    _engine.interpolate(
        source=rows.data_ptr(), result=out.data_ptr(), nearest=nearest.data_ptr(), starts=0, targets=0, images=batch,
        count=rows.shape[0] // max(batch, 1), pixels=nearest.numel(), channels=rows.shape[1],
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return out


def interpolate_backward(grad: Tensor, nearest: Tensor, count: int) -> Tensor:
    """The adjoint; arguments and result as in `accel.kernels.reference.interpolate_backward`."""
    require_float32(grad)
    grad = pixels_first(grad)
    batch, channels, height, width = grad.shape

    def build(_: tuple) -> tuple[Tensor, Tensor]:
        return PositionSet(torch.arange(count, dtype=torch.int32, device=CPU), nearest, height, width).segments

    starts, targets = _segments.get((nearest,), (count, height, width), build)
    out = empty((batch * count, channels))
    _engine.interpolate_backward(
        source=grad.data_ptr(), result=out.data_ptr(), nearest=0, starts=starts.data_ptr(), targets=targets.data_ptr(),
        images=batch, count=count, pixels=height * width, channels=channels, threads=torch.get_num_threads(),
    )  # fmt: skip
    return out


def max_rows(rows: Tensor, taps: Tensor, batch: int) -> Tensor:
    """The largest of several rows; arguments and result as in `accel.kernels.reference.max_rows`."""
    narrow = rows.dtype is torch.uint8
    if not narrow:
        require_float32(rows)
    rows, taps = rows.contiguous(), taps.contiguous()
    (tap_count, windows), channels = taps.shape, rows.shape[1]
    out = empty((batch * windows, channels), dtype=rows.dtype)
    given = {"taps": taps.data_ptr(), "images": batch, "count": rows.shape[0] // max(batch, 1), "windows": windows}
    given |= {"tap_count": tap_count, "channels": channels, "narrow": narrow}
    _engine.max_rows(rows=rows.data_ptr(), out=out.data_ptr(), threads=torch.get_num_threads(), **given)
    recorded = tape()
    if recorded is not None:
        recorded.append("max_rows", rows, None, out, None, given, others=(taps,))
    return out


def join_rows(
    parts: Sequence[Tensor], taps: Sequence[Tensor | None], batch: int, multipliers=(), zeros=(), *range_: int
) -> Tensor:
    """Rows side by side; arguments and result as in `accel.kernels.reference.join_rows`."""
    if parts[0].dtype is not torch.uint8:
        require_float32(*parts)
    windows = _windows(parts[0], taps[0], batch)
    out = empty((batch * windows, sum(part.shape[1] for part in parts)), dtype=parts[0].dtype)
    at = 0
    for index, (part, tap) in enumerate(zip(parts, taps)):
        new = _rescaled(multipliers[index : index + 1], zeros[index : index + 1], *range_) if multipliers else {}
        _place(part, tap, None, None, out, batch, at, new)
        at += part.shape[1] * out.itemsize
    return out


def sum_rows(first, second, taps, other_taps, batch, multipliers, zeros, *range_):
    """Sums of rows; arguments and result as in `accel.kernels.reference.sum_rows`."""
    out = empty((batch * _windows(first, taps, batch), first.shape[1]), dtype=torch.uint8)
    _place(first, taps, second, other_taps, out, batch, 0, _rescaled(multipliers, zeros, *range_))
    return out


def _windows(rows: Tensor, taps: Tensor | None, batch: int) -> int:
    return len(rows) // max(batch, 1) if taps is None else len(taps)


def _rescaled(multipliers, zeros, out_zero: int, low: int, high: int) -> dict[str, float]:
    """The fields of what becomes of the bytes of one part or two; of none, where they stay what they are."""
    if multipliers == [1.0] and zeros == [out_zero] and (low, high) == (0, BYTE):
        return {}
    names = (("multiplier", "other_multiplier"), ("zero", "other_zero"))
    given = {name: value for row, values in zip(names, (multipliers, zeros)) for name, value in zip(row, values)}
    return {**given, "out_zero": out_zero, "low": low, "high": high}


def _place(
    rows: Tensor,
    taps: Tensor | None,
    other: Tensor | None,
    other_taps: Tensor | None,
    out: Tensor,
    batch: int,
    at: int,
    rescaled: dict[str, float],
) -> None:
    """Rows, or sums of the rows of two maps, into columns of `out` from byte `at` on."""
    rows, other, taps, other_taps = (None if t is None else t.contiguous() for t in (rows, other, taps, other_taps))
    size, images = out.itemsize, max(batch, 1)
    job = record.PLACING.pack(**{
        **record.AS_THEY_ARE, "images": batch, "count": len(rows) // images, "windows": len(out) // images,
        "width": rows.shape[1] * size, "pitch": out.shape[1] * size, "at": at, "taps": address(taps),
        "other_taps": address(other_taps), "other_count": 0 if other is None else len(other) // images, **rescaled,
    })  # fmt: skip
    _engine.place(job, rows=rows.data_ptr(), other=address(other), out=out.data_ptr(), threads=torch.get_num_threads())
    recorded = tape()
    if recorded is not None:
        recorded.append("place", rows, other, out, job, {}, others=(taps, other_taps))


def mean_rows(rows: Tensor, taps: Tensor, share: Tensor, zero_point: int, batch: int) -> Tensor:
    """The mean of several rows; arguments and result as in `accel.kernels.reference.mean_rows`."""
    rows, taps, share = rows.contiguous(), taps.contiguous(), share.contiguous()
    (tap_count, windows), channels = taps.shape, rows.shape[1]
    out = empty((batch * windows, channels), dtype=rows.dtype)
    given = {"taps": taps.data_ptr(), "share": share.data_ptr(), "images": batch, "windows": windows}
    given |= {"count": rows.shape[0] // max(batch, 1), "tap_count": tap_count, "channels": channels}
    given |= {"zero_point": zero_point, "weighted": share.dim() == 2}
    _engine.mean_rows(rows=rows.data_ptr(), out=out.data_ptr(), threads=torch.get_num_threads(), **given)
    recorded = tape()
    if recorded is not None:
        recorded.append("mean_rows", rows, None, out, None, given, others=(taps, share))
    return out


def active_positions(mask: Tensor, dilate: int) -> tuple[Tensor, Tensor]:
    """Mask to positions; arguments and result as in `accel.kernels.reference.active_positions`."""
    mask = mask.contiguous()
    batch, height, width = mask.shape
    positions = torch.empty(mask.numel(), dtype=torch.int32, device=CPU)
    counts = torch.empty(batch, dtype=torch.int32, device=CPU)
    _engine.active(
        mask=mask.data_ptr(), positions=positions.data_ptr(), counts=counts.data_ptr(), images=batch, height=height,
        width=width, dilate=dilate, threads=torch.get_num_threads(),
    )  # fmt: skip
    return positions, counts


def select_positions(score: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """The highest scores; arguments and result as in `accel.kernels.reference.select_positions`."""
    require_float32(score)
    score = score.contiguous()
    batch = score.shape[0]
    positions = torch.empty(batch * budget, dtype=torch.int32, device=CPU)
    _engine.select(
        score=score.data_ptr(), positions=positions.data_ptr(), images=batch, pixels=score[0].numel() if batch else 0,
        budget=budget, threads=torch.get_num_threads(),
    )  # fmt: skip
    return positions, torch.full((batch,), budget, dtype=torch.int32, device=CPU)


def local_deviation(x: Tensor, channels: int) -> Tensor:
    """The score of adaptive masks; arguments and result as in `accel.kernels.reference.local_deviation`."""
    require_float32(x)
    x = pixels_first(x)
    batch, pitch, height, width = x.shape
    score = torch.empty(batch, height, width, dtype=torch.float32, device=CPU)
    _engine.local_deviation(
        x=x.data_ptr(), score=score.data_ptr(), images=batch, height=height, width=width, pitch=pitch,
        channels=min(channels, pitch), threads=torch.get_num_threads(),
    )  # fmt: skip
    return score


def halting_step(h, x, remainder, ponder, units, output, eps, last, sticks=False):
    """One step, functional; arguments and result as in `accel.kernels.reference.halting_step`."""
    if not _takes(x, remainder):
        return reference.halting_step(h, x, remainder, ponder, units, output, eps, last, sticks)
    given = (remainder, ponder, units, output)
    h, x, *state = _laid_out(h, x, *given)
    new = tuple(torch.empty_like(tensor) for tensor in state)
    weight = torch.empty_like(state[0])
    _step(h, x, state, new, weight, None, eps, last, sticks)
    return (*map(_like, given, state, new), _like(remainder, state[0], weight))


def halting_step_(h, x, remainder, ponder, units, output, eps, last, sticks=False):
    """One step, in place; arguments and result as in `accel.kernels.reference.halting_step_`."""
    if not _takes(x, remainder):
        return reference.halting_step_(h, x, remainder, ponder, units, output, eps, last, sticks)
    given = (remainder, ponder, units, output)
    h, x, *state = _laid_out(h, x, *given)
    running = torch.empty_like(state[0], dtype=torch.bool)
    _step(h, x, state, state, None, running, eps, last, sticks)
    for tensor, stepped in zip(given, state):
        if stepped is not tensor:
            tensor.copy_(stepped)
    return _like(remainder, state[0], running)


def halting_step_backward(h, x, remainder, d_remainder, d_ponder, d_output, d_weight, eps, last, sticks=False):
    """Gradients of one step; arguments and result as in `accel.kernels.reference.halting_step`."""
    if not _takes(x, remainder):
        given = (h, x, remainder, d_remainder, d_ponder, d_output, d_weight)
        return reference.halting_step_backward(*given, eps, last, sticks)
    require_float32(d_remainder, d_ponder, d_output, d_weight)
    given = (remainder, x, remainder)
    h, x, remainder, *d_states, d_output = _laid_out(h, x, remainder, d_remainder, d_ponder, d_weight, d_output)
    d_h, d_x, d_old = torch.empty_like(remainder), torch.empty_like(x), torch.empty_like(remainder)
    positions = remainder.numel()
    d_remainder, d_ponder, d_weight = d_states
    job = record.HALTING_GRAD_JOB.pack(
        h=address(h), x=x.data_ptr(), remainder=remainder.data_ptr(), d_remainder=d_remainder.data_ptr(),
        d_ponder=d_ponder.data_ptr(), d_output=d_output.data_ptr(), d_weight=d_weight.data_ptr(), d_h=d_h.data_ptr(),
        d_x=d_x.data_ptr(), d_old=d_old.data_ptr(), positions=positions, channels=x.numel() // max(positions, 1),
        last=last or h is None, sticks=sticks, threads=torch.get_num_threads(), eps=eps,
    )  # fmt: skip
    _engine.halting_step_backward(job)
    return tuple(map(_like, given, (remainder, x, remainder), (d_h, d_x, d_old)))


def ponder_cost(ponder: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of each image; arguments and result as in `accel.kernels.reference.ponder_cost`."""
    require_float32(ponder)
    ponder, units = ponder.contiguous(), units.contiguous()
    batch = ponder.shape[0]
    rho = torch.empty(batch, dtype=torch.float32, device=CPU)
    executed = torch.empty(batch, dtype=torch.int64, device=CPU)
    _engine.ponder_cost(
        ponder=ponder.data_ptr(), units=units.data_ptr(), rho=rho.data_ptr(), executed=executed.data_ptr(),
        images=batch, pixels=ponder[0].numel() if batch else 0,
    )  # fmt: skip
    return rho, executed


def _takes(x: Tensor, remainder: Tensor) -> bool:
    """Whether the engine can step these dtypes; RuntimeError where it cannot and must."""
    taken = x.dtype is remainder.dtype is torch.float32
    if not taken and forced_backend() == "cpu":
        raise RuntimeError(
            f"halting_step: the C engine takes float32 maps and states, got x in {x.dtype} and remainder in "
            f"{remainder.dtype}: convert them or leave use_backend('cpu')"
        )
    return taken


def _laid_out(h: Tensor | None, x: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    """(h, x, *others) as the engine steps them, the last of the others a map like x: states contiguous, maps of SACT
    with contiguous pixels, of ACT all alike. What lies so already comes back as it is."""
    *states, end = others
    by_pixels = states[0].dim() == 3 or all(
        image.dim() == 4 and image.is_contiguous(memory_format=torch.channels_last) for image in (x, end)
    )
    lay = pixels_first if by_pixels else Tensor.contiguous
    h = None if h is None else h.contiguous()
    return h, lay(x), *[state.contiguous() for state in states], lay(end)


def _like(given: Tensor, laid: Tensor, result: Tensor) -> Tensor:
    """The result for `given`, in the layout of torch.empty_like(given); the engine has it in that of `laid`."""
    return result if laid is given else torch.empty_like(given, dtype=result.dtype).copy_(result)


def _step(h, x, old, new, weight, running, eps, last, sticks) -> None:
    remainder, ponder, units, output = old
    new_remainder, new_ponder, new_units, new_output = new
    positions = remainder.numel()
    job = _halting_job(positions, x.numel() // max(positions, 1), last or h is None, sticks, eps)
    _engine.halting_step(
        job, h=address(h), x=x.data_ptr(), remainder=remainder.data_ptr(), ponder=ponder.data_ptr(),
        output=output.data_ptr(), units=units.data_ptr(), new_remainder=new_remainder.data_ptr(),
        new_ponder=new_ponder.data_ptr(), new_output=new_output.data_ptr(), weight=address(weight),
        new_units=new_units.data_ptr(), still_running=address(running), threads=torch.get_num_threads(),
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _halting_job(positions: int, channels: int, last: bool, sticks: bool, eps: float) -> bytes:
    return record.HALTING_JOB.pack(positions=positions, channels=channels, last=last, sticks=sticks, eps=eps)
