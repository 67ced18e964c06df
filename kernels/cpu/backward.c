/* Gradients of a convolution at a position set. Both are deterministic for any thread count: work is split by what is
 * written (an image's channels for dX, a tap's channels for dW), and every element is summed in row order. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum {
    GRAD_ROWS = 128, /* rows of a block: their gradients for one panel (32 KiB) stay in the L1 cache */
    OUTER_CHANNELS = 96, /* input channels of one item of dW: enough to pay for listing the rows */
    ITEMS_PER_THREAD = 2 /* more read x and the gradients more often: 44 instead of 38 ms for 128 channels at 112x112 */
};

static const int32_t one_target[1] = {0};

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The float offset in x (or dx) that tap t of row r of this image touches; -1: none. */
static int64_t touched(const GradJob *job, int64_t image, int64_t r, int64_t t)
{
    const int64_t column = job->dynamic ? job->positions[r] - image * job->out_pixels : r - image * job->table_rows;
    int64_t at = job->table[t * job->table_rows + column];
    if (at >= 0)
        at += image * job->in_pixels;
    if (at >= 0 && job->inverse)
        at = job->inverse[at];
    return at < 0 ? -1 : at * job->in_pitch;
}

/* dX of one image and one panel of input channels: per tap, rows times weights, added where the tap reads. */
static void grad_input_item(const GradJob *job, int64_t image, int64_t panel)
{
    const int64_t c_group = job->in_pitch / job->groups, k_group = job->out_channels / job->groups;
    const Panels cut = cut_panels(accel_isa, c_group, GRAD_VECTORS);
    const int64_t group = panel / cut.panels, vector0 = panel % cut.panels * cut.vectors, lanes = accel_isa->lanes;
    const int64_t vectors = smaller(cut.vectors, cut.all_vectors - vector0), width = vectors * lanes;
    const float *weights = job->packed + (group * cut.all_vectors + vector0) * lanes * job->taps * k_group;
    const int64_t tall = accel_isa->rows_for[cut.vectors];
    const char *grads[GRAD_ROWS + 2 * MAX_ROWS];
    RowOut out[GRAD_ROWS];
    TileArgs g = {
        .stride = tall,
        .taps = 1,
        .run = k_group,
        .shift = group * k_group * (int64_t)sizeof(float),
        .column = group * c_group + vector0 * lanes,
        .channels = smaller(width, c_group - vector0 * lanes),
        .pitch = job->in_pitch,
        .first = 1,
        .last = 1,
        .activation = ACT_NONE,
    };
    for (int64_t i = 0; i < GRAD_ROWS + 2 * MAX_ROWS; i++)
        grads[i] = (const char *)job->grad; /* the kernel prefetches through the pointers after its own */
    for (int64_t row = job->row_image[image]; row < job->row_image[image + 1]; row += GRAD_ROWS)
        for (int64_t t = 0; t < job->taps; t++) {
            const int64_t end = smaller(row + GRAD_ROWS, job->row_image[image + 1]);
            int64_t found = 0;
            for (int64_t r = row; r < end; r++) {
                const int64_t at = touched(job, image, r, t);
                if (at < 0)
                    continue;
                grads[found] = (const char *)(job->grad + r * job->out_channels);
                out[found++] = (RowOut){job->dx + at, job->dx + at, one_target, 1};
                for (int64_t v = 0; v < vectors; v++) /* added to soon, and scattered */
                    __builtin_prefetch(job->dx + at + g.column + v * lanes, 1);
            }
            g.weights = weights + t * k_group * width;
            for (int64_t i = 0; i < found; i += tall) {
                g.rows = grads + i;
                g.out = out + i;
                accel_isa->tile[vectors][smaller(tall, found - i)](&g);
            }
        }
}

/* Rows image by image, taps within an image. */
static void require_grad(const GradJob *job)
{
    REQUIRE(job->images >= 0 && job->taps > 0 && job->table_rows >= 0 && job->in_pixels >= 0 && job->groups > 0);
    REQUIRE(job->in_pitch > 0 && job->in_pitch % job->groups == 0);
    REQUIRE(job->out_channels > 0 && job->out_channels % job->groups == 0);
    REQUIRE(IS_ARRAY(job->row_image, job->images + 1) && job->row_image[0] == 0);
    REQUIRE(IS_ARRAY(job->table, job->taps * job->table_rows));
    REQUIRE(job->images == 0 || are_within(job->table, job->taps * job->table_rows, -1, job->in_pixels));
    for (int64_t n = 0; ACCEL_CHECKED && n < job->images; n++) {
        const int64_t first = job->row_image[n], count = job->row_image[n + 1] - first;
        REQUIRE(count >= 0 && (job->dynamic || count == job->table_rows));
        REQUIRE(!job->dynamic ||
                are_within(job->positions + first, count, n * job->out_pixels, (n + 1) * job->out_pixels));
    }
    REQUIRE(IS_ARRAY(job->x, job->row_image[job->images]) && IS_ARRAY(job->grad, job->row_image[job->images]));
    REQUIRE(!job->dynamic || job->table_rows == job->out_pixels);
    REQUIRE(!job->dynamic || IS_ARRAY(job->positions, job->row_image[job->images]));
}

int accel_grad_input(const GradJob *job)
{
    require_grad(job);
    REQUIRE(IS_ARRAY(job->packed, 1) && IS_ARRAY(job->dx, job->row_image[job->images]));
    const int64_t panels = job->groups * cut_panels(accel_isa, job->in_pitch / job->groups, GRAD_VECTORS).panels;
    const int threads = accel_threads(job->threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t item = 0; item < job->images * panels; item++)
        grad_input_item(job, item / panels, item % panels);
    return 0;
}

/* One block of rows into the tiles of `run` input channels. */
static void add_outer(OuterArgs *g, int64_t vectors, int64_t run, float *out, int64_t x_shift)
{
    const int64_t tiles = (run + accel_isa->rows_for[vectors] - 1) / accel_isa->rows_for[vectors];
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t from = tile * run / tiles, to = (tile + 1) * run / tiles;
        g->x_shift = x_shift + from;
        g->out = out + from * g->out_pitch;
        accel_isa->outer[vectors][to - from](g);
    }
}

/* What one item of dW writes: taps [t0, t1) of one group, a panel of output channels, a run of input channels. */
typedef struct {
    int64_t group, t0, t1, vector0, c0, c1;
} WeightItem;

/* The sums of an item, [taps][c][width], into dW: eight output channels at a time, so that their lines stay at hand. */
static void write_item(const GradJob *job, const WeightItem *it, const float *sums, int64_t width, int64_t real)
{
    const int64_t c_group = job->in_pitch / job->groups, run = it->c1 - it->c0, depth = c_group * job->taps;
    const int64_t first = it->group * (job->out_channels / job->groups) + it->vector0 * accel_isa->lanes;
    for (int64_t k = 0; k < real; k += 8) {
        const int64_t some = smaller(8, real - k);
        for (int64_t c = 0; c < run; c++)
            for (int64_t t = 0; t < it->t1 - it->t0; t++) {
                const float *from = sums + (t * run + c) * width + k;
                float *to = job->dw + (first + k) * depth + (it->c0 + c) * job->taps + it->t0 + t;
                for (int64_t i = 0; i < some; i++)
                    to[i * depth] = from[i];
            }
    }
}

/* Rows in blocks, and all taps of a block in turn: they read the same gradients and neighbouring pixels, from the cache. */
static void grad_weight_item(const GradJob *job, const WeightItem *it, const Panels *cut, float *sums)
{
    const int64_t c_group = job->in_pitch / job->groups, k_group = job->out_channels / job->groups;
    const int64_t k0 = it->vector0 * accel_isa->lanes, vectors = smaller(cut->vectors, cut->all_vectors - it->vector0);
    const int64_t width = vectors * accel_isa->lanes, run = it->c1 - it->c0;
    const float *grads[GRAD_ROWS], *xs[GRAD_ROWS];
    OuterArgs g = {
        .x = xs,
        .grad = grads,
        .grad_shift = it->group * k_group + k0,
        .out_pitch = width,
        .channels = smaller(width, k_group - k0),
    };
    memset(sums, 0, (size_t)((it->t1 - it->t0) * run * width) * sizeof(float));
    for (int64_t image = 0; image < job->images; image++)
        for (int64_t row = job->row_image[image]; row < job->row_image[image + 1]; row += GRAD_ROWS)
            for (int64_t t = it->t0; t < it->t1; t++) {
                const int64_t end = smaller(row + GRAD_ROWS, job->row_image[image + 1]);
                g.count = 0;
                for (int64_t r = row; r < end; r++) {
                    const int64_t at = touched(job, image, r, t);
                    if (at < 0)
                        continue;
                    grads[g.count] = job->grad + r * job->out_channels;
                    xs[g.count++] = job->x + at;
                    for (int64_t c = it->c0; c < it->c1; c += 16) /* a line at a time: read soon */
                        __builtin_prefetch(job->x + at + it->group * c_group + c);
                }
                add_outer(&g, vectors, run, sums + (t - it->t0) * run * width, it->group * c_group + it->c0);
            }
    write_item(job, it, sums, width, g.channels);
}

/* Taps are dealt to several items only where there would be too few for the threads. */
int accel_grad_weight(const GradJob *job)
{
    require_grad(job);
    REQUIRE(IS_ARRAY(job->dw, 1));
    const int64_t c_group = job->in_pitch / job->groups;
    const Panels cut = cut_panels(accel_isa, job->out_channels / job->groups, MAX_VECTORS);
    const int64_t runs = (c_group + OUTER_CHANNELS - 1) / OUTER_CHANNELS, fewest = job->groups * cut.panels * runs;
    const int threads = accel_threads(job->threads);
    const int64_t wanted = threads == 1 ? 1 : (ITEMS_PER_THREAD * threads + fewest - 1) / (fewest ? fewest : 1);
    const int64_t parts = smaller(job->taps, wanted), most_taps = (job->taps + parts - 1) / parts;
    const size_t each = (size_t)(most_taps * OUTER_CHANNELS * cut.vectors * accel_isa->lanes) * sizeof(float);
    char *sums = malloc(each * (size_t)threads);
    if (!sums)
        return -1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < fewest * parts; i++) {
        const int worker = accel_worker();
        const int64_t part = i % parts, run = i / parts % runs, panel = i / parts / runs % cut.panels;
        const WeightItem it = {
            .group = i / parts / runs / cut.panels,
            .t0 = part * job->taps / parts,
            .t1 = (part + 1) * job->taps / parts,
            .vector0 = panel * cut.vectors,
            .c0 = run * c_group / runs,
            .c1 = (run + 1) * c_group / runs,
        };
        grad_weight_item(job, &it, &cut, (float *)(sums + each * (size_t)worker));
    }
    free(sums);
    return 0;
}

/* In double, 32 columns at a time: a bias gradient sums as many rows as a batch has positions. */
void accel_column_sums(const ColumnSums *job)
{
    REQUIRE(job->count >= 0 && job->columns >= 0);
    REQUIRE(IS_ARRAY(job->rows, job->count * job->columns) && IS_ARRAY(job->sums, job->columns));
    const int64_t columns = job->columns;
    const int team = accel_threads(job->threads);
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1 && job->count * columns > 1 << 14)
    for (int64_t c0 = 0; c0 < columns; c0 += 32) {
        const int64_t width = smaller(32, columns - c0);
        double total[32] = {0};
        for (int64_t r = 0; r < job->count; r++)
            for (int64_t c = 0; c < width; c++)
                total[c] += job->rows[r * columns + c0 + c];
        for (int64_t c = 0; c < width; c++)
            job->sums[c0 + c] = (float)total[c];
    }
}
