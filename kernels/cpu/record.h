/* Written by kernels/cpu/record.py: python -m accel.kernels.cpu.record */

/* clang-format off */

#ifndef ACCEL_RECORD_H
#define ACCEL_RECORD_H

#include <stdint.h>

enum {
    MAX_VECTORS = 4, GRAD_VECTORS = 2, MAX_REACH = 8, MOST_OUTSIDE = 57, BUFFER_STATE = 0, BUFFER_INPUT = 1,
    ACT_NONE = 0, ACT_RELU = 1, ACT_LEAKY_RELU = 2, ACT_HARDSWISH = 3, ACT_RELU6 = 4, KIND_FLOATS = 0, KIND_FOURS =
    1, KIND_BYTES = 2, CALL_CONVOLVE = 0, CALL_FOOTPRINTS = 1, CALL_QUANTIZE = 2, CALL_MAX_ROWS = 3, CALL_FRAME = 4,
    CALL_PLACE = 5, CALL_MEAN_ROWS = 6, MOST_TERMS = 65793, MOST_PITCH = 16
};

/* One forward convolution. Row r of a static set is position positions[r % table_rows] of image r / table_rows; row
 * r of a dynamic set is the flat position positions[r] = n * out_pixels + p. Position p = y * out_width + x reads
 * where the rows that row_taps lists for y cross the columns that column_taps lists for x. Row r of a framed job
 * reads the pixels positions[r] + offsets[tap] and goes to pixel targets[r] of out. row_taps: [out rows][1 + tap
 * rows] the input row of the first tap, or -1 where the taps are not spaced evenly inside the map; then the input
 * row of every tap, -1: zeros. column_taps: [out_width][1 + tap_columns] the same for columns. Both are NULL
 * where position p reads pixel p and no other. A static set of few input channels reads whole rows of the kernel,
 * in one tap column, those across the border from copies: -1 - e in column_taps is edge e of the input row, one
 * of edge_columns, edge_run floats each, edges_each floats of an image. They follow a run of zeros, which is all
 * that other jobs have. zero: the zeros, and the edges. positions: [table_rows] (static; NULL: all of them, in
 * order) or [rows] (dynamic). starts, targets: static, dense output: CSR of the positions each row stands for;
 * NULL: its own. source: compact x: the row of each input pixel, or -1, of one image (dynamic: of all), else
 * NULL. offsets: framed [taps]. scatter: dense output and residual rather than compact. kind: of x and packed,
 * floats; or bytes, four of a run in a lane or, depthwise, one. Then zero holds zero points, the sums of channel
 * k are multiplied by multiplier[k] before the bias is added, and out and residual are floats or, if narrow,
 * bytes, the latter unless residual_floats: see kernels/quantization.py. */
typedef struct {
    const void *x, *packed, *residual, *zero;
    const float *bias;
    void *out;
    int64_t threads;
    const int32_t *row_taps, *column_taps, *positions, *starts, *targets, *source, *offsets;
    int64_t dynamic, scatter, framed, rows, table_rows, in_pixels, in_pitch, in_width, out_width, taps, tap_columns,
        run;
    int64_t out_pixels, out_channels, groups, depthwise, activation, edge_run, edges_each, edge_columns, kind;
    const float *multiplier;
    int64_t narrow, out_zero, low, high, residual_zero, residual_floats;
    double residual_multiplier;
} Job;
#define Job_FIELDS(F) \
    F(Job, "const void *", x) F(Job, "const void *", packed) F(Job, "const void *", residual) \
    F(Job, "const void *", zero) F(Job, "const float *", bias) F(Job, "void *", out) F(Job, "int64_t", threads) \
    F(Job, "const int32_t *", row_taps) F(Job, "const int32_t *", column_taps) F(Job, "const int32_t *", positions) \
    F(Job, "const int32_t *", starts) F(Job, "const int32_t *", targets) F(Job, "const int32_t *", source) \
    F(Job, "const int32_t *", offsets) F(Job, "int64_t", dynamic) F(Job, "int64_t", scatter) \
    F(Job, "int64_t", framed) F(Job, "int64_t", rows) F(Job, "int64_t", table_rows) F(Job, "int64_t", in_pixels) \
    F(Job, "int64_t", in_pitch) F(Job, "int64_t", in_width) F(Job, "int64_t", out_width) F(Job, "int64_t", taps) \
    F(Job, "int64_t", tap_columns) F(Job, "int64_t", run) F(Job, "int64_t", out_pixels) \
    F(Job, "int64_t", out_channels) F(Job, "int64_t", groups) F(Job, "int64_t", depthwise) \
    F(Job, "int64_t", activation) F(Job, "int64_t", edge_run) F(Job, "int64_t", edges_each) \
    F(Job, "int64_t", edge_columns) F(Job, "int64_t", kind) F(Job, "const float *", multiplier) \
    F(Job, "int64_t", narrow) F(Job, "int64_t", out_zero) F(Job, "int64_t", low) F(Job, "int64_t", high) \
    F(Job, "int64_t", residual_zero) F(Job, "int64_t", residual_floats) F(Job, "double", residual_multiplier)

/* A step of a footprint: the pixels from the base of a row to what it reads there, and whose weights it takes; where
 * the kernel is narrow, as many taps at as many pixels that follow each other. */
typedef struct {
    int32_t offset, tap, taps;
} Step;
#define Step_FIELDS(F) \
    F(Step, "int32_t", offset) F(Step, "int32_t", tap) F(Step, "int32_t", taps)

/* Rows of an image that have one footprint and follow each other. kind: their class. */
typedef struct {
    int32_t first, rows, footprint, kind;
} FootprintRun;
#define FootprintRun_FIELDS(F) \
    F(FootprintRun, "int32_t", first) F(FootprintRun, "int32_t", rows) F(FootprintRun, "int32_t", footprint) \
    F(FootprintRun, "int32_t", kind)

/* A convolution at a static set, whose rows are grouped by footprint: see kernels/cpu/footprints.py. Rows of an
 * image come in runs with one footprint, runs in bands; footprint k takes the steps from footprints[k] to
 * footprints[k + 1]. Rows of class k add bias[k]; those of class -1 take what their base holds. weights: packed
 * panels, or, if plain, [classes][taps][channels]. bases, starts, targets: of one image, as in FootprintArgs.
 * bands: [band_count + 1] the runs of each band. narrow: an ordinary convolution, in panels of one vector; else
 * depthwise. bytes: written in place of out, zero_point + the nearest integer of each value * inverse. */
typedef struct {
    const float *x, *weights, *bias, *residual;
    float *out;
    uint8_t *bytes;
    double inverse;
    int64_t threads;
    const int32_t *bases, *starts, *targets;
    const FootprintRun *runs;
    const int32_t *bands, *footprints;
    const Step *steps;
    int64_t images, band_count, in_pixels, out_pixels, in_channels, channels, taps, activation, filled, plain,
        narrow;
    int64_t zero_point;
} FootprintJob;
#define FootprintJob_FIELDS(F) \
    F(FootprintJob, "const float *", x) F(FootprintJob, "const float *", weights) \
    F(FootprintJob, "const float *", bias) F(FootprintJob, "const float *", residual) \
    F(FootprintJob, "float *", out) F(FootprintJob, "uint8_t *", bytes) F(FootprintJob, "double", inverse) \
    F(FootprintJob, "int64_t", threads) F(FootprintJob, "const int32_t *", bases) \
    F(FootprintJob, "const int32_t *", starts) F(FootprintJob, "const int32_t *", targets) \
    F(FootprintJob, "const FootprintRun *", runs) F(FootprintJob, "const int32_t *", bands) \
    F(FootprintJob, "const int32_t *", footprints) F(FootprintJob, "const Step *", steps) \
    F(FootprintJob, "int64_t", images) F(FootprintJob, "int64_t", band_count) F(FootprintJob, "int64_t", in_pixels) \
    F(FootprintJob, "int64_t", out_pixels) F(FootprintJob, "int64_t", in_channels) \
    F(FootprintJob, "int64_t", channels) F(FootprintJob, "int64_t", taps) F(FootprintJob, "int64_t", activation) \
    F(FootprintJob, "int64_t", filled) F(FootprintJob, "int64_t", plain) F(FootprintJob, "int64_t", narrow) \
    F(FootprintJob, "int64_t", zero_point)

/* A call as it was recorded, before its job: the buffers that it reads and writes; residual, edges -1: none. edges:
 * what its `zero` points to, where the row of the kernel is one run. */
typedef struct {
    int64_t kind, x, residual, edges, out;
} RecordedCall;
#define RecordedCall_FIELDS(F) \
    F(RecordedCall, "int64_t", kind) F(RecordedCall, "int64_t", x) F(RecordedCall, "int64_t", residual) \
    F(RecordedCall, "int64_t", edges) F(RecordedCall, "int64_t", out)

/* outside -1: `bytes` from the start of the thread's own memory. Otherwise one of the tensors outside, and how many
 * bytes of it one group of images takes. */
typedef struct {
    int64_t outside, bytes;
} ReplayBuffer;
#define ReplayBuffer_FIELDS(F) \
    F(ReplayBuffer, "int64_t", outside) F(ReplayBuffer, "int64_t", bytes)

/* A recorded chain. memory: [threads][memory_each], in bytes. calls: ReplayCall in engine.h. */
typedef struct {
    void *memory;
    const void *calls;
    const ReplayBuffer *buffers;
    int64_t call_count, buffer_count, memory_each, groups, threads, outside_count;
} Replay;
#define Replay_FIELDS(F) \
    F(Replay, "void *", memory) F(Replay, "const void *", calls) F(Replay, "const ReplayBuffer *", buffers) \
    F(Replay, "int64_t", call_count) F(Replay, "int64_t", buffer_count) F(Replay, "int64_t", memory_each) \
    F(Replay, "int64_t", groups) F(Replay, "int64_t", threads) F(Replay, "int64_t", outside_count)

/* What packed weights take; kind as of Job. */
typedef struct {
    int64_t groups, k_group, c_group, taps, kind;
} PanelSize;
#define PanelSize_FIELDS(F) \
    F(PanelSize, "int64_t", groups) F(PanelSize, "int64_t", k_group) F(PanelSize, "int64_t", c_group) \
    F(PanelSize, "int64_t", taps) F(PanelSize, "int64_t", kind)

/* One weight tensor, read through its strides: outputs k of group g are rows g * k_group + k. kind: as of Job; of
 * bytes, those of w are signed, and zero_point is that of the bytes they multiply. */
typedef struct {
    const void *w;
    void *packed;
    int64_t stride_g, stride_k, stride_c, stride_h, stride_w, groups, k_group, c_group, kh, kw, most_vectors, kind,
        zero_point;
    int64_t threads;
} Packing;
#define Packing_FIELDS(F) \
    F(Packing, "const void *", w) F(Packing, "void *", packed) F(Packing, "int64_t", stride_g) \
    F(Packing, "int64_t", stride_k) F(Packing, "int64_t", stride_c) F(Packing, "int64_t", stride_h) \
    F(Packing, "int64_t", stride_w) F(Packing, "int64_t", groups) F(Packing, "int64_t", k_group) \
    F(Packing, "int64_t", c_group) F(Packing, "int64_t", kh) F(Packing, "int64_t", kw) \
    F(Packing, "int64_t", most_vectors) F(Packing, "int64_t", kind) F(Packing, "int64_t", zero_point) \
    F(Packing, "int64_t", threads)

/* Frame pixels [to, to + count) are those of x from `first` on, or zeros where that is -1. */
typedef struct {
    int32_t to, first, count;
} FramePiece;
#define FramePiece_FIELDS(F) \
    F(FramePiece, "int32_t", to) F(FramePiece, "int32_t", first) F(FramePiece, "int32_t", count)

/* x, read through its strides -> out [images][pixels][channels], piece by piece. */
typedef struct {
    const float *x;
    float *out;
    const FramePiece *pieces;
    int64_t piece_count, images, channels, pixels, stride_n, stride_c, stride_pixel, threads;
} Frame;
#define Frame_FIELDS(F) \
    F(Frame, "const float *", x) F(Frame, "float *", out) F(Frame, "const FramePiece *", pieces) \
    F(Frame, "int64_t", piece_count) F(Frame, "int64_t", images) F(Frame, "int64_t", channels) \
    F(Frame, "int64_t", pixels) F(Frame, "int64_t", stride_n) F(Frame, "int64_t", stride_c) \
    F(Frame, "int64_t", stride_pixel) F(Frame, "int64_t", threads)

/* A fresh buffer. */
typedef struct {
    void *buffer;
    int64_t bytes;
} HugePages;
#define HugePages_FIELDS(F) \
    F(HugePages, "void *", buffer) F(HugePages, "int64_t", bytes)

/* Between compact rows [images * count][channels] and dense maps [images][pixels][channels]. nearest: the row that
 * stands in for each pixel. starts, targets: of its adjoint, the pixels that each row stands for. */
typedef struct {
    const float *source;
    float *result;
    const int32_t *nearest, *starts, *targets;
    int64_t images, count, pixels, channels, threads;
} Fill;
#define Fill_FIELDS(F) \
    F(Fill, "const float *", source) F(Fill, "float *", result) F(Fill, "const int32_t *", nearest) \
    F(Fill, "const int32_t *", starts) F(Fill, "const int32_t *", targets) F(Fill, "int64_t", images) \
    F(Fill, "int64_t", count) F(Fill, "int64_t", pixels) F(Fill, "int64_t", channels) F(Fill, "int64_t", threads)

/* The largest of the rows taps[0..tap_count)[window], per channel; rows [images * count], out [images * windows],
 * both floats or, if narrow, bytes; taps [tap_count][windows]. */
typedef struct {
    const void *rows;
    void *out;
    const int32_t *taps;
    int64_t images, count, windows, tap_count, channels, narrow, threads;
} MaxJob;
#define MaxJob_FIELDS(F) \
    F(MaxJob, "const void *", rows) F(MaxJob, "void *", out) F(MaxJob, "const int32_t *", taps) \
    F(MaxJob, "int64_t", images) F(MaxJob, "int64_t", count) F(MaxJob, "int64_t", windows) \
    F(MaxJob, "int64_t", tap_count) F(MaxJob, "int64_t", channels) F(MaxJob, "int64_t", narrow) \
    F(MaxJob, "int64_t", threads)

/* Rows of a map into columns of other rows: rows [images * count][width], read at taps [windows] (NULL: all, in
 * order), to out [images * windows][pitch] from column `at` on; width, pitch and at in bytes. */
typedef struct {
    const void *rows;
    void *out;
    const int32_t *taps;
    int64_t images, count, windows, width, pitch, at, threads;
} Placing;
#define Placing_FIELDS(F) \
    F(Placing, "const void *", rows) F(Placing, "void *", out) F(Placing, "const int32_t *", taps) \
    F(Placing, "int64_t", images) F(Placing, "int64_t", count) F(Placing, "int64_t", windows) \
    F(Placing, "int64_t", width) F(Placing, "int64_t", pitch) F(Placing, "int64_t", at) \
    F(Placing, "int64_t", threads)

/* The mean of the rows taps[0..tap_count)[window] (-1: none), per channel; rows [images * count], out [images *
 * windows] of bytes that stand for the same; taps [tap_count][windows], share [windows]. */
typedef struct {
    const uint8_t *rows;
    uint8_t *out;
    const int32_t *taps;
    const float *share;
    int64_t images, count, windows, tap_count, channels, zero_point, threads;
} MeanJob;
#define MeanJob_FIELDS(F) \
    F(MeanJob, "const uint8_t *", rows) F(MeanJob, "uint8_t *", out) F(MeanJob, "const int32_t *", taps) \
    F(MeanJob, "const float *", share) F(MeanJob, "int64_t", images) F(MeanJob, "int64_t", count) \
    F(MeanJob, "int64_t", windows) F(MeanJob, "int64_t", tap_count) F(MeanJob, "int64_t", channels) \
    F(MeanJob, "int64_t", zero_point) F(MeanJob, "int64_t", threads)

/* out = zero_point + the nearest integer of x * inverse, a byte. x: [count][width], out: [count][pitch]; what lies
 * between the rows is not said. */
typedef struct {
    const float *x;
    uint8_t *out;
    int64_t count, width, pitch, zero_point, threads;
    double inverse;
} Quantizing;
#define Quantizing_FIELDS(F) \
    F(Quantizing, "const float *", x) F(Quantizing, "uint8_t *", out) F(Quantizing, "int64_t", count) \
    F(Quantizing, "int64_t", width) F(Quantizing, "int64_t", pitch) F(Quantizing, "int64_t", zero_point) \
    F(Quantizing, "int64_t", threads) F(Quantizing, "double", inverse)

/* The adjoint of fitted interpolation, where a skipped position holds a weighted sum of `taps` computed rows:
 * gradients of the rows, of the weights [classes][taps][channels] and of the constants [classes][channels] from
 * those of the maps. positions: [count]. skipped: sorted by class; class k holds those from starts[k] to starts[k
 * + 1]. neighbors: [skipped][taps] rows within the image. The readers of a row are CSR lists: reader e adds
 * weights[reader_weight[e]] * grad at pixel reader_pixel[e]. */
typedef struct {
    const float *grad, *rows, *weights;
    float *rows_grad, *weights_grad, *constant_grad;
    const int32_t *positions, *skipped, *neighbors, *starts, *reader_starts, *reader_pixel, *reader_weight;
    int64_t images, count, taps, classes, pixels, channels, threads;
} FittedGradJob;
#define FittedGradJob_FIELDS(F) \
    F(FittedGradJob, "const float *", grad) F(FittedGradJob, "const float *", rows) \
    F(FittedGradJob, "const float *", weights) F(FittedGradJob, "float *", rows_grad) \
    F(FittedGradJob, "float *", weights_grad) F(FittedGradJob, "float *", constant_grad) \
    F(FittedGradJob, "const int32_t *", positions) F(FittedGradJob, "const int32_t *", skipped) \
    F(FittedGradJob, "const int32_t *", neighbors) F(FittedGradJob, "const int32_t *", starts) \
    F(FittedGradJob, "const int32_t *", reader_starts) F(FittedGradJob, "const int32_t *", reader_pixel) \
    F(FittedGradJob, "const int32_t *", reader_weight) F(FittedGradJob, "int64_t", images) \
    F(FittedGradJob, "int64_t", count) F(FittedGradJob, "int64_t", taps) F(FittedGradJob, "int64_t", classes) \
    F(FittedGradJob, "int64_t", pixels) F(FittedGradJob, "int64_t", channels) F(FittedGradJob, "int64_t", threads)

/* mask: [images][height][width]. */
typedef struct {
    const uint8_t *mask;
    int32_t *positions, *counts;
    int64_t images, height, width, dilate, threads;
} ActiveJob;
#define ActiveJob_FIELDS(F) \
    F(ActiveJob, "const uint8_t *", mask) F(ActiveJob, "int32_t *", positions) F(ActiveJob, "int32_t *", counts) \
    F(ActiveJob, "int64_t", images) F(ActiveJob, "int64_t", height) F(ActiveJob, "int64_t", width) \
    F(ActiveJob, "int64_t", dilate) F(ActiveJob, "int64_t", threads)

/* inverse[p]: the row that holds position p, -1 where none does; positions end at the first negative one. */
typedef struct {
    const int32_t *positions;
    int32_t *inverse;
    int64_t rows, size;
} Inversion;
#define Inversion_FIELDS(F) \
    F(Inversion, "const int32_t *", positions) F(Inversion, "int32_t *", inverse) F(Inversion, "int64_t", rows) \
    F(Inversion, "int64_t", size)

/* x [images][height][width][pitch], of which the first channels count -> score [images][height][width]. */
typedef struct {
    const float *x;
    float *score;
    int64_t images, height, width, pitch, channels, threads;
} Deviation;
#define Deviation_FIELDS(F) \
    F(Deviation, "const float *", x) F(Deviation, "float *", score) F(Deviation, "int64_t", images) \
    F(Deviation, "int64_t", height) F(Deviation, "int64_t", width) F(Deviation, "int64_t", pitch) \
    F(Deviation, "int64_t", channels) F(Deviation, "int64_t", threads)

/* score [images][pixels] -> the `budget` highest positions of each image, ascending. */
typedef struct {
    const float *score;
    int32_t *positions;
    int64_t images, pixels, budget, threads;
} Selection;
#define Selection_FIELDS(F) \
    F(Selection, "const float *", score) F(Selection, "int32_t *", positions) F(Selection, "int64_t", images) \
    F(Selection, "int64_t", pixels) F(Selection, "int64_t", budget) F(Selection, "int64_t", threads)

/* The state of [positions], x and output [positions][channels]; old and new may be the same memory. weight and
 * still_running may be NULL. */
typedef struct {
    const float *h, *x, *remainder, *ponder, *output;
    const int32_t *units;
    float *new_remainder, *new_ponder, *new_output, *weight;
    int32_t *new_units;
    uint8_t *still_running;
    int64_t positions, channels, last, sticks, threads;
    double eps;
} HaltingJob;
#define HaltingJob_FIELDS(F) \
    F(HaltingJob, "const float *", h) F(HaltingJob, "const float *", x) F(HaltingJob, "const float *", remainder) \
    F(HaltingJob, "const float *", ponder) F(HaltingJob, "const float *", output) \
    F(HaltingJob, "const int32_t *", units) F(HaltingJob, "float *", new_remainder) \
    F(HaltingJob, "float *", new_ponder) F(HaltingJob, "float *", new_output) F(HaltingJob, "float *", weight) \
    F(HaltingJob, "int32_t *", new_units) F(HaltingJob, "uint8_t *", still_running) \
    F(HaltingJob, "int64_t", positions) F(HaltingJob, "int64_t", channels) F(HaltingJob, "int64_t", last) \
    F(HaltingJob, "int64_t", sticks) F(HaltingJob, "int64_t", threads) F(HaltingJob, "double", eps)

/* Its gradients: d_* of the new state in, those of the scores, x and the old remainder out. */
typedef struct {
    const float *h, *x, *remainder, *d_remainder, *d_ponder, *d_output, *d_weight;
    float *d_h, *d_x, *d_old;
    int64_t positions, channels, last, sticks, threads;
    double eps;
} HaltingGradJob;
#define HaltingGradJob_FIELDS(F) \
    F(HaltingGradJob, "const float *", h) F(HaltingGradJob, "const float *", x) \
    F(HaltingGradJob, "const float *", remainder) F(HaltingGradJob, "const float *", d_remainder) \
    F(HaltingGradJob, "const float *", d_ponder) F(HaltingGradJob, "const float *", d_output) \
    F(HaltingGradJob, "const float *", d_weight) F(HaltingGradJob, "float *", d_h) F(HaltingGradJob, "float *", d_x) \
    F(HaltingGradJob, "float *", d_old) F(HaltingGradJob, "int64_t", positions) \
    F(HaltingGradJob, "int64_t", channels) F(HaltingGradJob, "int64_t", last) F(HaltingGradJob, "int64_t", sticks) \
    F(HaltingGradJob, "int64_t", threads) F(HaltingGradJob, "double", eps)

/* ponder and units [images][pixels] -> their sums. */
typedef struct {
    const float *ponder;
    const int32_t *units;
    float *rho;
    int64_t *executed;
    int64_t images, pixels;
} PonderJob;
#define PonderJob_FIELDS(F) \
    F(PonderJob, "const float *", ponder) F(PonderJob, "const int32_t *", units) F(PonderJob, "float *", rho) \
    F(PonderJob, "int64_t *", executed) F(PonderJob, "int64_t", images) F(PonderJob, "int64_t", pixels)

/* A halting head at every position: x [images][pixels][channels], frames; at: [count] the frame pixel of each
 * position; weights, bias, pooled as in StageUnit, steps as in Stage; weights NULL: ACT's, one score an image.
 * scores [images][count]: log odds, or their sigmoid. */
typedef struct {
    const float *x, *weights, *bias, *pooled;
    float *scores;
    const int32_t *at;
    const Step *steps;
    int64_t step_count, images, pixels, count, channels, bias_step, logits, threads;
} HeadJob;
#define HeadJob_FIELDS(F) \
    F(HeadJob, "const float *", x) F(HeadJob, "const float *", weights) F(HeadJob, "const float *", bias) \
    F(HeadJob, "const float *", pooled) F(HeadJob, "float *", scores) F(HeadJob, "const int32_t *", at) \
    F(HeadJob, "const Step *", steps) F(HeadJob, "int64_t", step_count) F(HeadJob, "int64_t", images) \
    F(HeadJob, "int64_t", pixels) F(HeadJob, "int64_t", count) F(HeadJob, "int64_t", channels) \
    F(HeadJob, "int64_t", bias_step) F(HeadJob, "int64_t", logits) F(HeadJob, "int64_t", threads)

/* offset in the memory of a group, in floats; pixels of one image's frame; itemsize 4, of floats, or 1, of bytes. */
typedef struct {
    int64_t offset, pixels, channels, itemsize;
} StageBuffer;
#define StageBuffer_FIELDS(F) \
    F(StageBuffer, "int64_t", offset) F(StageBuffer, "int64_t", pixels) F(StageBuffer, "int64_t", channels) \
    F(StageBuffer, "int64_t", itemsize)

/* offsets: [taps] pixels from a position's base in the input frame. steps: of a narrow convolution, those of its
 * footprint; else NULL. bases, places: first unit: [pixels] where a position reads and where it writes. source,
 * target: buffers. adds: to what its output holds. reach: distance to the active set. macs: of a position. kind,
 * multiplier, narrow and levels: as of Job. quantizes: of bytes, the buffer of floats that source is made of
 * first, by inverse [1] and zero_point; -1: source is there. */
typedef struct {
    const void *packed, *zero;
    const float *bias;
    const int32_t *offsets;
    const Step *steps;
    int64_t step_count;
    const int32_t *bases, *places;
    int64_t pixels, source, target, in_channels, out_channels, taps, groups, activation, adds, reach, macs, kind;
    const float *multiplier, *inverse;
    int64_t narrow, out_zero, low, high, zero_point, quantizes;
} StageConv;
#define StageConv_FIELDS(F) \
    F(StageConv, "const void *", packed) F(StageConv, "const void *", zero) F(StageConv, "const float *", bias) \
    F(StageConv, "const int32_t *", offsets) F(StageConv, "const Step *", steps) F(StageConv, "int64_t", step_count) \
    F(StageConv, "const int32_t *", bases) F(StageConv, "const int32_t *", places) F(StageConv, "int64_t", pixels) \
    F(StageConv, "int64_t", source) F(StageConv, "int64_t", target) F(StageConv, "int64_t", in_channels) \
    F(StageConv, "int64_t", out_channels) F(StageConv, "int64_t", taps) F(StageConv, "int64_t", groups) \
    F(StageConv, "int64_t", activation) F(StageConv, "int64_t", adds) F(StageConv, "int64_t", reach) \
    F(StageConv, "int64_t", macs) F(StageConv, "int64_t", kind) F(StageConv, "const float *", multiplier) \
    F(StageConv, "const float *", inverse) F(StageConv, "int64_t", narrow) F(StageConv, "int64_t", out_zero) \
    F(StageConv, "int64_t", low) F(StageConv, "int64_t", high) F(StageConv, "int64_t", zero_point) \
    F(StageConv, "int64_t", quantizes)

/* reaches: bit r is set where a list of reach r is used. The head: weights [taps][C]; bias [H * W] or [N][H * W]
 * (ACT: [1]), bias_step from one image to the next; pooled [C]. */
typedef struct {
    int64_t first_conv, convs, reaches;
    const float *weights, *bias;
    int64_t bias_step;
    const float *pooled;
} StageUnit;
#define StageUnit_FIELDS(F) \
    F(StageUnit, "int64_t", first_conv) F(StageUnit, "int64_t", convs) F(StageUnit, "int64_t", reaches) \
    F(StageUnit, "const float *", weights) F(StageUnit, "const float *", bias) F(StageUnit, "int64_t", bias_step) \
    F(StageUnit, "const float *", pooled)

/* A whole stage: see stage.c and kernels/stage.py. shortcut: what the first unit adds to, or NULL: one of its
 * convolutions. *_pieces as in Frame; input_pieces NULL: x is read in place. Strides are those of images,
 * channels and pixels. output NHWC; shares [N][units][H][W]. sticks: PACT, whose heads are thresholded. */
typedef struct {
    const float *x, *shortcut;
    int64_t x_stride_n, x_stride_c, x_stride_pixel, shortcut_stride_n, shortcut_stride_c, shortcut_stride_pixel;
    float *memory, *output, *ponder, *shares;
    int32_t *executed;
    int64_t *macs;
    int64_t images, group, threads, macs_before;
    const FramePiece *input_pieces, *shortcut_pieces;
    int64_t input_count, shortcut_count;
    const StageBuffer *buffers;
    const StageConv *convs;
    const StageUnit *units;
    const Step *head_steps;
    int64_t head_step_count, memory_each, unit_count, height, width, channels, border, pitch, reach, most_pixels,
        spatial;
    int64_t sticks;
    double eps;
} Stage;
#define Stage_FIELDS(F) \
    F(Stage, "const float *", x) F(Stage, "const float *", shortcut) F(Stage, "int64_t", x_stride_n) \
    F(Stage, "int64_t", x_stride_c) F(Stage, "int64_t", x_stride_pixel) F(Stage, "int64_t", shortcut_stride_n) \
    F(Stage, "int64_t", shortcut_stride_c) F(Stage, "int64_t", shortcut_stride_pixel) F(Stage, "float *", memory) \
    F(Stage, "float *", output) F(Stage, "float *", ponder) F(Stage, "float *", shares) \
    F(Stage, "int32_t *", executed) F(Stage, "int64_t *", macs) F(Stage, "int64_t", images) \
    F(Stage, "int64_t", group) F(Stage, "int64_t", threads) F(Stage, "int64_t", macs_before) \
    F(Stage, "const FramePiece *", input_pieces) F(Stage, "const FramePiece *", shortcut_pieces) \
    F(Stage, "int64_t", input_count) F(Stage, "int64_t", shortcut_count) F(Stage, "const StageBuffer *", buffers) \
    F(Stage, "const StageConv *", convs) F(Stage, "const StageUnit *", units) F(Stage, "const Step *", head_steps) \
    F(Stage, "int64_t", head_step_count) F(Stage, "int64_t", memory_each) F(Stage, "int64_t", unit_count) \
    F(Stage, "int64_t", height) F(Stage, "int64_t", width) F(Stage, "int64_t", channels) F(Stage, "int64_t", border) \
    F(Stage, "int64_t", pitch) F(Stage, "int64_t", reach) F(Stage, "int64_t", most_pixels) \
    F(Stage, "int64_t", spatial) F(Stage, "int64_t", sticks) F(Stage, "double", eps)

/* Gradients of a convolution from the gradient of its rows. The row -> tap structure is that of Job, in the same
 * words; row_image[n] is the first row of image n. Taps of value -1 are skipped, so that borders cost nothing.
 * packed: weights with the roles of input and output channels exchanged. dx is added to; dw
 * [out_channels][c_group][taps] is written. */
typedef struct {
    const float *x, *grad, *packed;
    float *dx, *dw;
    const int32_t *table, *positions, *inverse;
    const int64_t *row_image;
    int64_t dynamic, images, table_rows, in_pixels, in_pitch, taps, out_pixels, out_channels, groups, threads;
} GradJob;
#define GradJob_FIELDS(F) \
    F(GradJob, "const float *", x) F(GradJob, "const float *", grad) F(GradJob, "const float *", packed) \
    F(GradJob, "float *", dx) F(GradJob, "float *", dw) F(GradJob, "const int32_t *", table) \
    F(GradJob, "const int32_t *", positions) F(GradJob, "const int32_t *", inverse) \
    F(GradJob, "const int64_t *", row_image) F(GradJob, "int64_t", dynamic) F(GradJob, "int64_t", images) \
    F(GradJob, "int64_t", table_rows) F(GradJob, "int64_t", in_pixels) F(GradJob, "int64_t", in_pitch) \
    F(GradJob, "int64_t", taps) F(GradJob, "int64_t", out_pixels) F(GradJob, "int64_t", out_channels) \
    F(GradJob, "int64_t", groups) F(GradJob, "int64_t", threads)

/* rows [count][columns] -> sums [columns]. */
typedef struct {
    const float *rows;
    float *sums;
    int64_t count, columns, threads;
} ColumnSums;
#define ColumnSums_FIELDS(F) \
    F(ColumnSums, "const float *", rows) F(ColumnSums, "float *", sums) F(ColumnSums, "int64_t", count) \
    F(ColumnSums, "int64_t", columns) F(ColumnSums, "int64_t", threads)

/* An implicit gradient of `size` elements, float or double; inputs that it does not take are NULL. table: see
 * kernels/cpu/special.py. */
typedef struct {
    const void *first, *second, *third;
    void *out;
    const double *table;
    int64_t size, is_double, threads;
} Elementwise;
#define Elementwise_FIELDS(F) \
    F(Elementwise, "const void *", first) F(Elementwise, "const void *", second) \
    F(Elementwise, "const void *", third) F(Elementwise, "void *", out) F(Elementwise, "const double *", table) \
    F(Elementwise, "int64_t", size) F(Elementwise, "int64_t", is_double) F(Elementwise, "int64_t", threads)

#define EVERY_RECORD(R) \
    R(Job) R(Step) R(FootprintRun) R(FootprintJob) R(RecordedCall) R(ReplayBuffer) R(Replay) R(PanelSize) R(Packing) \
    R(FramePiece) R(Frame) R(HugePages) R(Fill) R(MaxJob) R(Placing) R(MeanJob) R(Quantizing) R(FittedGradJob) \
    R(ActiveJob) R(Inversion) R(Deviation) R(Selection) R(HaltingJob) R(HaltingGradJob) R(PonderJob) R(HeadJob) \
    R(StageBuffer) R(StageConv) R(StageUnit) R(Stage) R(GradJob) R(ColumnSums) R(Elementwise)

#define EVERY_CONSTANT(C) \
    C(MAX_VECTORS) C(GRAD_VECTORS) C(MAX_REACH) C(MOST_OUTSIDE) C(BUFFER_STATE) C(BUFFER_INPUT) C(ACT_NONE) \
    C(ACT_RELU) C(ACT_LEAKY_RELU) C(ACT_HARDSWISH) C(ACT_RELU6) C(KIND_FLOATS) C(KIND_FOURS) C(KIND_BYTES) \
    C(CALL_CONVOLVE) C(CALL_FOOTPRINTS) C(CALL_QUANTIZE) C(CALL_MAX_ROWS) C(CALL_FRAME) C(CALL_PLACE) \
    C(CALL_MEAN_ROWS) C(MOST_TERMS) C(MOST_PITCH)

#endif
