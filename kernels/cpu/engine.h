/* The CPU engine's shared types. One job is one call of an op; one tile is one call of a register kernel.
 *
 * Everything is NHWC, fp32 but for the convolutions of bytes. A "row" is one computed output position of one image; a
 * "tap" is one run of contiguous input elements that a row reads (an input pixel's channels, or kw * C floats when C is
 * small). */
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
    void *base;
    const void *residual;
    const int32_t *targets;
    int64_t count;
} RowOut;

typedef struct {
    const char *const *rows; /* [taps][stride] pointers to the runs each row reads */
    int64_t stride, taps, run;
    int64_t shift;          /* bytes added to every pointer: the first channel of a group */
    const void *weights;    /* of a packed panel: see panel_bytes */
    const float *start;     /* of bytes: the panel's head, with which their sums begin */
    int64_t weight_pitch;   /* depthwise kernels: bytes from the weights of one tap to those of the next */
    const float *bias;      /* of this panel's channels, or NULL */
    const float *multiplier; /* of bytes: of this panel's channels */
    const Job *levels;      /* of bytes whose output is bytes: their levels; else NULL */
    int *odd;               /* of these: set where a residual in floats is NaN or infinite */
    const RowOut *out;
    int64_t column;         /* first output channel of this panel */
    int64_t channels;       /* output channels of this panel that exist; the rest of its lanes are padding */
    int64_t pitch;          /* output channels of a whole row */
    float *carry; /* [rows][vectors * lanes] sums between chunks of the reduction; of bytes, integers, and all */
    int first, last; /* is this the first / last chunk of the reduction */
    int activation;
    int stream; /* store past the caches: whole vectors only, base and pitch aligned to them */
} TileArgs;

/* Rows with one footprint: row r reads at the pixels bases[r] + steps[..].offset of x and goes to the pixels
 * targets[starts[r]] to targets[starts[r + 1]] of out, or, where starts is NULL, to the one targets[r].
 * Depthwise kernels multiply lane by lane; narrow ones are those of ordinary convolutions, one vector of outputs wide. */
typedef struct {
    const float *x, *residual; /* residual, NULL or like out: added at each target */
    const int32_t *bases, *starts, *targets;
    int64_t rows; /* a multiple of the tile's */
    const Step *steps;
    int64_t step_count;
    const float *weights, *bias; /* of one panel, as in TileArgs */
    int64_t weight_pitch, channels, in_pitch, pitch;
    float *out;
    uint8_t *bytes; /* in place of out: what quantize makes of it; *odd is set where that is NaN or infinite */
    float inverse;
    int32_t zero;
    int *odd;
    int activation, stream, copies; /* copies: a row begins with what its base holds */
} FootprintArgs;

/* dW: out[c][k] += sum over rows of x[row][c] * grad[row][k], for mr input channels and nv vectors of output channels. */
typedef struct {
    const float *const *x, *const *grad; /* [count] pointers, before the two shifts */
    int64_t count, x_shift, grad_shift;
    int64_t channels; /* output channels of this panel that exist */
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
typedef void (*FinishFn)(const TileArgs *, int64_t rows);
typedef void (*FootprintFn)(const FootprintArgs *);
typedef void (*OuterFn)(const OuterArgs *);
typedef void (*PairFn)(const PairArgs *);

/* What one instruction set offers, for bytes tile, depthwise, finish and quantize alone. rows_for[nv] is the tallest tile
 * that keeps all its accumulators in registers. */
typedef struct {
    const char *name;
    int lanes, max_vectors;
    int rows_for[MAX_VECTORS + 1], footprint_rows;
    TileFn tile[MAX_VECTORS + 1][MAX_ROWS + 1];
    TileFn depthwise[MAX_VECTORS + 1][MAX_ROWS + 1];
    FinishFn finish[MAX_VECTORS + 1]; /* of bytes */
    int (*quantize)(const float *from, uint8_t *to, int64_t count, float inverse, int32_t zero);
    FootprintFn footprint[MAX_VECTORS + 1][FOOTPRINT_ROWS + 1], narrow[MAX_ROWS + 1];
    FootprintFn footprint_bytes[MAX_VECTORS + 1][FOOTPRINT_ROWS + 1]; /* floats in, bytes out */
    OuterFn outer[MAX_VECTORS + 1][MAX_ROWS + 1];
    void (*sum_rows)(const Rows *rows, int64_t first, int64_t width, double *sums);
    void (*score_rows)(const Rows *rows, const Step *steps, int64_t count, const float *weights, float *scores);
    void (*sigmoid_rows)(float *x, int64_t count);
    void (*blend_rows)(const Rows *rows, const int32_t *to, const float *weight, int fresh, float *out);
    PairFn pairs[MAX_VECTORS + 1];
} Isa;

extern const Isa accel_portable, accel_portable_bytes;
#if defined(__x86_64__)
extern const Isa accel_avx2, accel_avx2_bytes, accel_avx512, accel_vnni_bytes;
#endif
extern const Isa *accel_isa, *accel_isa_bytes; /* those in use */

/* How the output channels of a group are cut into panels of at most `most` vectors: `panels` of `vectors` vectors, the last
 * one maybe narrower. */
typedef struct {
    int64_t all_vectors, panels, vectors;
} Panels;

static inline Panels cut_panels(const Isa *isa, int64_t channels, int64_t most)
{
    Panels cut;
    REQUIRE(channels > 0 && most > 0);
    if (most > isa->max_vectors)
        most = isa->max_vectors;
    cut.all_vectors = (channels + isa->lanes - 1) / isa->lanes;
    cut.panels = (cut.all_vectors + most - 1) / most;
    cut.vectors = (cut.all_vectors + cut.panels - 1) / cut.panels;
    cut.panels = (cut.all_vectors + cut.vectors - 1) / cut.vectors;
    return cut;
}

static inline const Isa *isa_of(int64_t kind) { return kind == KIND_FLOATS ? accel_isa : accel_isa_bytes; }
static inline int is_kind(int64_t kind) { return kind >= KIND_FLOATS && kind <= KIND_BYTES; }

/* What a run of input elements takes in a panel, of every lane. */
static inline int64_t run_bytes(int64_t kind, int64_t run)
{
    return kind == KIND_FLOATS ? run * (int64_t)sizeof(float) : kind == KIND_FOURS ? (run + 3) / 4 * 4 : run;
}

/* What a panel takes, of every lane. A panel is [taps][run][vectors * lanes] floats; or, of bytes, [vectors * lanes] 32-bit
 * integers, - zero point x the sum of a lane's weights, then [taps][run / 4][vectors * lanes][4], a run's last four filled
 * up with zeros, or, depthwise, [taps][vectors * lanes]. */
static inline int64_t panel_bytes(int64_t kind, int64_t taps, int64_t run)
{
    return (kind == KIND_FLOATS ? 0 : (int64_t)sizeof(int32_t)) + taps * run_bytes(kind, run);
}

/* Those that return int return 0, -1 when memory ran out, or 1 when bytes were made of a NaN or an infinity. */
int accel_convolve(const Job *job);
int accel_convolve_footprints(const FootprintJob *job);
void accel_convolve_narrow(FootprintArgs g, int64_t rows, int64_t taps, int64_t channels, int threads);
int accel_streams(const float *out, int64_t values, int64_t channels);
void accel_finish_streams(void);
void accel_use_huge_pages(void *buffer, int64_t bytes);
void accel_pack(const Packing *p);
int64_t accel_packed_size(const PanelSize *size); /* in bytes */
void accel_frame(const Frame *f);
void accel_interpolate(const Fill *f);
void accel_interpolate_backward(const Fill *f);
void accel_max_rows(const MaxJob *job);
void accel_place(const Placing *job);
void accel_mean_rows(const MeanJob *job);
int accel_quantize(const Quantizing *job);
void accel_interpolate_fitted_backward(const FittedGradJob *job);
int accel_active(const ActiveJob *job);
void accel_invert(const Inversion *job);
void accel_local_deviation(const Deviation *job);
void accel_select(const Selection *job);
void accel_halting_step(const HaltingJob *job);
void accel_halting_step_backward(const HaltingGradJob *job);
void accel_ponder_cost(const PonderJob *job);
int accel_run_stage(const Stage *s);
int accel_head_scores(const HeadJob *job);
int accel_grad_input(const GradJob *job);
int accel_grad_weight(const GradJob *job);
void accel_column_sums(const ColumnSums *job);

static inline int is_activation(int64_t code) { return code >= ACT_NONE && code <= ACT_RELU6; }

typedef struct {
    RecordedCall call;
    union {
        Job job;
        FootprintJob footprints;
        Quantizing quantizing;
        MaxJob max;
        Frame frame;
        Placing placing;
        MeanJob mean;
    };
} ReplayCall;

/* outside: the inputs and outputs of the chain. */
int accel_replay(const Replay *r, char *const *outside);

int accel_worker(void); /* the number of the calling thread in its team */
int accel_threads(int64_t asked); /* 1 in a forked child, where the thread pool did not survive */

#endif
