"""The two matrix kernels under every convolution here: an indirect implicit GEMM and its weight gradient.

Both treat a convolution as rows x output channels, where a row is one computed position, the reduction runs over kernel
taps and blocks of input channels, and each row's input pixel is found by arithmetic, through a map, or both. No column
matrix exists. `perforated_conv2d` and `masked_conv2d` hold the contracts; this file holds the loops.

    static rows     r = n * per_image + i     position = positions[i]           (positions None: i itself)
    dynamic rows    r                         position = positions[r] % (out_h * out_w), n likewise; -1: idle row
    input row       n * source_rows + source[n * source_stride + pixel]         (source None: n * in_h * in_w + pixel)

`source` turns a pixel of the input map into a row of a compact input; -1 reads as zero. TRANSPOSED exchanges the roles
of the two maps: rows are input pixels, and a tap leads to the output position that read this pixel through it.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Sizes that change with the input: a kernel specialised on their divisibility would compile again for a new size.
SIZES = ["rows", "per_image", "in_h", "in_w", "out_h", "out_w", "source_rows", "source_stride"]


@triton.jit
def _fold(i, size, MODE: tl.constexpr):
    """Coordinate `i` of a padded axis -> the coordinate it reads (torch's padding modes other than zeros)."""
    if MODE == "replicate":
        folded = tl.minimum(tl.maximum(i, 0), size - 1)
    elif MODE == "circular":
        folded = (i % size + size) % size
    else:
        period = tl.maximum(2 * (size - 1), 1)
        wrapped = (i % period + period) % period
        folded = tl.minimum(wrapped, period - wrapped)
    return folded


@triton.jit
def _locate(row, rows, positions, per_image, out_h, out_w, DYNAMIC: tl.constexpr):
    """Rows -> (image, y, x, whether there is such a row)."""
    inside = row < rows
    if DYNAMIC:
        flat = tl.load(positions + row, mask=inside, other=-1)
        valid = flat >= 0
        flat = tl.maximum(flat, 0)
        image = flat // (out_h * out_w)
        pixel = flat % (out_h * out_w)
    else:
        image = row // per_image
        pixel = row % per_image
        if positions is not None:
            pixel = tl.load(positions + pixel, mask=inside, other=0)
        valid = inside
    return image, pixel // out_w, pixel % out_w, valid


@triton.jit
def _input_row(
    tap,
    place,
    source,
    sizes,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    PADDING_MODE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """The row of the input, int64, that each place reads through `tap`; -1 for padding and values never computed.

    `place` comes from `_locate`; sizes: (in_h, in_w, source_rows, source_stride).
    """
    image, y, x, valid = place
    in_h, in_w, source_rows, source_stride = sizes
    tap_y = tap // KERNEL[1] * DILATION[0]
    tap_x = tap % KERNEL[1] * DILATION[1]
    if TRANSPOSED:
        from_y = y + PADDING[0] - tap_y
        from_x = x + PADDING[1] - tap_x
        reads = valid & (from_y >= 0) & (from_x >= 0) & (from_y % STRIDE[0] == 0) & (from_x % STRIDE[1] == 0)
        from_y = from_y // STRIDE[0]
        from_x = from_x // STRIDE[1]
        reads = reads & (from_y < in_h) & (from_x < in_w)
    else:
        from_y = y * STRIDE[0] - PADDING[0] + tap_y
        from_x = x * STRIDE[1] - PADDING[1] + tap_x
        if PADDING_MODE == "zeros":
            reads = valid & (from_y >= 0) & (from_x >= 0) & (from_y < in_h) & (from_x < in_w)
        else:
            from_y = _fold(from_y, in_h, PADDING_MODE)
            from_x = _fold(from_x, in_w, PADDING_MODE)
            reads = valid
    pixel = from_y * in_w + from_x
    if source is not None:
        found = tl.load(source + image * source_stride + pixel, mask=reads, other=-1)
        reads = found >= 0
        row = image.to(tl.int64) * source_rows + found
    else:
        row = image.to(tl.int64) * (in_h * in_w) + pixel
    return tl.where(reads, row, -1)


@triton.jit
def _activate(value, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)  # as torch's
    elif ACTIVATION == "leaky_relu":
        value = tl.where(value > 0.0, value, 0.01 * value)
    elif ACTIVATION == "hardswish":
        value = value * tl.minimum(tl.maximum(value + 3.0, 0.0), 6.0) / 6.0
    elif ACTIVATION == "relu6":
        value = tl.clamp(value, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return value


@triton.jit
def _store(acc, residual, out, where, mask, ACTIVATION: tl.constexpr):
    """out[where] = activation(acc + residual[where])."""
    if residual is not None:
        acc += tl.load(residual + where, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + where, _activate(acc, ACTIVATION).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def gather_gemm(
    x,  # rows of C * GROUPS channels
    weight,  # [K * GROUPS, taps, C]
    bias,  # [K * GROUPS] or None
    residual,  # rows of K * GROUPS channels, one wherever `out` has one; or None
    out,
    positions,
    source,
    segment_starts,  # STORE "segments": CSR list of the positions that each row fills
    segment_order,
    rows,
    per_image,
    in_h,
    in_w,
    out_h,
    out_w,
    source_rows,
    source_stride,
    C: tl.constexpr,  # per group, as K
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    KERNEL: tl.constexpr,  # pairs: height, width
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,  # top, left
    DILATION: tl.constexpr,
    PADDING_MODE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DYNAMIC: tl.constexpr,
    ACTIVATION: tl.constexpr,
    STORE: tl.constexpr,  # "rows": compact; "positions": each at its own position; "segments": interpolated
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """One tile of BLOCK_ROWS rows x BLOCK_OUT channels of one group. Grid: (row tiles * groups * channel tiles,)."""
    TILES_OUT: tl.constexpr = (K + BLOCK_OUT - 1) // BLOCK_OUT
    CHANNEL_BLOCKS: tl.constexpr = (C + BLOCK_IN - 1) // BLOCK_IN
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    # channel tiles run fastest: neighbours in time share their gathered rows in L2
    program = tl.program_id(0)
    group = program // TILES_OUT % GROUPS
    first_row = program // (TILES_OUT * GROUPS) * BLOCK_ROWS
    if DYNAMIC:  # noqa: SIM102 - static sets may have no positions to load
        if tl.load(positions + first_row) < 0:  # positions are packed: nothing from here on
            return
    row = first_row + tl.arange(0, BLOCK_ROWS)
    sizes = in_h, in_w, source_rows, source_stride
    place = _locate(row, rows, positions, per_image, out_h, out_w, DYNAMIC)
    k = program % TILES_OUT * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    k_in = k < K
    channel = tl.arange(0, BLOCK_IN)
    weights = weight + (group * K + k).to(tl.int64)[None, :] * (TAPS * C)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype=tl.float32)

    # The row that an iteration gathers is found one iteration ahead: an index loaded in the iteration that uses it
    # would cost two of the pipeline's stages (with 3 stages on sm80, one buffer instead of two).
    from_row = _input_row(0, place, source, sizes, KERNEL, STRIDE, PADDING, DILATION, PADDING_MODE, TRANSPOSED)
    for step in range(0, TAPS * CHANNEL_BLOCKS):
        tap = step // CHANNEL_BLOCKS
        c = step % CHANNEL_BLOCKS * BLOCK_IN + channel
        next_tap = tl.minimum((step + 1) // CHANNEL_BLOCKS, TAPS - 1)
        next_row = _input_row(
            next_tap, place, source, sizes, KERNEL, STRIDE, PADDING, DILATION, PADDING_MODE, TRANSPOSED
        )
        a_mask = (from_row >= 0)[:, None]
        b_mask = k_in[None, :]
        if C % BLOCK_IN != 0:
            a_mask = a_mask & (c < C)[None, :]
            b_mask = b_mask & (c < C)[:, None]
        a = tl.load(x + from_row[:, None] * (C * GROUPS) + (group * C + c)[None, :], mask=a_mask, other=0.0)
        b = tl.load(weights + (tap * C + c)[:, None], mask=b_mask, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        from_row = next_row

    image, y, x_pos, valid = place
    column = (group * K + k)[None, :]
    mask = valid[:, None] & k_in[None, :]
    if bias is not None:
        acc += tl.load(bias + column, mask=k_in[None, :], other=0.0).to(tl.float32)
    if STORE == "segments":
        index = row % per_image
        start = tl.load(segment_starts + index, mask=valid, other=0)
        length = tl.load(segment_starts + index + 1, mask=valid, other=0) - start
        base = image.to(tl.int64) * (out_h * out_w)
        for j in range(0, tl.max(length, 0)):
            filled = tl.load(segment_order + start + j, mask=j < length, other=0)
            where = (base + filled)[:, None] * (K * GROUPS) + column
            _store(acc, residual, out, where, mask & (j < length)[:, None], ACTIVATION)
    else:
        own = row.to(tl.int64) if STORE == "rows" else image.to(tl.int64) * (out_h * out_w) + y * out_w + x_pos
        _store(acc, residual, out, own[:, None] * (K * GROUPS) + column, mask, ACTIVATION)


@triton.jit(do_not_specialize=[*SIZES, "splits"])
def gather_gemm_weight(
    x,  # rows of C * GROUPS channels
    grad,  # [rows, K * GROUPS]
    partial,  # float32 [splits, K * GROUPS, taps, C]
    positions,
    source,
    total,  # int32 [1], number of rows of a dynamic set, on the device; None for a static set
    rows,
    per_image,
    in_h,
    in_w,
    out_h,
    out_w,
    source_rows,
    source_stride,
    splits,
    C: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    PADDING_MODE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """dW of one tap, group, and BLOCK_OUT x BLOCK_IN tile, summed over one contiguous share of the rows.

    Grid: (output tiles * input tiles * groups * taps, splits). The shares are added by the launcher in a fixed order.
    """
    TILES_OUT: tl.constexpr = (K + BLOCK_OUT - 1) // BLOCK_OUT
    TILES_IN: tl.constexpr = (C + BLOCK_IN - 1) // BLOCK_IN
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1]
    DYNAMIC: tl.constexpr = total is not None
    program = tl.program_id(0)
    group = program // (TILES_OUT * TILES_IN) % GROUPS
    tap = program // (TILES_OUT * TILES_IN * GROUPS)
    k = program % TILES_OUT * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    c = program // TILES_OUT % TILES_IN * BLOCK_IN + tl.arange(0, BLOCK_IN)
    k_in = k < K
    c_in = c < C
    if DYNAMIC:
        rows = tl.load(total)
    share = tl.cdiv(tl.cdiv(rows, splits), BLOCK_ROWS) * BLOCK_ROWS
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, rows)
    acc = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)

    row = begin + tl.arange(0, BLOCK_ROWS)
    sizes = in_h, in_w, source_rows, source_stride
    place = _locate(row, end, positions, per_image, out_h, out_w, DYNAMIC)
    from_row = _input_row(tap, place, source, sizes, KERNEL, STRIDE, PADDING, DILATION, PADDING_MODE, False)
    for first in range(begin, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        g_mask = k_in[:, None] & (row < end)[None, :]
        g = tl.load(grad + row.to(tl.int64)[None, :] * (K * GROUPS) + (group * K + k)[:, None], mask=g_mask, other=0.0)
        a_mask = (from_row >= 0)[:, None] & c_in[None, :]
        a = tl.load(x + from_row[:, None] * (C * GROUPS) + (group * C + c)[None, :], mask=a_mask, other=0.0)
        place = _locate(row + BLOCK_ROWS, end, positions, per_image, out_h, out_w, DYNAMIC)
        from_row = _input_row(tap, place, source, sizes, KERNEL, STRIDE, PADDING, DILATION, PADDING_MODE, False)
        acc = tl.dot(g, a, acc, input_precision=PRECISION)

    out_row = (tl.program_id(1) * GROUPS + group).to(tl.int64) * K + k
    where = out_row[:, None] * (TAPS * C) + (tap * C + c)[None, :]
    tl.store(partial + where, acc, mask=k_in[:, None] & c_in[None, :])
