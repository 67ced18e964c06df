/* Forward convolution: cuts the rows into tiles, resolves the pointers each tile reads and writes, runs the kernels.
 *
 * An indirect convolution (Dukhan 2019, arXiv 1907.02129): no im2col buffer; a tile gets one pointer per (tap, row).
 * Every output element is summed by one tile in (tap, channel) order, so the result does not depend on the threads. */
#include <stdlib.h>

#include "engine.h"

enum {
    BLOCK_TILES = 32,        /* tiles that share one pass over a weight panel */
    POINTER_BYTES = 1 << 17, /* bound on a block's pointers; they should stay in the L2 cache */
    CHUNK_BYTES = 1 << 19 /* weights of one chunk of the reduction; the fastest of 128 to 512 KiB with 1 MiB of L2 */
};

static const int32_t one_target[1] = {0};

typedef struct {
    const Isa *isa;
    Panels cut;
    int64_t k_group, tile_rows, tiles, block_tiles, blocks, span; /* span: panels that one work item does */
    int64_t chunk_taps, chunk_run;
    int stream;
    size_t pointer_bytes, out_bytes, carry_bytes;
} Schedule;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows are dealt to tiles evenly: heights differ by at most one. */
static int64_t first_row(const Job *job, const Schedule *s, int64_t tile) { return tile * job->rows / s->tiles; }

/* Big blocks read the weights less often; a block count that the threads divide evenly matters more. */
static void choose_blocks(const Job *job, Schedule *s, int threads)
{
    const int64_t panels = s->cut.panels * (job->depthwise ? 1 : job->groups);
    const int64_t most = smaller(BLOCK_TILES, POINTER_BYTES / (job->taps * s->tile_rows * (int64_t)sizeof(char *)) + 1);
    double best = 0;
    s->block_tiles = most;
    for (int64_t size = most; size >= 1 && threads > 1; size = size > 4 ? size - 4 : size - 1) {
        const int64_t items = ceil_div(s->tiles, size) * panels;
        const double balance = (double)items / (double)(ceil_div(items, threads) * threads);
        if (balance > best + 0.03) {
            best = balance;
            s->block_tiles = size;
        }
        if (best > 0.95)
            break;
    }
    s->blocks = ceil_div(s->tiles, s->block_tiles);
    s->span = s->blocks >= 8 * threads || threads == 1 ? panels : 1;
}

static Schedule plan(const Job *job, int threads)
{
    Schedule s;
    s.k_group = job->depthwise ? job->out_channels : job->out_channels / job->groups;
    s.isa = isa_of(job->kind);
    s.cut = cut_panels(s.isa, s.k_group, MAX_VECTORS);
    s.tile_rows = s.isa->rows_for[s.cut.vectors];
    s.tiles = ceil_div(job->rows, s.tile_rows);
    choose_blocks(job, &s, threads);
    const int64_t width = s.cut.vectors * s.isa->lanes, tap_bytes = run_bytes(job->kind, job->run) * width;
    s.chunk_taps = tap_bytes < CHUNK_BYTES ? CHUNK_BYTES / tap_bytes : 1;
    s.chunk_run = tap_bytes <= 2 * CHUNK_BYTES ? job->run : ceil_div(job->run, ceil_div(tap_bytes, CHUNK_BYTES));
    if (s.chunk_run < job->run)
        s.chunk_run = ceil_div(s.chunk_run, lane_elements(job->kind)) * lane_elements(job->kind);
    const int fits = s.chunk_taps * 2 > job->taps && tap_bytes * job->taps < 2 * CHUNK_BYTES;
    if (job->depthwise || (fits && s.chunk_run == job->run))
        s.chunk_taps = job->taps;
    const int64_t maps = job->scatter && !job->dynamic && !job->framed ? job->rows / job->table_rows : 0;
    s.stream = !job->narrow &&
               accel_streams(job->out, maps * job->out_pixels * job->out_channels, job->out_channels / job->groups);
    s.pointer_bytes = (size_t)((s.block_tiles * job->taps + 1) * s.tile_rows) * sizeof(char *);
    s.out_bytes = (size_t)(s.block_tiles * s.tile_rows) * sizeof(RowOut);
    s.carry_bytes = (size_t)(s.block_tiles * s.tile_rows * width) * sizeof(float);
    return s;
}

/* From here on in_pitch, edge_run and edges_each count bytes: see with_distances_in_bytes.
 *
 * The rows of a tile away from the border: their taps lie at the same offsets from their first. */
typedef struct {
    const char *x[MAX_ROWS]; /* the image, or all of a compact input whose rows are of all images */
    int64_t pixel[MAX_ROWS];  /* the first tap, in x or in the map that source is of */
    const int32_t *row, *column;
} Inside;

/* A row that reads across the border, or around it. */
typedef struct {
    const char *x, *edges;
    int64_t place, pixel; /* in the tile; that its image starts at */
    const int32_t *row, *column;
} Border;

static const char *resolve(const Job *job, const char *x, int64_t pixel)
{
    const int64_t row = job->source ? job->source[pixel] : pixel;
    return row < 0 ? job->zero : x + row * job->in_pitch;
}

static void point_inside(const Job *job, const Inside *at, int64_t count, int64_t stride, const char **rows)
{
    const int64_t columns = job->tap_columns, lines = job->taps / columns, pitch = job->in_pitch, width = job->in_width;
    const int32_t *source = job->source, *row = at->row, *column = at->column;
    const char *bases[MAX_ROWS], *zero = job->zero;
    for (int64_t r = 0; r < count && !source; r++)
        bases[r] = at->x[r] + at->pixel[r] * pitch;
    for (int64_t i = 0; i < lines; i++)
        for (int64_t j = 0; j < columns; j++, rows += stride) {
            const int64_t offset = (row[i] - row[0]) * width + column[j] - column[0];
            for (int64_t r = 0; r < count && source; r++) {
                const int64_t from = source[at->pixel[r] + offset];
                rows[r] = from < 0 ? zero : at->x[r] + from * pitch;
            }
            for (int64_t r = 0; r < count && !source; r++)
                rows[r] = bases[r] + offset * pitch;
        }
}

static void point_border(const Job *job, const Border *at, int64_t stride, const char **rows)
{
    const int64_t columns = job->tap_columns, lines = job->taps / columns;
    rows += at->place;
    for (int64_t i = 0; i < lines; i++)
        for (int64_t j = 0; j < columns; j++, rows += stride) {
            const int64_t y = at->row[i], x = at->column[j];
            if (y >= 0 && x >= 0)
                *rows = resolve(job, at->x, at->pixel + y * job->in_width + x);
            else if (y >= 0 && job->edge_run)
                *rows = at->edges + (y * job->edge_columns - x) * job->edge_run;
            else
                *rows = job->zero;
        }
}

/* Rows of a static or a dynamic set. Positions mostly follow each other, so that divisions are rare. */
static void point_set(const Job *job, int64_t first, int64_t count, int64_t stride, const char **rows)
{
    const int64_t dynamic = job->dynamic, each = dynamic ? job->out_pixels : job->table_rows, width = job->out_width;
    const int64_t row_pitch = job->taps / job->tap_columns + 1, column_pitch = job->tap_columns + 1;
    const int32_t *positions = job->positions, *row_taps = job->row_taps, *column_taps = job->column_taps, *row = NULL;
    const char *x = NULL, *edges = NULL;
    int64_t image_first = 0, image_end = 0, image_pixel = 0, line_first = 0, line_end = 0, line_pixel = 0, borders = 0;
    int64_t inside = -1;
    Inside at;
    Border border[MAX_ROWS];
    for (int64_t r = 0; r < count; r++) {
        const int64_t k = dynamic ? positions[first + r] : first + r;
        if (k < image_first || k >= image_end) {
            const int64_t image = k / each;
            image_first = image * each;
            image_end = image_first + each;
            image_pixel = dynamic && job->source ? image * job->in_pixels : 0;
            x = (const char *)job->x + (image_pixel ? 0 : image * job->in_pixels * job->in_pitch);
            edges = (const char *)job->zero + image * job->edges_each;
        }
        const int64_t p = dynamic || !positions ? k - image_first : positions[k - image_first];
        if (!row_taps) {
            rows[r] = resolve(job, x, image_pixel + p);
            continue;
        }
        if (p < line_first || p >= line_end) {
            const int64_t line = p / width;
            line_first = line * width;
            line_end = line_first + width;
            row = row_taps + line * row_pitch;
            line_pixel = row[0] < 0 ? -1 : row[0] * job->in_width;
        }
        const int32_t *column = column_taps + (p - line_first) * column_pitch;
        if (line_pixel < 0 || column[0] < 0) {
            border[borders++] = (Border){x, edges, r, image_pixel, row + 1, column + 1};
            continue;
        }
        at.x[r] = x;
        at.pixel[r] = image_pixel + line_pixel + column[0];
        at.row = row + 1;
        at.column = column + 1;
        inside = r;
    }
    if (inside >= 0) {
        for (int64_t b = 0; b < borders; b++) { /* they get the pointers of another first, then their own */
            at.x[border[b].place] = at.x[inside];
            at.pixel[border[b].place] = at.pixel[inside];
        }
        point_inside(job, &at, count, stride, rows);
    }
    for (int64_t b = 0; b < borders; b++)
        point_border(job, border + b, stride, rows);
}

/* Framed: the border of the input is there in memory, so every tap lies at the same offset from the row's base. */
static void point_framed(const Job *job, int64_t first, int64_t count, int64_t stride, const char **rows)
{
    const char *bases[MAX_ROWS];
    for (int64_t r = 0; r < count; r++)
        bases[r] = (const char *)job->x + job->positions[first + r] * job->in_pitch;
    for (int64_t t = 0; t < job->taps; t++) {
        const char **to = rows + t * stride;
        const int64_t offset = job->offsets[t] * job->in_pitch;
        for (int64_t r = 0; r < count; r++)
            to[r] = bases[r] + offset;
    }
}

static void point(const Job *job, int64_t first, int64_t count, int64_t stride, const char **rows)
{
    if (job->framed)
        point_framed(job, first, count, stride, rows);
    else
        point_set(job, first, count, stride, rows);
}

static int64_t out_size(const Job *job) { return job->narrow ? element_size(job->kind) : (int64_t)sizeof(float); }

static int64_t residual_size(const Job *job)
{
    return job->narrow && is_of_bytes(job->kind) && !job->residual_floats ? 1 : (int64_t)sizeof(float);
}

/* Where row r goes, and from where its residual is read: the same rows of the residual. */
static RowOut destination(const Job *job, int64_t r)
{
    RowOut o = {NULL, NULL, one_target, 1};
    int64_t at = r;
    if (job->framed)
        at = job->targets[r];
    else if (job->dynamic && job->scatter)
        at = job->positions[r];
    else if (job->scatter && job->starts) {
        const int64_t p = r % job->table_rows;
        at = r / job->table_rows * job->out_pixels;
        o.targets = job->targets + job->starts[p];
        o.count = job->starts[p + 1] - job->starts[p];
    }
    at *= job->out_channels;
    o.base = (char *)job->out + at * out_size(job);
    o.residual = job->residual ? (const char *)job->residual + at * residual_size(job) : NULL;
    return o;
}

/* A work item: tiles [tile0, tile1) x panels [panel0, panel1), panels counted through all groups. Returns whether bytes were
 * made of what is not finite. */
static int run_item(const Job *job, const Schedule *s, int64_t tile0, int64_t tile1, int64_t panel0, int64_t panel1,
                    char *scratch)
{
    const char **rows = (const char **)scratch;
    RowOut *out = (RowOut *)(scratch + s->pointer_bytes);
    float *carry = (float *)(scratch + s->pointer_bytes + s->out_bytes);
    const int64_t stride = s->tile_rows, lanes = s->isa->lanes, start = first_row(job, s, tile0);
    int odd = 0;
    for (int64_t tile = tile0; tile < tile1; tile++) {
        const int64_t first = first_row(job, s, tile), count = first_row(job, s, tile + 1) - first;
        const char **here = rows + (tile - tile0) * job->taps * stride;
        point(job, first, count, stride, here);
        for (int64_t r = count; r < stride; r++) /* a taller tile before this one prefetches through them */
            here[r] = job->zero;
        for (int64_t r = 0; r < count; r++)
            out[first - start + r] = destination(job, first + r);
    }
    for (int64_t r = 0; r < stride; r++) /* the kernels prefetch through the pointers after the last */
        rows[(tile1 - tile0) * job->taps * stride + r] = job->zero;
    for (int64_t panel = panel0; panel < panel1; panel++) {
        const int64_t group = panel / s->cut.panels, vector0 = panel % s->cut.panels * s->cut.vectors;
        const int64_t vectors = smaller(s->cut.vectors, s->cut.all_vectors - vector0), width = vectors * lanes;
        const int64_t depth = panel_bytes(job->kind, job->taps, job->run),
                      column = group * s->k_group + vector0 * lanes;
        const int64_t run = run_bytes(job->kind, job->run), size = element_size(job->kind);
        const char *head = (const char *)job->packed + (group * s->cut.all_vectors + vector0) * lanes * depth;
        const char *weights = head + (depth - job->taps * run) * width;
        TileArgs g = {
            .stride = stride,
            .column = column,
            .pitch = job->out_channels,
            .activation = (int)job->activation,
            .channels = smaller(width, s->k_group - vector0 * lanes),
            .bias = job->bias ? job->bias + column : NULL,
            .multiplier = job->multiplier ? job->multiplier + column : NULL,
            .levels = job->narrow && is_of_bytes(job->kind) ? job : NULL,
            .to_bf16 = job->narrow && is_of_bf16(job->kind),
            .odd = &odd,
            .start = (const float *)head,
            .weight_pitch = run * width,
            .stream = s->stream,
        };
        const TileFn *kernel = job->depthwise ? s->isa->depthwise[vectors] : s->isa->tile[vectors];
        for (int64_t t = 0; t < job->taps; t += s->chunk_taps)
            for (int64_t c = 0; c < job->run; c += s->chunk_run) {
                g.taps = smaller(s->chunk_taps, job->taps - t);
                g.run = smaller(s->chunk_run, job->run - c);
                g.first = t == 0 && c == 0;
                g.last = t + g.taps == job->taps && c + g.run == job->run;
                g.shift = ((job->depthwise ? column : group * job->run) + c) * size;
                g.weights = weights + (t * run + run_bytes(job->kind, c)) * width;
                for (int64_t tile = tile0; tile < tile1; tile++) {
                    const int64_t first = first_row(job, s, tile), count = first_row(job, s, tile + 1) - first;
                    g.rows = rows + ((tile - tile0) * job->taps + t) * stride;
                    g.out = out + (first - start);
                    g.carry = carry + (tile - tile0) * stride * width;
                    kernel[count](&g);
                    if (g.last && s->isa->finish[vectors])
                        s->isa->finish[vectors](&g, count);
                }
            }
    }
    if (s->stream)
        accel_finish_streams();
    return odd;
}

/* What the rows of a framed job read and write, and where the taps of the others lie; see Job. */
static void require_rows(const Job *job)
{
    if (job->framed) {
        REQUIRE(job->table_rows == 1 && job->scatter && !job->dynamic && !job->source && job->offsets);
        REQUIRE(IS_ARRAY(job->positions, job->rows) && are_within(job->positions, job->rows, 0, INT32_MAX));
        REQUIRE(IS_ARRAY(job->targets, job->rows) && are_within(job->targets, job->rows, 0, INT32_MAX));
        return;
    }
    REQUIRE(job->in_pixels > 0 && job->out_pixels > 0 && job->in_width > 0 && job->out_width > 0);
    REQUIRE(job->tap_columns > 0 && job->taps % job->tap_columns == 0 && job->out_pixels % job->out_width == 0);
    REQUIRE(!job->row_taps == !job->column_taps && (job->row_taps || job->taps == 1));
    if (job->row_taps) {
        const int64_t lines = job->out_pixels / job->out_width * (job->taps / job->tap_columns + 1);
        const int64_t in_rows = job->source && !job->dynamic ? INT32_MAX : job->in_pixels / job->in_width;
        REQUIRE(are_within(job->row_taps, lines, -1, in_rows));
        REQUIRE(are_within(job->column_taps, job->out_width * (job->tap_columns + 1),
                           job->edge_columns ? -job->edge_columns : -1, job->in_width));
    }
    if (job->dynamic) {
        REQUIRE(job->table_rows == job->out_pixels && job->edge_run == 0);
        REQUIRE(IS_ARRAY(job->positions, job->rows) && are_within(job->positions, job->rows, 0, INT32_MAX));
        return;
    }
    REQUIRE(job->rows % job->table_rows == 0 && (job->positions || job->table_rows == job->out_pixels));
    if (job->positions)
        REQUIRE(are_within(job->positions, job->table_rows, 0, job->out_pixels));
    if (job->scatter && job->starts)
        REQUIRE(are_lists(job->starts, job->targets, job->table_rows, job->out_pixels));
    else
        REQUIRE(!job->scatter || !job->positions);
}

/* Where the elements lie, and what becomes of their sums. */
static void require_elements(const Job *job)
{
    const uintptr_t in = (uintptr_t)element_size(job->kind), out = (uintptr_t)out_size(job);
    REQUIRE(is_array(job->x, 1, in) && is_array(job->zero, 1, in) && is_array(job->packed, 1, sizeof(float)));
    REQUIRE(is_array(job->out, 1, out) && IS_ARRAY_OR_NULL(job->bias));
    REQUIRE((uintptr_t)job->residual % (uintptr_t)residual_size(job) == 0);
    if (job->kind == KIND_FLOATS) {
        REQUIRE(!job->narrow);
        return;
    }
    REQUIRE(job->edge_run == 0 && job->depthwise == (job->kind == KIND_BYTES || job->kind == KIND_BF16));
    if (is_of_bf16(job->kind))
        return;
    REQUIRE(IS_ARRAY(job->multiplier, 1));
    REQUIRE(job->run <= MOST_TERMS / job->taps);
    REQUIRE(!job->narrow || (job->low >= 0 && job->low <= job->high && job->high <= UINT8_MAX));
}

static void require_job(const Job *job)
{
    REQUIRE(job->taps > 0 && job->run > 0 && job->table_rows > 0 && job->out_channels > 0 && job->groups > 0);
    REQUIRE(job->out_channels % job->groups == 0 && is_activation(job->activation));
    REQUIRE(!job->depthwise || (job->run == 1 && job->groups == job->out_channels));
    REQUIRE(job->edge_run ? job->groups == 1 && job->run == job->edge_run && job->run % job->in_pitch == 0
                          : job->in_pitch == job->run * job->groups);
    require_elements(job);
    require_rows(job);
}

/* From elements of the input, which in_pitch and edges_each count. */
static Job with_distances_in_bytes(const Job *job)
{
    const int64_t size = element_size(job->kind);
    Job in_bytes = *job;
    in_bytes.in_pitch *= size;
    in_bytes.edge_run *= size;
    in_bytes.edges_each *= size;
    return in_bytes;
}

int accel_convolve(const Job *given)
{
    REQUIRE(given->rows >= 0 && is_kind(given->kind));
    if (given->rows == 0)
        return 0;
    require_job(given);
    const Job in_bytes = with_distances_in_bytes(given), *job = &in_bytes;
    const int threads = accel_threads(job->threads);
    const Schedule s = plan(job, threads);
    const int64_t panels = s.cut.panels * (job->depthwise ? 1 : job->groups);
    const int64_t spans = ceil_div(panels, s.span), items = s.blocks * spans;
    const size_t each = (s.pointer_bytes + s.out_bytes + s.carry_bytes + 63) & ~(size_t)63;
    const int team = (int)smaller(threads, items);
    char *scratch = malloc(each * (size_t)team);
    if (!scratch)
        return -1;
    int odd = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) reduction(| : odd) if (team > 1)
    for (int64_t item = 0; item < items; item++) {
        const int worker = accel_worker();
        const int64_t block = item / spans, span = item % spans;
        odd |= run_item(job, &s, block * s.tiles / s.blocks, (block + 1) * s.tiles / s.blocks, span * s.span,
                        smaller(panels, (span + 1) * s.span), scratch + each * (size_t)worker);
    }
    free(scratch);
    return odd;
}
