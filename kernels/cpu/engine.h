/* The CPU engine's shared types. One job is one call of an op; one tile is one call of a register kernel.
 *
 * Everything is NHWC fp32. A "row" is one computed output position of one image; a "tap" is one run of contiguous input
 * floats that a row reads (an input pixel's channels, or kw * C floats when C is small). */
#ifndef ACCEL_ENGINE_H
#define ACCEL_ENGINE_H

#include <stddef.h>
#include <stdint.h>

enum {
    MAX_VECTORS = 4,
    MAX_ROWS = 14,
    GRAD_VECTORS = 2, /* dX: narrow panels, since threads can share an image only by its channels */
    FOOTPRINT_ROWS = 6 /* rows of a tile with one footprint: as many as keep their addresses in registers */
};
enum { ACT_NONE, ACT_RELU, ACT_LEAKY_RELU, ACT_HARDSWISH };

/* Where one row goes: count destinations, base + targets[j] * pitch. There, residual + targets[j] * pitch is added before
 * the activation; it may be NULL. */
typedef struct {
    float *base;
    const float *residual;
    const int32_t *targets;
    int64_t count;
} RowOut;

typedef struct {
    const float *const *rows; /* [taps][stride] pointers to the runs each row reads */
    int64_t stride, taps, run;
    int64_t shift;          /* floats added to every pointer: the first channel of a group */
    const float *weights;   /* packed panel, [taps][run][vectors * lanes] */
    int64_t weight_pitch;   /* depthwise kernels: floats from the weights of one tap to those of the next */
    const float *bias;      /* of this panel's channels, or NULL */
    const RowOut *out;
    int64_t column;         /* first output channel of this panel */
    int64_t channels;       /* output channels of this panel that exist; the rest of its lanes are padding */
    int64_t pitch;          /* output channels of a whole row */
    float *carry;           /* [rows][vectors * lanes] partial sums between chunks of the reduction */
    int first, last;        /* is this the first / last chunk of the reduction */
    int activation;
    int stream;             /* store past the caches: whole vectors only, base and pitch aligned to them */
} TileArgs;

/* A step of a footprint: the pixels from the base of a row to what it reads there, and whose weights it takes; where the
 * kernel is narrow, as many taps at as many pixels that follow each other. */
typedef struct {
    int32_t offset, tap, taps;
} Step;

/* Rows with one footprint: row r reads at the pixels bases[r] + steps[..].offset of x and goes to the pixels
 * targets[starts[r]] to targets[starts[r + 1]] of out, or, where starts is NULL, to the one targets[r].
 * Depthwise kernels multiply lane by lane; narrow ones are those of ordinary convolutions, one vector of outputs wide. */
typedef struct {
    const float *x, *residual; /* residual, NULL or like out: added at each target */
    const int32_t *bases, *starts, *targets;
    int64_t rows;              /* a multiple of the tile's */
    const Step *steps;
    int64_t step_count;
    const float *weights, *bias; /* of one panel, as in TileArgs */
    int64_t weight_pitch, channels, in_pitch, pitch;
    float *out;
    int activation, stream, copies; /* copies: a row begins with what its base holds */
} FootprintArgs;

/* dW: out[c][k] += sum over rows of x[row][c] * grad[row][k], for mr input channels and nv vectors of output channels. */
typedef struct {
    const float *const *x, *const *grad; /* [count] pointers, before the two shifts */
    int64_t count, x_shift, grad_shift;
    int64_t channels;                    /* output channels of this panel that exist */
    float *out;
    int64_t out_pitch;
} OuterArgs;

/* Pixels at[0..count) of a map of `channels` floats each. */
typedef struct {
    const float *x;
    const int32_t *at;
    int64_t count, channels;
} Rows;

/* out[c] = start[c] + sum over i of a[i][c] * b[i][c], for the channels of one panel; start may be NULL, or out. */
typedef struct {
    const float *const *a, *const *b;
    int64_t count, channels;
    const float *start;
    float *out;
} PairArgs;

typedef void (*TileFn)(const TileArgs *);
typedef void (*FootprintFn)(const FootprintArgs *);
typedef void (*OuterFn)(const OuterArgs *);
typedef void (*PairFn)(const PairArgs *);

/* What one instruction set offers. rows_for[nv] is the tallest tile that keeps all its accumulators in registers. */
typedef struct {
    const char *name;
    int lanes, max_vectors;
    int rows_for[MAX_VECTORS + 1], footprint_rows;
    TileFn tile[MAX_VECTORS + 1][MAX_ROWS + 1];
    TileFn depthwise[MAX_VECTORS + 1][MAX_ROWS + 1];
    FootprintFn footprint[MAX_VECTORS + 1][FOOTPRINT_ROWS + 1], narrow[MAX_ROWS + 1];
    OuterFn outer[MAX_VECTORS + 1][MAX_ROWS + 1];
    void (*sum_rows)(const Rows *rows, int64_t first, int64_t width, float *sums);
    void (*score_rows)(const Rows *rows, const Step *steps, int64_t count, const float *weights, float *scores);
    void (*sigmoid_rows)(float *x, int64_t count);
    void (*blend_rows)(const Rows *rows, const int32_t *to, const float *weight, int fresh, float *out);
    PairFn pairs[MAX_VECTORS + 1];
} Isa;

extern const Isa accel_portable;
#if defined(__x86_64__)
extern const Isa accel_avx2, accel_avx512;
#endif
extern const Isa *accel_isa; /* the one in use */

/* How the output channels of a group are cut into panels of at most `most` vectors: `panels` of `vectors` vectors, the last
 * one maybe narrower. */
typedef struct {
    int64_t all_vectors, panels, vectors;
} Panels;

static inline Panels cut_panels(int64_t channels, int64_t most)
{
    Panels cut;
    if (most > accel_isa->max_vectors)
        most = accel_isa->max_vectors;
    cut.all_vectors = (channels + accel_isa->lanes - 1) / accel_isa->lanes;
    cut.panels = (cut.all_vectors + most - 1) / most;
    cut.vectors = (cut.all_vectors + cut.panels - 1) / cut.panels;
    cut.panels = (cut.all_vectors + cut.vectors - 1) / cut.vectors;
    return cut;
}

/* One forward convolution. Row r of a static set is position positions[r % table_rows] of image r / table_rows and column
 * r % table_rows of the table; row r of a dynamic set is the flat position positions[r] = n * out_pixels + p, column p;
 * row r of a framed job reads the pixels positions[r] + table[tap] and goes to pixel targets[r] of out.
 *
 * A static set of few input channels reads runs across the border from copies: -1 - e in its table is edge e of the image,
 * edge_run floats each, edges_each floats of an image. Edge 0 is zeros, and the only one of other jobs. */
typedef struct {
    const float *x, *packed, *bias, *residual;
    float *out;
    const float *zero;               /* the edges */
    const int32_t *table;            /* [taps][table_rows] input pixel (or row of compact x) of each tap, -1: zeros */
    const int32_t *positions;        /* int32 [table_rows] (static) or [rows] (dynamic) */
    const int32_t *starts, *targets; /* static, dense output: CSR of the positions each row stands for; else NULL */
    const int32_t *inverse;          /* dynamic, compact x: [images * in_pixels] row of x, or -1; else NULL */
    int64_t dynamic, scatter;        /* scatter: dense output and residual rather than compact */
    int64_t rows, table_rows, in_pixels, in_pitch, taps, run;
    int64_t out_pixels, out_channels, groups, depthwise, activation, threads;
    int64_t edge_run, edges_each, framed;
} Job;

int accel_convolve(const Job *job);

/* A convolution at a static set, whose rows are grouped by footprint: see kernels/cpu/footprints.py. Rows of an image come in runs with one footprint, runs in bands; footprint k takes the steps from footprints[k] to
 * footprints[k + 1]. Rows of class k add bias[k]; those of class -1 take what their base holds. */
typedef struct {
    int32_t first, rows, footprint, kind;
} FootprintRun;

typedef struct {
    const float *x, *weights, *bias, *residual; /* weights: packed panels, or, if plain, [classes][taps][channels] */
    float *out;
    const int32_t *bases, *starts, *targets; /* of one image, as in FootprintArgs */
    const FootprintRun *runs;
    const int32_t *bands; /* [band_count + 1]: the runs of each band */
    const int32_t *footprints;
    const Step *steps;
    int64_t images, band_count, in_pixels, out_pixels, in_channels, channels, taps, activation, filled, plain, narrow;
    int64_t threads; /* narrow: an ordinary convolution, in panels of one vector; else depthwise */
} FootprintJob;

void accel_convolve_footprints(const FootprintJob *job);
void accel_convolve_narrow(FootprintArgs g, int64_t rows, int64_t taps, int64_t channels, int threads);
int accel_streams(const float *out, int64_t values, int64_t channels);
void accel_finish_streams(void);
void accel_use_huge_pages(void *buffer, int64_t bytes);

/* One weight tensor, read through its strides: outputs k of group g are rows g * k_group + k. */
typedef struct {
    const float *w;
    float *packed;
    int64_t stride_g, stride_k, stride_c, stride_h, stride_w;
    int64_t groups, k_group, c_group, kh, kw, most_vectors, threads;
} Packing;

void accel_pack(const Packing *p);
int64_t accel_packed_size(int64_t groups, int64_t k_group, int64_t c_group, int64_t taps); /* in floats */

/* x, read through its strides -> out [images][pixels][channels]: frame pixels [to, to + count) are those of x from `from`
 * on, or zeros where that is -1. */
typedef struct {
    int32_t to, from, count;
} FramePiece;

typedef struct {
    const float *x;
    float *out;
    const FramePiece *pieces;
    int64_t piece_count, images, channels, pixels, stride_n, stride_c, stride_pixel, threads;
} Frame;

void accel_frame(const Frame *f);

/* Between compact rows [images * count][channels] and dense maps [images][pixels][channels]. */
typedef struct {
    const float *from;
    float *to;
    const int32_t *nearest;          /* interpolate: row that stands in for each pixel */
    const int32_t *starts, *targets; /* its adjoint: the pixels that each row stands for */
    int64_t images, count, pixels, channels, threads;
} Fill;

void accel_interpolate(const Fill *f);
void accel_interpolate_backward(const Fill *f);

/* The largest of the rows taps[0..tap_count)[window], per channel; rows [images * count], out [images * windows]. */
typedef struct {
    const float *rows;
    float *out;
    const int32_t *taps; /* [tap_count][windows] */
    int64_t images, count, windows, tap_count, channels, threads;
} MaxJob;

void accel_max_rows(const MaxJob *job);

/* The adjoint of fitted interpolation, where a skipped position holds a weighted sum of `taps` computed rows: gradients
 * of the rows, of the weights [classes][taps][channels] and of the constants [classes][channels] from those of the maps.
 * The readers of a row are CSR lists: reader e adds weights[reader_weight[e]] * grad at pixel reader_pixel[e]. */
typedef struct {
    const float *grad, *rows, *weights;
    float *rows_grad, *weights_grad, *constant_grad;
    const int32_t *positions; /* [count] */
    const int32_t *skipped;   /* sorted by class; class k holds those from starts[k] to starts[k + 1] */
    const int32_t *neighbors; /* [skipped][taps] rows within the image */
    const int32_t *starts;    /* [classes + 1] */
    const int32_t *reader_starts, *reader_pixel, *reader_weight;
    int64_t images, count, taps, classes, pixels, channels, threads;
} FittedGradJob;

void accel_interpolate_fitted_backward(const FittedGradJob *job);

typedef struct {
    const uint8_t *mask; /* [images][height][width] */
    int32_t *positions, *counts;
    int64_t images, height, width, dilate, threads;
} ActiveJob;

int accel_active(const ActiveJob *job);
void accel_invert(const int32_t *positions, int64_t rows, int32_t *inverse, int64_t size);
void accel_local_deviation(const float *x, int64_t images, int64_t height, int64_t width, int64_t pitch,
                           int64_t channels, float *score, int64_t threads);
void accel_select(const float *score, int64_t images, int64_t pixels, int64_t budget, int32_t *positions,
                  int64_t threads);

/* The state of [positions], x and output [positions][channels]; old and new may be the same memory. */
typedef struct {
    const float *h, *x, *remainder, *ponder, *output;
    const int32_t *units;
    float *new_remainder, *new_ponder, *new_output, *weight; /* weight may be NULL */
    int32_t *new_units;
    uint8_t *still_running; /* may be NULL */
    int64_t positions, channels, last, threads;
    float eps;
} HaltingJob;

void accel_halting_step(const HaltingJob *job);

/* Its gradients: d_* of the new state in, those of the scores, x and the old remainder out. */
typedef struct {
    const float *h, *x, *remainder, *d_remainder, *d_ponder, *d_output, *d_weight;
    float *d_h, *d_x, *d_old;
    int64_t positions, channels, last, threads;
    float eps;
} HaltingGradJob;

void accel_halting_step_backward(const HaltingGradJob *job);
void accel_ponder_cost(const float *ponder, const int32_t *units, int64_t images, int64_t pixels, float *rho,
                       int64_t *executed);

/* A whole stage: see stage.c and kernels/stage.py. The tables come from int64 tensors, so every field has 8 bytes and
 * addresses are integers. */
enum { MAX_REACH = 8, BUFFER_STATE = 0, BUFFER_INPUT = 1 };

typedef struct {
    int64_t offset, pixels, channels; /* in the memory of a group, in floats; pixels of one image's frame */
} StageBuffer;

typedef struct {
    int64_t packed, zero, bias, offsets; /* offsets: int32 [taps], pixels from a position's base in the input frame */
    int64_t steps, step_count;           /* of a narrow convolution, those of its footprint; else NULL */
    int64_t bases, places;               /* first unit: int32 [pixels], where a position reads and where it writes */
    int64_t pixels, from, to, in_channels, out_channels, taps, groups, activation;
    int64_t adds, reach, macs; /* adds to what its output holds; distance to the active set; MACs a position */
} StageConv;

typedef struct {
    int64_t first_conv, convs, reaches; /* reaches: bit r is set where a list of reach r is used */
    int64_t weights, bias, bias_step, pooled; /* the head: [taps][C]; [H * W] or [N][H * W] (ACT: [1]); [C] */
} StageUnit;

typedef struct {
    const float *x, *shortcut;                /* shortcut: what the first unit adds to, or NULL: one of its convolutions */
    const FramePiece *input_pieces, *shortcut_pieces; /* as in Frame; input_pieces NULL: x is read in place */
    int64_t input_count, shortcut_count;
    int64_t x_strides[3], shortcut_strides[3]; /* of images, channels and pixels */
    const StageBuffer *buffers;
    const StageConv *convs;
    const StageUnit *units;
    const Step *head_steps;
    float *memory, *output, *ponder, *shares; /* output NHWC; shares [N][units][H][W] */
    int32_t *executed;
    int64_t *macs;
    int64_t memory_each, images, group, unit_count, height, width, channels, border, pitch, reach, most_pixels;
    int64_t head_step_count, spatial, macs_before, threads;
    float eps;
} Stage;

int accel_run_stage(const Stage *s);

/* Gradients of a convolution from the gradient of its rows. The row -> tap structure is that of Job, in the same words;
 * row_image[n] is the first row of image n. Taps of value -1 are skipped, so that borders cost nothing. */
typedef struct {
    const float *x, *grad, *packed; /* packed: weights with the roles of input and output channels exchanged */
    float *dx, *dw;                 /* dx is added to; dw [out_channels][c_group][taps] is written */
    const int32_t *table, *positions, *inverse;
    const int64_t *row_image;
    int64_t dynamic, images, table_rows, in_pixels, in_pitch, taps;
    int64_t out_pixels, out_channels, groups, threads;
} GradJob;

int accel_grad_input(const GradJob *job);
int accel_grad_weight(const GradJob *job);
void accel_column_sums(const float *rows, int64_t count, int64_t columns, float *sums, int64_t threads);

#define POINTER(type, i) ((type)(intptr_t)a[i]) /* pointers are passed as ints */
enum { JOB_FIELDS = 27, FOOTPRINT_FIELDS = 24, REPLAY_FIELDS = 7, MOST_OUTSIDE = 57 };

/* The fields of a job in the order that Python gives them in. */
Job accel_job(const int64_t *fields);
FootprintJob accel_footprint_job(const int64_t *fields);

/* A call as it was recorded, with the buffers that it reads and writes; residual -1: none. */
typedef struct {
    int64_t by_footprints, x, residual, out, fields[JOB_FIELDS];
} RecordedCall;

/* outside -1: `floats` from the start of the thread's own memory. Otherwise one of Replay.outside, and how many floats of
 * it one group of images takes. */
typedef struct {
    int64_t outside, floats;
} ReplayBuffer;

typedef struct {
    const RecordedCall *calls;
    const ReplayBuffer *buffers;
    const float *memory; /* [threads][memory_each] */
    int64_t call_count, memory_each, groups, threads;
    const float *const *outside; /* inputs and outputs of the chain */
} Replay;

int accel_replay(const Replay *r);

int accel_worker(void); /* the number of the calling thread in its team */
int accel_threads(int64_t asked); /* 1 in a forked child, where the thread pool did not survive */

#endif
