/* Fitted interpolation: a skipped position is a weighted sum of computed rows, with one weight per tap and channel. That
 * is a depthwise convolution whose taps are listed, so the depthwise register kernels do it. And the adjoint.
 *
 * Every element is summed by one thread, taps or positions in a fixed order: the result does not depend on the threads. */
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "engine.h"

enum {
    BLOCK_TILES = 8,         /* tiles that share one pass over a panel of weights: their rows fit in the L1 cache */
    BAND_BYTES = 1 << 19,    /* rows and map of one work item; half of a usual L2 cache */
    FEWEST_VALUES = 1 << 14, /* below this a team of threads costs more than it saves */
    LIST = 128,              /* pairs of rows per call of a kernel */
    TAP_RUN = 4              /* taps of one item of the weights' gradient: they share the rows of its gradients */
};

static const int32_t one_target[1] = {0};

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* One item's share of a list that is dealt to `bands` items: where band `band` of `count` elements starts. */
static int64_t share(int64_t count, int64_t band, int64_t bands) { return count * band / bands; }

/* Skipped positions [first, first + count) of class k; or, with k = -1, computed ones: a sum of no taps on the row. */
static void fill_block(const FittedJob *job, int64_t image, int64_t k, int64_t first, int64_t count,
                       const float **pointers)
{
    const Panels cut = cut_panels(job->channels, MAX_VECTORS);
    const int64_t tall = accel_isa->rows_for[cut.vectors], lanes = accel_isa->lanes, taps = k < 0 ? 0 : job->taps;
    const float *rows = job->rows + image * job->count * job->channels;
    const int32_t *to = (k < 0 ? job->positions : job->skipped) + first;
    RowOut out[BLOCK_TILES * MAX_ROWS];
    for (int64_t tile = 0; tile < count; tile += tall)
        for (int64_t i = tile; i < smaller(tile + tall, count); i++) {
            const int32_t *neighbors = job->neighbors + (first + i) * taps;
            const float **mine = pointers + tile * taps + i - tile;
            for (int64_t t = 0; t < taps; t++)
                mine[t * tall] = rows + neighbors[t] * job->channels;
            const int64_t at = (image * job->pixels + to[i]) * job->channels;
            out[i] = (RowOut){job->out + at, k < 0 ? rows + (first + i) * job->channels : NULL,
                              job->residual ? job->residual + at : NULL, one_target, 1};
        }
    for (int64_t vector0 = 0; vector0 < cut.all_vectors; vector0 += cut.vectors) {
        const int64_t vectors = smaller(cut.vectors, cut.all_vectors - vector0), column = vector0 * lanes;
        TileArgs g = {
            .stride = tall, .taps = taps, .shift = column, .column = column, .pitch = job->channels, .first = 1,
            .last = 1, .channels = smaller(vectors * lanes, job->channels - column), .weight_pitch = job->channels,
            .activation = (int)job->activation,
        };
        if (k >= 0) {
            g.weights = job->weights + k * taps * job->channels + column;
            g.bias = job->constant + k * job->channels + column;
        }
        for (int64_t i = 0; i < count; i += tall) {
            g.rows = pointers + i * taps;
            g.out = out + i;
            accel_isa->depthwise[vectors][smaller(tall, count - i)](&g);
        }
    }
}

static void fill_part(const FittedJob *job, int64_t image, int64_t k, int64_t from, int64_t to, const float **pointers)
{
    const int64_t block = BLOCK_TILES * accel_isa->rows_for[cut_panels(job->channels, MAX_VECTORS).vectors];
    for (int64_t first = from; first < to; first += block)
        fill_block(job, image, k, first, smaller(block, to - first), pointers);
}

/* Lists are usually in the order of the map: the same share of each of them touches the same part of it. */
int accel_interpolate_fitted(const FittedJob *job)
{
    const int64_t values = job->images * job->pixels * job->channels;
    accel_use_huge_pages(job->out, values * (int64_t)sizeof(float));
    const int threads = values < FEWEST_VALUES ? 1 : accel_threads(job->threads);
    const int64_t bytes = (job->count + job->pixels) * job->channels * (int64_t)sizeof(float);
    const int64_t per_image = (4 * threads + job->images - 1) / (job->images ? job->images : 1);
    const int64_t bands = 1 + bytes / BAND_BYTES > per_image ? 1 + bytes / BAND_BYTES : per_image;
    const size_t each = (size_t)(BLOCK_TILES * MAX_ROWS * job->taps + 1);
    const float **scratch = malloc(each * (size_t)threads * sizeof *scratch);
    if (!scratch)
        return -1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t item = 0; item < job->images * bands; item++) {
        const int64_t image = item / bands, band = item % bands;
        const float **pointers = scratch;
#ifdef _OPENMP
        pointers += each * (size_t)omp_get_thread_num();
#endif
        fill_part(job, image, -1, share(job->count, band, bands), share(job->count, band + 1, bands), pointers);
        for (int64_t k = 0; k < job->classes; k++) {
            const int64_t start = job->starts[k], count = job->starts[k + 1] - start;
            fill_part(job, image, k, start + share(count, band, bands), start + share(count, band + 1, bands), pointers);
        }
    }
    free(scratch);
    return 0;
}

/* The gradient of one row: of its own position, and of what it was weighted into. */
static void row_grad(const FittedGradJob *job, int64_t image, int64_t row, const Panels *cut)
{
    const float *grad = job->grad + image * job->pixels * job->channels, *a[LIST], *b[LIST];
    const int64_t end = job->reader_starts[row + 1], lanes = accel_isa->lanes;
    for (int64_t vector0 = 0; vector0 < cut->all_vectors; vector0 += cut->vectors) {
        const int64_t vectors = smaller(cut->vectors, cut->all_vectors - vector0), column = vector0 * lanes;
        PairArgs g = {
            .a = a, .b = b, .channels = smaller(vectors * lanes, job->channels - column),
            .start = grad + job->positions[row] * job->channels + column,
            .out = job->rows_grad + (image * job->count + row) * job->channels + column,
        };
        int64_t first = job->reader_starts[row];
        do {
            g.count = smaller(LIST, end - first);
            for (int64_t i = 0; i < g.count; i++) {
                a[i] = grad + job->reader_pixel[first + i] * job->channels + column;
                b[i] = job->weights + job->reader_weight[first + i] * job->channels + column;
            }
            accel_isa->pairs[vectors](&g);
            g.start = g.out;
            first += LIST;
        } while (first < end);
    }
}

/* Taps [t0, t1) of class k, one panel of channels; tap job->taps is the constant. */
static void class_grad(const FittedGradJob *job, int64_t k, int64_t t0, int64_t t1, int64_t vector0, const Panels *cut)
{
    const int64_t vectors = smaller(cut->vectors, cut->all_vectors - vector0), column = vector0 * accel_isa->lanes;
    const float *a[LIST], *b[LIST];
    float ones[MAX_VECTORS * 16]; /* 16 lanes are the most of any instruction set */
    PairArgs g = {.a = a, .b = b, .channels = smaller(vectors * accel_isa->lanes, job->channels - column)};
    for (int64_t c = 0; c < g.channels; c++)
        ones[c] = 1;
    for (int64_t image = 0; image < job->images; image++)
        for (int64_t f = job->starts[k]; f < job->starts[k + 1]; f += LIST) {
            g.count = smaller(LIST, job->starts[k + 1] - f);
            for (int64_t i = 0; i < g.count; i++)
                a[i] = job->grad + (image * job->pixels + job->skipped[f + i]) * job->channels + column;
            for (int64_t t = t0; t < t1; t++) {
                const int32_t *neighbors = job->neighbors + f * job->taps + t;
                const float *rows = job->rows + image * job->count * job->channels + column;
                for (int64_t i = 0; i < g.count; i++)
                    b[i] = t == job->taps ? ones : rows + neighbors[i * job->taps] * job->channels;
                g.out = t == job->taps ? job->constant_grad + k * job->channels + column
                                       : job->weights_grad + (k * job->taps + t) * job->channels + column;
                g.start = g.out;
                accel_isa->pairs[vectors](&g);
            }
        }
}

/* weights_grad and constant_grad are added to. */
void accel_interpolate_fitted_backward(const FittedGradJob *job)
{
    const Panels cut = cut_panels(job->channels, MAX_VECTORS);
    const int64_t runs = (job->taps + TAP_RUN) / TAP_RUN; /* the constant is one more tap */
    const int threads = accel_threads(job->threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < job->images * job->count; i++)
        row_grad(job, i / job->count, i % job->count, &cut);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t item = 0; item < job->classes * runs * cut.panels; item++) {
        const int64_t run = item / cut.panels % runs;
        class_grad(job, item / cut.panels / runs, run * TAP_RUN, smaller((run + 1) * TAP_RUN, job->taps + 1),
                   item % cut.panels * cut.vectors, &cut);
    }
}
