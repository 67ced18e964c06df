/* A whole ACT or SACT stage in evaluation, in one call: see kernels/stage.py for what it computes.
 *
 * Images go through all units in small groups, whose maps stay in the caches. The maps lie in frames: NHWC with a border
 * of zeros on every side, so that a tap is a constant offset from the pixel it belongs to and one list of pixels says
 * both where a convolution reads and where it writes. A unit runs its convolutions at listed pixels, adds to the state in
 * place, and then its halting head, the step and the accumulation of the output run in one pass over the same list. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "halting.h"
#include "heads.h"
#include "stage_contract.h"

enum {
    CHUNK = 256 /* rows of one work item of the halting pass */,
    QUANTIZED = 1 << 14 /* numbers of one that makes bytes */,
    HEAD_TAPS = 9
};

/* One group of images under way. Lists hold pixels of the state's frames, ascending, of all images of the group. */
typedef struct {
    const Stage *s;
    int64_t first, images;
    int threads;
    float *memory;             /* the buffers: maps of s->group images each */
    int32_t *lists[MAX_REACH]; /* by reach: the active pixels, dilated; [0] is the active set itself */
    int64_t *starts[MAX_REACH]; /* [images + 1] where each image's part of a list begins */
    int32_t *flat;             /* of lists[0]: position within the group, image * pixels + p */
    int32_t *from, *to;        /* lists of a first unit, whose convolutions change the grid */
    float *weight;             /* of lists[0]: scores, then halting weights */
    float *remainder;          /* [images * pixels], or [images] */
    float *pooled;             /* [images] */
    double *sums, *totals;     /* [images][channels]: of listed pixels, of the state */
    uint8_t *active, *wide, *rows; /* frames of the state; wide and rows: the dilated mask, and half of the way there */
} Group;

static int64_t frame_pixels(const Group *g, int64_t buffer) { return g->s->buffers[buffer].pixels; }

static void *buffer(const Group *g, int64_t index)
{
    const StageBuffer *b = g->s->buffers + index;
    if (index == BUFFER_INPUT && !g->s->input_pieces)
        return (float *)(g->s->x + g->first * b->pixels * b->channels); /* read in place */
    return g->memory + b->offset;
}

/* The bytes that a convolution reads, of whole frames: to list what the unit needs would cost more. Returns whether a
 * number is NaN or infinite. */
static int make_bytes(const Group *g, const StageConv *c)
{
    const StageBuffer *to = g->s->buffers + c->source;
    const int64_t each = to->pixels * to->channels, parts = (each + QUANTIZED - 1) / QUANTIZED;
    const float *from = buffer(g, c->quantizes);
    uint8_t *bytes = buffer(g, c->source);
    int odd = 0;
#pragma omp parallel for schedule(static) num_threads(g->threads) reduction(| : odd) if (g->threads > 1)
    for (int64_t i = 0; i < g->images * parts; i++) {
        const int64_t n = i / parts, start = i % parts * QUANTIZED, at = n * each + start;
        const int64_t count = each - start < QUANTIZED ? each - start : QUANTIZED;
        if (g->starts[0][n + 1] > g->starts[0][n])
            odd |= !accel_isa_bytes->quantize(from + at, bytes + at, count, *c->inverse, (int32_t)c->zero_point);
    }
    return odd;
}

/* A copy of the group's part of a map in a buffer, with the border; f says how the map lies and what its pieces are. */
static void enter(const Group *g, Frame f, int64_t to)
{
    f.x += g->first * f.stride_n;
    f.out = buffer(g, to);
    f.images = g->images;
    f.channels = g->s->buffers[to].channels;
    f.pixels = frame_pixels(g, to);
    f.threads = g->threads;
    accel_frame(&f);
}

/* to[i] |= from[i + d * step] for d in -reach .. reach. */
static void spread(const uint8_t *restrict from, uint8_t *restrict to, int64_t count, int64_t step, int64_t reach)
{
    for (int64_t d = -reach; d <= reach; d++)
        for (int64_t i = 0; i < count; i++)
            to[i] |= from[i + d * step];
}

/* wide[f] = whether any pixel of the mask within `reach` rows and columns of f is set; inside the border only. */
static void dilate(const Group *g, int64_t image, int64_t reach)
{
    const Stage *s = g->s;
    const int64_t all = frame_pixels(g, BUFFER_STATE), start = image * all, lines = s->border * s->pitch;
    uint8_t *rows = g->rows + start, *wide = g->wide + start;
    memset(rows, 0, (size_t)all);
    memset(wide, 0, (size_t)all);
    spread(g->active + start + s->border, rows + s->border, all - 2 * s->border, 1, reach);
    spread(rows + lines, wide + lines, all - 2 * lines, s->pitch, reach);
}

/* Lists the pixels of the mask, or of the dilated one. */
static void list_pixels(const Group *g, int64_t reach)
{
    const Stage *s = g->s;
    const int64_t all = frame_pixels(g, BUFFER_STATE);
    int32_t *list = g->lists[reach];
    int64_t count = 0;
    for (int64_t n = 0; n < g->images; n++) {
        g->starts[reach][n] = count;
        if (reach)
            dilate(g, n, reach);
        const uint8_t *mask = reach ? g->wide : g->active;
        for (int64_t y = 0; y < s->height; y++) {
            const int64_t f = n * all + (y + s->border) * s->pitch + s->border, p = (n * s->height + y) * s->width;
            for (int64_t x = 0; x < s->width; x++) { /* without a branch: masks are hard to predict */
                list[count] = (int32_t)(f + x);
                if (!reach)
                    g->flat[count] = (int32_t)(p + x);
                count += mask[f + x];
            }
        }
    }
    g->starts[reach][g->images] = count;
}

/* Every position of a convolution that may change the grid: the pixels it reads from and writes to. */
static int64_t list_grid(const Group *g, const StageConv *c)
{
    const int32_t *bases = c->bases, *places = c->places;
    const int64_t from = frame_pixels(g, c->source), to = frame_pixels(g, c->target);
    for (int64_t n = 0; n < g->images; n++)
        for (int64_t p = 0; p < c->pixels; p++) {
            g->from[n * c->pixels + p] = (int32_t)(n * from + bases[p]);
            g->to[n * c->pixels + p] = (int32_t)(n * to + places[p]);
        }
    return g->images * c->pixels;
}

static int convolve(const Group *g, const StageConv *c, const int32_t *from, const int32_t *to, int64_t rows)
{
    if (c->steps) {
        const FootprintArgs args = {
            .x = buffer(g, c->source),
            .weights = c->packed,
            .bias = c->bias,
            .residual = c->adds ? buffer(g, c->target) : NULL,
            .out = buffer(g, c->target),
            .bases = from,
            .targets = to,
            .steps = c->steps,
            .step_count = c->step_count,
            .in_pitch = c->in_channels,
            .pitch = c->out_channels,
            .activation = (int)c->activation,
        };
        accel_convolve_narrow(args, rows, c->taps, c->out_channels, g->threads);
        return 0;
    }
    const Job job = {
        .x = buffer(g, c->source),
        .packed = c->packed,
        .zero = c->zero,
        .bias = c->bias,
        .residual = c->adds ? buffer(g, c->target) : NULL,
        .out = buffer(g, c->target),
        .offsets = c->offsets,
        .positions = from,
        .targets = to,
        .framed = 1,
        .scatter = 1,
        .rows = rows,
        .table_rows = 1,
        .in_pitch = c->in_channels,
        .taps = c->taps,
        .run = c->in_channels / c->groups,
        .out_channels = c->out_channels,
        .groups = c->groups,
        .activation = c->activation,
        .kind = c->kind,
        .multiplier = c->multiplier,
        .narrow = c->narrow,
        .out_zero = c->out_zero,
        .low = c->low,
        .high = c->high,
        .threads = g->threads,
    };
    return accel_convolve(&job);
}

/* The convolutions of unit k, everywhere (the first) or at the active pixels; counts what they did. */
static int run_branch(const Group *g, int64_t k)
{
    const StageUnit *u = g->s->units + k;
    int64_t *macs = g->s->macs + g->first;
    for (int64_t i = u->first_conv; i < u->first_conv + u->convs; i++) {
        const StageConv *c = g->s->convs + i;
        int failed = c->quantizes >= 0 ? make_bytes(g, c) : 0;
        if (failed)
            return failed;
        if (k == 0) {
            failed = convolve(g, c, g->from, g->to, list_grid(g, c));
        } else {
            const int32_t *list = g->lists[c->reach];
            failed = convolve(g, c, list, list, g->starts[c->reach][g->images]);
        }
        if (failed)
            return failed;
        for (int64_t n = 0; n < g->images; n++)
            macs[n] += c->macs * (k ? g->starts[c->reach][n + 1] - g->starts[c->reach][n] : c->pixels);
    }
    return 0;
}

/* Adds the listed pixels to the channel totals of each image, or takes them away. Threads share the channels, so that
 * no order of additions depends on them. */
static void add_totals(const Group *g, double sign)
{
    const int64_t channels = g->s->channels, width = 64, blocks = (channels + width - 1) / width;
    const float *state = buffer(g, BUFFER_STATE);
#pragma omp parallel for schedule(static) num_threads(g->threads) if (g->threads > 1)
    for (int64_t i = 0; i < g->images * blocks; i++) {
        const int64_t n = i / blocks, c = i % blocks * width, start = g->starts[0][n];
        const int64_t here = channels - c < width ? channels - c : width;
        const Rows rows = {state, g->lists[0] + start, g->starts[0][n + 1] - start, channels};
        double *sums = g->sums + n * channels + c;
        accel_isa->sum_rows(&rows, c, here, sums);
        for (int64_t j = 0; j < here; j++)
            g->totals[n * channels + c + j] += sign * sums[j];
    }
}

/* The head's share that an image has in common. */
static float pooled_score(const Group *g, const StageUnit *u, int64_t image)
{
    const int64_t channels = g->s->channels, pixels = g->s->height * g->s->width;
    return accel_pooled_score(u->pooled, g->totals + image * channels, channels, pixels) + u->bias[0] * !g->s->spatial;
}

/* One halting decision at state i of the group, whose score is h, or with sticks the log odds; returns the weight of this
 * unit there. Log odds that are NaN leave NaN in the cost. */
static float decide(const Group *g, int64_t k, int64_t i, float h, int *going)
{
    const Stage *s = g->s;
    const float left = k ? g->remainder[i] : 1;
    const int64_t at = g->first * (s->spatial ? s->height * s->width : 1) + i;
    const int last = k + 1 == s->unit_count, decides = s->sticks && !last && h == h;
    const Halted done = accel_halt(left, decides ? (float)(h > 0) : h, (float)s->eps, last, (int)s->sticks);
    *going = done.after > 0;
    g->remainder[i] = done.after;
    s->ponder[at] = (k ? s->ponder[at] : 1) + done.cost;
    s->executed[at] = (int32_t)k + 1;
    return done.weight;
}

/* The scores of rows [start, end) of the active list, in g->weight. */
static void score(const Group *g, int64_t k, const Rows *rows, int64_t start, int64_t end)
{
    const Stage *s = g->s;
    const StageUnit *u = s->units + k;
    const int64_t pixels = s->height * s->width;
    accel_isa->score_rows(rows, s->head_steps, s->head_step_count, u->weights, g->weight + start);
    for (int64_t n = 0, r = start; r < end; n++) {
        const float *bias = u->bias + (g->first + n) * u->bias_step, pooled = g->pooled[n];
        for (; r < end && r < g->starts[0][n + 1]; r++)
            g->weight[r] += bias[g->flat[r] - n * pixels] + pooled;
    }
    if (!s->sticks)
        accel_isa->sigmoid_rows(g->weight + start, end - start);
}

/* Head, step and accumulation at rows [start, end) of the active list. */
static void halt_rows(const Group *g, int64_t k, int64_t start, int64_t end)
{
    const Stage *s = g->s;
    const int64_t pixels = s->height * s->width;
    const Rows rows = {buffer(g, BUFFER_STATE), g->lists[0] + start, end - start, s->channels};
    if (s->spatial && k + 1 < s->unit_count)
        score(g, k, &rows, start, end);
    for (int64_t n = 0, r = start; r < end; n++) {
        float *shares = s->shares + ((g->first + n) * s->unit_count + k) * (s->spatial ? pixels : 1);
        for (; r < end && r < g->starts[0][n + 1]; r++) {
            if (!s->spatial) { /* decided already, once for the image */
                g->weight[r] = shares[0];
                continue;
            }
            int going;
            g->weight[r] = decide(g, k, g->flat[r], g->weight[r], &going);
            shares[g->flat[r] - n * pixels] = g->weight[r];
            g->active[g->lists[0][r]] = (uint8_t)going;
        }
    }
    if (!s->sticks)
        accel_isa->blend_rows(&rows, g->flat + start, g->weight + start, k == 0,
                              s->output + g->first * pixels * s->channels);
}

static void halt(const Group *g, int64_t k)
{
    const Stage *s = g->s;
    const StageUnit *u = s->units + k;
    const int64_t total = g->starts[0][g->images], chunks = (total + CHUNK - 1) / CHUNK;
    const int scored = k + 1 < s->unit_count;
    for (int64_t n = 0; n < g->images; n++) {
        const int64_t start = g->starts[0][n], count = g->starts[0][n + 1] - start;
        if (count == 0)
            continue;
        g->pooled[n] = scored ? pooled_score(g, u, n) : 0;
        s->macs[g->first + n] += scored * (s->spatial ? count * HEAD_TAPS * s->channels + s->channels : s->channels);
        if (!s->spatial) {
            int going;
            const float h = s->sticks ? g->pooled[n] : accel_sigmoid(g->pooled[n]);
            s->shares[(g->first + n) * s->unit_count + k] = decide(g, k, n, h, &going);
            for (int64_t r = start; r < start + count; r++)
                g->active[g->lists[0][r]] = (uint8_t)going;
        }
    }
#pragma omp parallel for schedule(static) num_threads(g->threads) if (g->threads > 1 && chunks > 1)
    for (int64_t i = 0; i < chunks; i++)
        halt_rows(g, k, i * CHUNK, i * CHUNK + CHUNK < total ? i * CHUNK + CHUNK : total);
}

static void begin(const Group *g)
{
    const Stage *s = g->s;
    const int64_t states = s->spatial ? s->height * s->width : 1, all = frame_pixels(g, BUFFER_STATE);
    memset(s->shares + g->first * s->unit_count * states, 0,
           (size_t)(g->images * s->unit_count * states) * sizeof(float));
    memset(g->totals, 0, (size_t)(g->images * s->channels) * sizeof(double));
    memset(g->active, 0, (size_t)(g->images * all));
    for (int64_t n = 0; n < g->images; n++) {
        s->macs[g->first + n] = s->macs_before;
        for (int64_t y = 0; y < s->height; y++)
            memset(g->active + n * all + (y + s->border) * s->pitch + s->border, 1, (size_t)s->width);
    }
    if (s->input_pieces)
        enter(g,
              (Frame){.x = s->x,
                      .pieces = s->input_pieces,
                      .piece_count = s->input_count,
                      .stride_n = s->x_stride_n,
                      .stride_c = s->x_stride_c,
                      .stride_pixel = s->x_stride_pixel},
              BUFFER_INPUT);
    if (s->shortcut)
        enter(g,
              (Frame){.x = s->shortcut,
                      .pieces = s->shortcut_pieces,
                      .piece_count = s->shortcut_count,
                      .stride_n = s->shortcut_stride_n,
                      .stride_c = s->shortcut_stride_c,
                      .stride_pixel = s->shortcut_stride_pixel},
              BUFFER_STATE);
}

/* With sticks, the state in the end is the output: without its border. */
static void leave(const Group *g)
{
    const Stage *s = g->s;
    const int64_t all = frame_pixels(g, BUFFER_STATE), line = s->width * s->channels;
    const float *state = buffer(g, BUFFER_STATE);
#pragma omp parallel for schedule(static) num_threads(g->threads) if (g->threads > 1)
    for (int64_t i = 0; i < g->images * s->height; i++) {
        const int64_t n = i / s->height, place = n * all + (i % s->height + s->border) * s->pitch + s->border;
        memcpy(s->output + (g->first * s->height + i) * line, state + place * s->channels,
               (size_t)line * sizeof(float));
    }
}

static int run_group(const Group *g)
{
    const Stage *s = g->s;
    begin(g);
    for (int64_t k = 0; k < s->unit_count; k++) {
        list_pixels(g, 0);
        if (g->starts[0][g->images] == 0)
            break;
        for (int64_t reach = 1; reach <= s->reach && k; reach++)
            if (s->units[k].reaches >> reach & 1)
                list_pixels(g, reach);
        if (k)
            add_totals(g, -1);
        const int failed = run_branch(g, k);
        if (failed)
            return failed;
        add_totals(g, 1);
        halt(g, k);
    }
    if (s->sticks)
        leave(g);
    return 0;
}

/* The next array of a block, or NULL while the block is only measured. */
static void *take(char *block, size_t *used, int64_t count, size_t size)
{
    char *taken = block ? block + *used : NULL;
    *used += ((size_t)count * size + 63) & ~(size_t)63;
    return taken;
}

/* Cuts a block into a group's arrays; returns the bytes that they take. */
static size_t place_arrays(const Stage *s, Group *g, char *block)
{
    const int64_t rows = s->group * s->height * s->width, frames = s->group * s->buffers[BUFFER_STATE].pixels;
    size_t used = 0;
    for (int64_t reach = 0; reach <= s->reach; reach++) {
        g->lists[reach] = take(block, &used, rows + 1, sizeof(int32_t)); /* one slot past the last is written */
        g->starts[reach] = take(block, &used, s->group + 1, sizeof(int64_t));
    }
    g->flat = take(block, &used, rows + 1, sizeof(int32_t));
    g->from = take(block, &used, s->group * s->most_pixels, sizeof(int32_t));
    g->to = take(block, &used, s->group * s->most_pixels, sizeof(int32_t));
    g->weight = take(block, &used, rows, sizeof(float));
    g->remainder = take(block, &used, rows, sizeof(float));
    g->sums = take(block, &used, s->group * s->channels, sizeof(double));
    g->pooled = take(block, &used, s->group, sizeof(float));
    g->totals = take(block, &used, s->group * s->channels, sizeof(double));
    g->active = take(block, &used, frames, 1);
    g->wide = take(block, &used, frames, 1);
    g->rows = take(block, &used, frames, 1);
    return used;
}

/* Group i of `groups`, in the arrays and buffers of one worker. */
static int run_one(const Stage *s, int64_t i, int64_t groups, char *block, int64_t worker, int threads)
{
    const int64_t first = i * s->images / groups;
    Group g = {.s = s, .first = first, .images = (i + 1) * s->images / groups - first, .threads = threads};
    g.memory = s->memory + worker * s->memory_each;
    place_arrays(s, &g, block);
    return run_group(&g);
}

/* Groups side by side where there are enough of them, else one after the other with all threads in each: then outside of
 * any parallel region, since libgomp starts fresh threads for a nested one. */
int accel_run_stage(const Stage *s)
{
    require_stage(s);
    const int threads = accel_threads(s->threads);
    const int64_t groups = (s->images + s->group - 1) / s->group;
    const int team = groups >= 4 * threads ? threads : 1;
    Group sizes;
    const size_t each = place_arrays(s, &sizes, NULL);
    char *memory = malloc(each * (size_t)team);
    int failed = memory == NULL;
    if (failed)
        return -1;
    if (team == 1) {
        for (int64_t i = 0; i < groups && !failed; i++)
            failed = run_one(s, i, groups, memory, 0, threads);
        free(memory);
        return failed;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) reduction(| : failed)
    for (int64_t i = 0; i < groups; i++) {
        const int64_t worker = accel_worker();
        failed |= run_one(s, i, groups, memory + (size_t)worker * each, worker, 1);
    }
    free(memory);
    return failed;
}
