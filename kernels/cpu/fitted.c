/* The adjoint of fitted interpolation; forward it is a depthwise convolution.
 *
 * Every element is summed by one thread, taps or positions in a fixed order: the result does not depend on the threads. */
#include "engine.h"

enum {
    LIST = 128, /* pairs of rows per call of a kernel */
    TAP_RUN = 4 /* taps of one item of the weights' gradient: they share the rows of its gradients */
};

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The gradient of one row: of its own position, and of what it was weighted into. */
static void row_grad(const FittedGradJob *job, int64_t image, int64_t row, const Panels *cut)
{
    const float *grad = job->grad + image * job->pixels * job->channels, *a[LIST], *b[LIST];
    const int64_t end = job->reader_starts[row + 1], lanes = accel_isa->lanes;
    for (int64_t vector0 = 0; vector0 < cut->all_vectors; vector0 += cut->vectors) {
        const int64_t vectors = smaller(cut->vectors, cut->all_vectors - vector0), column = vector0 * lanes;
        PairArgs g = {
            .a = a,
            .b = b,
            .channels = smaller(vectors * lanes, job->channels - column),
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
    REQUIRE(job->images > 0 && job->count > 0 && job->pixels > 0 && job->channels > 0);
    REQUIRE(job->classes >= 0 && job->taps >= 0);
    REQUIRE(IS_ARRAY(job->grad, 1) && IS_ARRAY(job->rows, 1) && IS_ARRAY(job->rows_grad, 1));
    REQUIRE(IS_ARRAY(job->weights, job->classes * job->taps) && IS_ARRAY(job->constant_grad, job->classes));
    REQUIRE(IS_ARRAY(job->weights_grad, job->classes * job->taps));
    REQUIRE(IS_ARRAY(job->positions, job->count) && are_within(job->positions, job->count, 0, job->pixels));
    REQUIRE(are_lists(job->starts, job->skipped, job->classes, job->pixels));
    REQUIRE(are_within(job->neighbors, job->starts[job->classes] * job->taps, 0, job->count));
    REQUIRE(are_lists(job->reader_starts, job->reader_pixel, job->count, job->pixels));
    REQUIRE(are_within(job->reader_weight, job->reader_starts[job->count], 0, job->classes * job->taps));
    const Panels cut = cut_panels(accel_isa, job->channels, MAX_VECTORS);
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
