"""What crosses the border between Python and C: the fields of every record, declared once, here.

The list yields the C structs and the tables of their fields, by which the extensions read what a call gives by name
(record.h, written by `python -m accel.kernels.cpu.record`), and the packing on this side. An extension tells which
records it was built from; `check` refuses one that was built from others.

A call that names more than 14 fields beside a packed record, or 15 without, takes 1.5 microseconds longer: Python then
makes a dict of them. `Record.pack` what does not change.
"""

from __future__ import annotations

import pathlib
from types import ModuleType

from accel.kernels.cpu.layout import Record, comment, enumeration, macro
from accel.kernels.quantization import MOST_TERMS
from accel.kernels.quantize import MOST_PITCH

MAX_VECTORS = 4
GRAD_VECTORS = 2  # dX: narrow panels, since threads can share an image only by its channels
MAX_REACH = 8  # of the convolutions of a stage's unit, and one more
MOST_OUTSIDE = 57  # tensors that a replay may read and write
STATE, INPUT = 0, 1  # buffers of a stage
ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "hardswish": 3, "relu6": 4}
KINDS = {"floats": 0, "fours": 1, "bytes": 2}  # of what a lane multiplies: fours and bytes are u8 by s8
_RECORDED = ("convolve", "footprints", "quantize", "max_rows", "frame", "place", "mean_rows")
CALLS = {name: code for code, name in enumerate(_RECORDED)}  # that may be recorded
CONSTANTS = {
    "MAX_VECTORS": MAX_VECTORS,
    "GRAD_VECTORS": GRAD_VECTORS,
    "MAX_REACH": MAX_REACH,
    "MOST_OUTSIDE": MOST_OUTSIDE,
    "BUFFER_STATE": STATE,
    "BUFFER_INPUT": INPUT,
    **{f"ACT_{name.upper()}": code for name, code in ACTIVATIONS.items()},
    **{f"KIND_{name.upper()}": code for name, code in KINDS.items()},
    **{f"CALL_{name.upper()}": code for name, code in CALLS.items()},
    "MOST_TERMS": MOST_TERMS,
    "MOST_PITCH": MOST_PITCH,
}

FLOATS, MADE, INDICES, NUMBERS = "const float *", "float *", "const int32_t *", "int64_t"

JOB = Record(
    "Job",
    "One forward convolution. Row r of a static set is position positions[r % table_rows] of image r / table_rows; row "
    "r of a dynamic set is the flat position positions[r] = n * out_pixels + p. Position p = y * out_width + x reads "
    "where the rows that row_taps lists for y cross the columns that column_taps lists for x. Row r of a framed job "
    "reads the pixels positions[r] + offsets[tap] and goes to pixel targets[r] of out. row_taps: [out rows][1 + tap "
    "rows] the input row of the first tap, or -1 where the taps are not spaced evenly inside the map; then the input "
    "row of every tap, -1: zeros. column_taps: [out_width][1 + tap_columns] the same for columns. Both are NULL where "
    "position p reads pixel p and no other. A static set of few input channels reads whole rows of the kernel, in one "
    "tap column, those across the border from copies: -1 - e in column_taps is edge e of the input row, one of "
    "edge_columns, edge_run floats each, edges_each floats of an image. They follow a run of zeros, which is all that "
    "other jobs have. zero: the zeros, and the edges. positions: [table_rows] (static; NULL: all of them, in order) or "
    "[rows] (dynamic). starts, targets: static, dense output: CSR of the positions each row stands for; NULL: its own. "
    "source: compact x: the row of each input pixel, or -1, of one image (dynamic: of all), else NULL. offsets: framed "
    "[taps]. scatter: dense output and residual rather than compact. kind: of x and packed, floats; or bytes, four of "
    "a run in a lane or, depthwise, one. Then zero holds zero points, the sums of channel k are multiplied by "
    "multiplier[k] before the bias is added, and out and residual are floats or, if narrow, bytes, the latter unless "
    "residual_floats: see kernels/quantization.py.",
    ("const void *", "x packed residual zero"),
    (FLOATS, "bias"),
    ("void *", "out"),
    (NUMBERS, "threads"),
    (INDICES, "row_taps column_taps positions starts targets source offsets"),
    (NUMBERS, "dynamic scatter framed rows table_rows in_pixels in_pitch in_width out_width taps tap_columns run"),
    (NUMBERS, "out_pixels out_channels groups depthwise activation edge_run edges_each edge_columns kind"),
    (FLOATS, "multiplier"),
    (NUMBERS, "narrow out_zero low high residual_zero residual_floats"),
    ("double", "residual_multiplier"),
)
# the fields of a job that are of bytes alone
OF_FLOATS = {"kind": KINDS["floats"], "multiplier": 0, "narrow": False, "out_zero": 0, "low": 0, "high": 0}
OF_FLOATS |= {"residual_zero": 0, "residual_floats": False, "residual_multiplier": 0.0}

STEP = Record(
    "Step",
    "A step of a footprint: the pixels from the base of a row to what it reads there, and whose weights it takes; "
    "where the kernel is narrow, as many taps at as many pixels that follow each other.",
    ("int32_t", "offset tap taps"),
)

FOOTPRINT_RUN = Record(
    "FootprintRun",
    "Rows of an image that have one footprint and follow each other. kind: their class.",
    ("int32_t", "first rows footprint kind"),
)

FOOTPRINT_JOB = Record(
    "FootprintJob",
    "A convolution at a static set, whose rows are grouped by footprint: see kernels/cpu/footprints.py. Rows of an "
    "image come in runs with one footprint, runs in bands; footprint k takes the steps from footprints[k] to "
    "footprints[k + 1]. Rows of class k add bias[k]; those of class -1 take what their base holds. weights: packed "
    "panels, or, if plain, [classes][taps][channels]. bases, starts, targets: of one image, as in FootprintArgs. "
    "bands: [band_count + 1] the runs of each band. narrow: an ordinary convolution, in panels of one vector; else "
    "depthwise. bytes: written in place of out, zero_point + the nearest integer of each value * inverse.",
    (FLOATS, "x weights bias residual"),
    (MADE, "out"),
    ("uint8_t *", "bytes"),
    ("double", "inverse"),
    (NUMBERS, "threads"),
    (INDICES, "bases starts targets"),
    ("const FootprintRun *", "runs"),
    (INDICES, "bands footprints"),
    ("const Step *", "steps"),
    (NUMBERS, "images band_count in_pixels out_pixels in_channels channels taps activation filled plain narrow"),
    (NUMBERS, "zero_point"),
)
FOOTPRINTS_OF_FLOATS = {"bytes": 0, "inverse": 0.0, "zero_point": 0}

RECORDED_CALL = Record(
    "RecordedCall",
    "A call as it was recorded, before its job: the buffers that it reads and writes; residual, edges -1: none. edges: "
    "what its `zero` points to, where the row of the kernel is one run.",
    (NUMBERS, "kind x residual edges out"),
)

REPLAY_BUFFER = Record(
    "ReplayBuffer",
    "outside -1: `bytes` from the start of the thread's own memory. Otherwise one of the tensors outside, and how "
    "many bytes of it one group of images takes.",
    (NUMBERS, "outside bytes"),
)

REPLAY = Record(
    "Replay",
    "A recorded chain. memory: [threads][memory_each], in bytes. calls: ReplayCall in engine.h.",
    ("void *", "memory"),
    ("const void *", "calls"),
    ("const ReplayBuffer *", "buffers"),
    (NUMBERS, "call_count buffer_count memory_each groups threads outside_count"),
)

PANEL_SIZE = Record(
    "PanelSize", "What packed weights take; kind as of Job.", (NUMBERS, "groups k_group c_group taps kind")
)

PACKING = Record(
    "Packing",
    "One weight tensor, read through its strides: outputs k of group g are rows g * k_group + k. kind: as of Job; of "
    "bytes, those of w are signed, and zero_point is that of the bytes they multiply.",
    ("const void *", "w"),
    ("void *", "packed"),
    (NUMBERS, "stride_g stride_k stride_c stride_h stride_w groups k_group c_group kh kw most_vectors kind zero_point"),
    (NUMBERS, "threads"),
)

FRAME_PIECE = Record(
    "FramePiece",
    "Frame pixels [to, to + count) are those of x from `first` on, or zeros where that is -1.",
    ("int32_t", "to first count"),
)

FRAME = Record(
    "Frame",
    "x, read through its strides -> out [images][pixels][channels], piece by piece.",
    (FLOATS, "x"),
    (MADE, "out"),
    ("const FramePiece *", "pieces"),
    (NUMBERS, "piece_count images channels pixels stride_n stride_c stride_pixel threads"),
)

HUGE_PAGES = Record("HugePages", "A fresh buffer.", ("void *", "buffer"), (NUMBERS, "bytes"))

FILL = Record(
    "Fill",
    "Between compact rows [images * count][channels] and dense maps [images][pixels][channels]. nearest: the row that "
    "stands in for each pixel. starts, targets: of its adjoint, the pixels that each row stands for.",
    (FLOATS, "source"),
    (MADE, "result"),
    (INDICES, "nearest starts targets"),
    (NUMBERS, "images count pixels channels threads"),
)

MAX_JOB = Record(
    "MaxJob",
    "The largest of the rows taps[0..tap_count)[window], per channel; rows [images * count], out [images * windows], "
    "both floats or, if narrow, bytes; taps [tap_count][windows].",
    ("const void *", "rows"),
    ("void *", "out"),
    (INDICES, "taps"),
    (NUMBERS, "images count windows tap_count channels narrow threads"),
)

PLACING = Record(
    "Placing",
    "Rows of a map into columns of other rows: rows [images * count][width], read at taps [windows] (NULL: all, in "
    "order), to out [images * windows][pitch] from column `at` on; width, pitch and at in bytes.",
    ("const void *", "rows"),
    ("void *", "out"),
    (INDICES, "taps"),
    (NUMBERS, "images count windows width pitch at threads"),
)

MEAN_JOB = Record(
    "MeanJob",
    "The mean of the rows taps[0..tap_count)[window] (-1: none), per channel; rows [images * count], out [images * "
    "windows] of bytes that stand for the same; taps [tap_count][windows], share [windows].",
    ("const uint8_t *", "rows"),
    ("uint8_t *", "out"),
    (INDICES, "taps"),
    (FLOATS, "share"),
    (NUMBERS, "images count windows tap_count channels zero_point threads"),
)

QUANTIZING = Record(
    "Quantizing",
    "out = zero_point + the nearest integer of x * inverse, a byte. x: [count][width], out: [count][pitch]; what lies "
    "between the rows is not said.",
    (FLOATS, "x"),
    ("uint8_t *", "out"),
    (NUMBERS, "count width pitch zero_point threads"),
    ("double", "inverse"),
)

FITTED_GRAD_JOB = Record(
    "FittedGradJob",
    "The adjoint of fitted interpolation, where a skipped position holds a weighted sum of `taps` computed rows: "
    "gradients of the rows, of the weights [classes][taps][channels] and of the constants [classes][channels] from "
    "those of the maps. positions: [count]. skipped: sorted by class; class k holds those from starts[k] to "
    "starts[k + 1]. neighbors: [skipped][taps] rows within the image. The readers of a row are CSR lists: reader e "
    "adds weights[reader_weight[e]] * grad at pixel reader_pixel[e].",
    (FLOATS, "grad rows weights"),
    (MADE, "rows_grad weights_grad constant_grad"),
    (INDICES, "positions skipped neighbors starts reader_starts reader_pixel reader_weight"),
    (NUMBERS, "images count taps classes pixels channels threads"),
)

ACTIVE_JOB = Record(
    "ActiveJob",
    "mask: [images][height][width].",
    ("const uint8_t *", "mask"),
    ("int32_t *", "positions counts"),
    (NUMBERS, "images height width dilate threads"),
)

INVERSION = Record(
    "Inversion",
    "inverse[p]: the row that holds position p, -1 where none does; positions end at the first negative one.",
    (INDICES, "positions"),
    ("int32_t *", "inverse"),
    (NUMBERS, "rows size"),
)

DEVIATION = Record(
    "Deviation",
    "x [images][height][width][pitch], of which the first channels count -> score [images][height][width].",
    (FLOATS, "x"),
    (MADE, "score"),
    (NUMBERS, "images height width pitch channels threads"),
)

SELECTION = Record(
    "Selection",
    "score [images][pixels] -> the `budget` highest positions of each image, ascending.",
    (FLOATS, "score"),
    ("int32_t *", "positions"),
    (NUMBERS, "images pixels budget threads"),
)

HALTING_JOB = Record(
    "HaltingJob",
    "The state of [positions], x and output [positions][channels]; old and new may be the same memory. weight and "
    "still_running may be NULL.",
    (FLOATS, "h x remainder ponder output"),
    (INDICES, "units"),
    (MADE, "new_remainder new_ponder new_output weight"),
    ("int32_t *", "new_units"),
    ("uint8_t *", "still_running"),
    (NUMBERS, "positions channels last sticks threads"),
    ("double", "eps"),
)

HALTING_GRAD_JOB = Record(
    "HaltingGradJob",
    "Its gradients: d_* of the new state in, those of the scores, x and the old remainder out.",
    (FLOATS, "h x remainder d_remainder d_ponder d_output d_weight"),
    (MADE, "d_h d_x d_old"),
    (NUMBERS, "positions channels last sticks threads"),
    ("double", "eps"),
)

PONDER_JOB = Record(
    "PonderJob",
    "ponder and units [images][pixels] -> their sums.",
    (FLOATS, "ponder"),
    (INDICES, "units"),
    (MADE, "rho"),
    ("int64_t *", "executed"),
    (NUMBERS, "images pixels"),
)

HEAD_JOB = Record(
    "HeadJob",
    "A halting head at every position: x [images][pixels][channels], frames; at: [count] the frame pixel of each "
    "position; weights, bias, pooled as in StageUnit, steps as in Stage; weights NULL: ACT's, one score an image. "
    "scores [images][count]: log odds, or their sigmoid.",
    (FLOATS, "x weights bias pooled"),
    (MADE, "scores"),
    (INDICES, "at"),
    ("const Step *", "steps"),
    (NUMBERS, "step_count images pixels count channels bias_step logits threads"),
)

STAGE_BUFFER = Record(
    "StageBuffer",
    "offset in the memory of a group, in floats; pixels of one image's frame; itemsize 4, of floats, or 1, of bytes.",
    (NUMBERS, "offset pixels channels itemsize"),
)

STAGE_CONV = Record(
    "StageConv",
    "offsets: [taps] pixels from a position's base in the input frame. steps: of a narrow convolution, those of its "
    "footprint; else NULL. bases, places: first unit: [pixels] where a position reads and where it writes. source, "
    "target: buffers. adds: to what its output holds. reach: distance to the active set. macs: of a position. kind, "
    "multiplier, narrow and levels: as of Job. quantizes: of bytes, the buffer of floats that source is made of first, "
    "by inverse [1] and zero_point; -1: source is there.",
    ("const void *", "packed zero"),
    (FLOATS, "bias"),
    (INDICES, "offsets"),
    ("const Step *", "steps"),
    (NUMBERS, "step_count"),
    (INDICES, "bases places"),
    (NUMBERS, "pixels source target in_channels out_channels taps groups activation adds reach macs kind"),
    (FLOATS, "multiplier inverse"),
    (NUMBERS, "narrow out_zero low high zero_point quantizes"),
)

STAGE_OF_FLOATS = {"kind": KINDS["floats"], "multiplier": 0, "inverse": 0, "narrow": False, "out_zero": 0, "low": 0}
STAGE_OF_FLOATS |= {"high": 0, "zero_point": 0, "quantizes": -1}

STAGE_UNIT = Record(
    "StageUnit",
    "reaches: bit r is set where a list of reach r is used. The head: weights [taps][C]; bias [H * W] or [N][H * W] "
    "(ACT: [1]), bias_step from one image to the next; pooled [C].",
    (NUMBERS, "first_conv convs reaches"),
    (FLOATS, "weights bias"),
    (NUMBERS, "bias_step"),
    (FLOATS, "pooled"),
)

STAGE = Record(
    "Stage",
    "A whole stage: see stage.c and kernels/stage.py. shortcut: what the first unit adds to, or NULL: one of its "
    "convolutions. *_pieces as in Frame; input_pieces NULL: x is read in place. Strides are those of images, channels "
    "and pixels. output NHWC; shares [N][units][H][W]. sticks: PACT, whose heads are thresholded.",
    (FLOATS, "x shortcut"),
    (NUMBERS, "x_stride_n x_stride_c x_stride_pixel shortcut_stride_n shortcut_stride_c shortcut_stride_pixel"),
    (MADE, "memory output ponder shares"),
    ("int32_t *", "executed"),
    ("int64_t *", "macs"),
    (NUMBERS, "images group threads macs_before"),
    ("const FramePiece *", "input_pieces shortcut_pieces"),
    (NUMBERS, "input_count shortcut_count"),
    ("const StageBuffer *", "buffers"),
    ("const StageConv *", "convs"),
    ("const StageUnit *", "units"),
    ("const Step *", "head_steps"),
    (NUMBERS, "head_step_count memory_each unit_count height width channels border pitch reach most_pixels spatial"),
    (NUMBERS, "sticks"),
    ("double", "eps"),
)

GRAD_JOB = Record(
    "GradJob",
    "Gradients of a convolution from the gradient of its rows. The row -> tap structure is that of Job, in the same "
    "words; row_image[n] is the first row of image n. Taps of value -1 are skipped, so that borders cost nothing. "
    "packed: weights with the roles of input and output channels exchanged. dx is added to; dw "
    "[out_channels][c_group][taps] is written.",
    (FLOATS, "x grad packed"),
    (MADE, "dx dw"),
    (INDICES, "table positions inverse"),
    ("const int64_t *", "row_image"),
    (NUMBERS, "dynamic images table_rows in_pixels in_pitch taps out_pixels out_channels groups threads"),
)

COLUMN_SUMS = Record(
    "ColumnSums",
    "rows [count][columns] -> sums [columns].",
    (FLOATS, "rows"),
    (MADE, "sums"),
    (NUMBERS, "count columns threads"),
)

ELEMENTWISE = Record(
    "Elementwise",
    "An implicit gradient of `size` elements, float or double; inputs that it does not take are NULL. table: see "
    "kernels/cpu/special.py.",
    ("const void *", "first second third"),
    ("void *", "out"),
    ("const double *", "table"),
    (NUMBERS, "size is_double threads"),
)

RECORDS = [value for value in list(globals().values()) if isinstance(value, Record)]


def header() -> str:
    """The text of record.h."""
    blocks = [
        comment("Written by kernels/cpu/record.py: python -m accel.kernels.cpu.record"),
        "/* clang-format off */",
        "#ifndef ACCEL_RECORD_H\n#define ACCEL_RECORD_H",
        "#include <stdint.h>",
        enumeration(CONSTANTS),
        *(record.declaration() for record in RECORDS),
        macro("EVERY_RECORD(R)", (f"R({record.name})" for record in RECORDS)),
        macro("EVERY_CONSTANT(C)", (f"C({name})" for name in CONSTANTS)),
        "#endif",
    ]
    return "\n\n".join(blocks) + "\n"


def check(extension: ModuleType) -> None:
    """Raise RuntimeError where an extension was built from other records than these."""
    built = {
        **getattr(extension, "RECORDS", {}),
        "constants": tuple((n, getattr(extension, n, None)) for n in CONSTANTS),
    }
    here = {record.name: record.layout for record in RECORDS} | {"constants": tuple(CONSTANTS.items())}
    for name in (*here, *(built.keys() - here.keys())):
        ours, theirs = here.get(name, ()), built.get(name, ())
        for place in range(max(len(ours), len(theirs))):
            if ours[place : place + 1] != theirs[place : place + 1]:
                raise RuntimeError(
                    f"{extension.__name__} was built from other sources than these: place {place} of {name} is "
                    f"{_say(theirs, place)} in it, {_say(ours, place)} here; build it again (pip install -e .)"
                )


def _say(fields: tuple[tuple, ...], place: int) -> str:
    return " ".join(map(str, fields[place])) if place < len(fields) else "missing"


if __name__ == "__main__":
    pathlib.Path(__file__).with_name("record.h").write_text(header())
