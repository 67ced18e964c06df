/* The CPU engine's shared types. One job is one call of an op; one tile is one call of a register kernel.
 *
 * Everything is NHWC fp32. A "row" is one computed output position of one image; a "tap" is one run of contiguous input
 * floats that a row reads (an input pixel's channels, or kw * C floats when C is small). */
#ifndef ACCEL_ENGINE_H
#define ACCEL_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#include "contract.h"
#include "record.h"

enum {
    MAX_ROWS = 14,
    FOOTPRINT_ROWS = 6 /* rows of a tile with one footprint: as many as keep their addresses in registers */
};

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
    REQUIRE(channels > 0 && most > 0);
    if (most > accel_isa->max_vectors)
        most = accel_isa->max_vectors;
    cut.all_vectors = (channels + accel_isa->lanes - 1) / accel_isa->lanes;
    cut.panels = (cut.all_vectors + most - 1) / most;
    cut.vectors = (cut.all_vectors + cut.panels - 1) / cut.panels;
    cut.panels = (cut.all_vectors + cut.vectors - 1) / cut.vectors;
    return cut;
}

/* Those that return int return 0, or -1 when memory ran out. */
int accel_convolve(const Job *job);
void accel_convolve_footprints(const FootprintJob *job);
void accel_convolve_narrow(FootprintArgs g, int64_t rows, int64_t taps, int64_t channels, int threads);
int accel_streams(const float *out, int64_t values, int64_t channels);
void accel_finish_streams(void);
void accel_use_huge_pages(void *buffer, int64_t bytes);
void accel_pack(const Packing *p);
int64_t accel_packed_size(const PanelSize *size); /* in floats */
void accel_frame(const Frame *f);
void accel_interpolate(const Fill *f);
void accel_interpolate_backward(const Fill *f);
void accel_max_rows(const MaxJob *job);
void accel_interpolate_fitted_backward(const FittedGradJob *job);
int accel_active(const ActiveJob *job);
void accel_invert(const Inversion *job);
void accel_local_deviation(const Deviation *job);
void accel_select(const Selection *job);
void accel_halting_step(const HaltingJob *job);
void accel_halting_step_backward(const HaltingGradJob *job);
void accel_ponder_cost(const PonderJob *job);
int accel_run_stage(const Stage *s);
int accel_grad_input(const GradJob *job);
int accel_grad_weight(const GradJob *job);
void accel_column_sums(const ColumnSums *job);

static inline int is_activation(int64_t code) { return code >= ACT_NONE && code <= ACT_HARDSWISH; }

typedef struct {
    RecordedCall call;
    union {
        Job job;
        FootprintJob footprints;
    };
} ReplayCall;

/* outside: the inputs and outputs of the chain. */
int accel_replay(const Replay *r, const float *const *outside);

int accel_worker(void); /* the number of the calling thread in its team */
int accel_threads(int64_t asked); /* 1 in a forked child, where the thread pool did not survive */

#endif
