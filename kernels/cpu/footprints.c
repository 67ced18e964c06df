/* Convolutions at static sets whose rows have few footprints: depthwise ones, narrow ones (one vector of output channels),
 * and fitted interpolation, which is a depthwise one with weights by class. Away from the border every row reads its taps
 * at the same offsets: such rows need one address each instead of one for every tap, and a row at the border skips the
 * taps that lie outside.
 *
 * Every output element is summed by one tile in tap order, so the result does not depend on the threads. */
#include "engine.h"

enum {
    FEWEST_VALUES = 1 << 14, /* below this a team of threads costs more than it saves */
    /* Few, since neighbouring bands read the same pixels: 32 channels at 112x112 and batch 8, in bands of 256 rows, took
     * 0.56 ms in 4 shares a thread, 0.73 ms in 16 and 0.98 ms band by band. */
    SHARES_PER_THREAD = 4
};

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* `rows` rows from those of g on: tiles of full height, then one of the rest. */
static void run_rows(FootprintArgs g, int64_t rows, const FootprintFn *kernels, int64_t tall)
{
    g.rows = rows - rows % tall;
    kernels[tall](&g);
    g.bases += g.rows;
    if (g.starts)
        g.starts += g.rows;
    else
        g.targets += g.rows;
    g.rows = rows % tall;
    if (g.rows)
        kernels[g.rows](&g);
}

/* The runs of a band of one image, channels of one panel; whether a byte stands for no finite number. */
static int run_panel(const FootprintJob *job, int64_t image, int64_t band, const Panels *cut, int64_t panel, int stream)
{
    const int64_t vector0 = panel * cut->vectors, vectors = smaller(cut->vectors, cut->all_vectors - vector0);
    const int64_t width = vectors * accel_isa->lanes, column = vector0 * accel_isa->lanes;
    const int64_t depth = job->taps * (job->narrow ? job->in_channels : 1);
    const int64_t out0 = image * job->out_pixels * job->channels + column;
    const FootprintFn *kernels = job->bytes ? accel_isa->footprint_bytes[vectors] : accel_isa->footprint[vectors];
    int odd = 0;
    FootprintArgs g = {
        .x = job->x + image * job->in_pixels * job->in_channels + (job->narrow ? 0 : column),
        .out = job->bytes ? NULL : job->out + out0,
        .bytes = job->bytes ? job->bytes + out0 : NULL,
        .added = job->added ? job->added + out0 : NULL,
        .inverse = (float)job->inverse,
        .added_scale = (float)job->added_scale,
        .zero = (int32_t)job->zero_point,
        .added_zero = (int32_t)job->added_zero,
        .odd = &odd,
        .residual = job->residual ? job->residual + out0 : NULL,
        .weights = job->weights + (job->plain ? column : column * depth),
        .pitch = job->channels,
        .weight_pitch = job->plain ? job->channels : width * depth / job->taps,
        .in_pitch = job->in_channels,
        .channels = smaller(width, job->channels - column),
        .activation = (int)job->activation,
        .stream = stream,
    };
    for (const FootprintRun *run = job->runs + job->bands[band]; run < job->runs + job->bands[band + 1]; run++) {
        g.copies = run->kind < 0;
        g.bias = g.copies || !job->bias ? NULL : job->bias + run->kind * job->channels + column;
        g.steps = job->steps + job->footprints[run->footprint];
        g.step_count = g.copies ? 0 : job->footprints[run->footprint + 1] - job->footprints[run->footprint];
        g.bases = job->bases + run->first;
        g.starts = job->starts ? job->starts + run->first : NULL;
        g.targets = job->starts ? job->targets : job->targets + run->first;
        if (job->narrow)
            run_rows(g, run->rows, accel_isa->narrow, accel_isa->rows_for[1]);
        else
            run_rows(g, run->rows, kernels, accel_isa->footprint_rows);
    }
    return odd;
}

/* Runs, and where their rows read: bases and steps within an image, taps among those of the run's class. */
static void require_run(const FootprintJob *job, const FootprintRun *run)
{
    REQUIRE(run->first >= 0 && run->rows > 0 && run->kind >= -1 && run->footprint >= 0);
    REQUIRE(are_within(job->bases + run->first, run->rows, 0, job->in_pixels));
    if (job->starts)
        REQUIRE(are_within(job->targets + job->starts[run->first],
                           job->starts[run->first + run->rows] - job->starts[run->first], 0, job->out_pixels));
    else
        REQUIRE(are_within(job->targets + run->first, run->rows, 0, job->out_pixels));
    const Step *end = job->steps + job->footprints[run->footprint + 1];
    for (const Step *step = job->steps + job->footprints[run->footprint]; run->kind >= 0 && step < end; step++) {
        REQUIRE(step->taps == 1 || (job->narrow && step->taps > 1));
        REQUIRE(step->tap >= run->kind * job->taps && step->tap + step->taps <= (run->kind + 1) * job->taps);
        REQUIRE(are_within(job->bases + run->first, run->rows, -step->offset,
                           job->in_pixels - step->offset - step->taps + 1));
    }
}

static void require_footprints(const FootprintJob *job)
{
    REQUIRE(job->in_channels > 0 && job->channels > 0 && job->in_pixels > 0 && job->out_pixels > 0);
    REQUIRE(job->plain ? job->taps >= 0 : job->taps > 0);
    REQUIRE((job->narrow ? !job->plain : job->in_channels == job->channels) && is_activation(job->activation));
    REQUIRE(IS_ARRAY(job->x, 1) && IS_ARRAY_OR_NULL(job->weights) && (job->bytes || IS_ARRAY(job->out, 1)));
    REQUIRE(!job->bytes || (!job->narrow && job->inverse > 0));
    REQUIRE(!job->added || (job->bytes && !job->residual && job->added_zero >= 0 && job->added_zero <= UINT8_MAX));
    REQUIRE(!job->bytes || (job->zero_point >= 0 && job->zero_point <= 255));
    REQUIRE(IS_ARRAY_OR_NULL(job->bias) && IS_ARRAY_OR_NULL(job->residual) && IS_ARRAY_OR_NULL(job->starts));
    REQUIRE(IS_ARRAY(job->bands, job->band_count + 1) && job->bands[0] == 0);
    REQUIRE(job->bases && job->targets && job->runs && job->footprints);
    for (int64_t run = 0; ACCEL_CHECKED && run < job->bands[job->band_count]; run++)
        require_run(job, job->runs + run);
}

int accel_convolve_footprints(const FootprintJob *job)
{
    const int64_t values = job->images * job->out_pixels * job->channels, lists = job->images * job->band_count;
    REQUIRE(job->images >= 0 && job->band_count >= 0);
    if (!lists)
        return 0;
    require_footprints(job);
    const Panels cut = cut_panels(accel_isa, job->channels, job->narrow ? 1 : MAX_VECTORS);
    const int threads = values < FEWEST_VALUES ? 1 : accel_threads(job->threads);
    const int stream = job->filled && !job->bytes && accel_streams(job->out, values, job->channels);
    const int64_t shares = SHARES_PER_THREAD * threads;
    const int64_t spans = threads == 1 ? 1 : smaller(ceil_div(shares, lists), cut.panels), items = lists * spans;
    const int64_t chunk = ceil_div(items, shares);
    const int team = (int)smaller(threads, items);
    int odd = 0;
#pragma omp parallel for schedule(dynamic, chunk) num_threads(team) reduction(| : odd) if (team > 1)
    for (int64_t item = 0; item < items; item++) {
        const int64_t span = item % spans, list = item / spans;
        for (int64_t panel = span * cut.panels / spans; panel < (span + 1) * cut.panels / spans; panel++)
            odd |= run_panel(job, list / job->band_count, list % job->band_count, &cut, panel, stream);
        if (stream)
            accel_finish_streams();
    }
    return odd;
}

/* Rows with one footprint through all panels of a narrow convolution; g names everything but the panel. */
void accel_convolve_narrow(FootprintArgs g, int64_t rows, int64_t taps, int64_t channels, int threads)
{
    REQUIRE(rows >= 0 && taps > 0 && channels > 0 && threads > 0 && !g.starts && !g.copies);
    REQUIRE(g.x && g.weights && g.out && g.in_pitch > 0 && g.pitch == channels && is_activation(g.activation));
    REQUIRE(IS_ARRAY(g.bases, rows) && IS_ARRAY(g.targets, rows) && IS_ARRAY(g.steps, g.step_count));
    REQUIRE(are_within(g.bases, rows, 0, INT32_MAX) && are_within(g.targets, rows, 0, INT32_MAX));
    const Panels cut = cut_panels(accel_isa, channels, 1);
    const int64_t tall = accel_isa->rows_for[1], most = accel_isa->lanes, tiles = ceil_div(rows, tall);
    const int64_t shares = smaller(tiles, threads == 1 ? 1 : SHARES_PER_THREAD * threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && shares > 1)
    for (int64_t share = 0; share < shares; share++) {
        const int64_t first = share * tiles / shares * tall, end = smaller((share + 1) * tiles / shares * tall, rows);
        for (int64_t column = 0; column < cut.panels * most; column += most) {
            FootprintArgs here = g;
            here.bases += first;
            here.targets += first;
            here.weights += column * taps * g.in_pitch;
            here.weight_pitch = g.in_pitch * most;
            here.bias = g.bias ? g.bias + column : NULL;
            here.residual = g.residual ? g.residual + column : NULL;
            here.out += column;
            here.channels = smaller(most, channels - column);
            run_rows(here, end - first, accel_isa->narrow, tall);
        }
    }
}
