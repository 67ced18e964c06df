/* Depthwise convolutions at static sets. Away from the border every row reads its taps at the same offsets: such rows
 * need one address each instead of one for every tap, and a row at the border skips the taps that lie outside.
 *
 * Every output element is summed by one tile in tap order, so the result does not depend on the threads. */
#include "engine.h"

/* Few, since neighbouring bands read the same pixels: 32 channels at 112x112 and batch 8 took 0.56 ms in 4 shares a
 * thread, 0.73 ms in 16 and 0.98 ms band by band. */
enum { SHARES_PER_THREAD = 4 };

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The runs of a band, channels of one panel. */
static void run_panel(const DepthwiseJob *job, int64_t image, int64_t band, const Panels *cut, int64_t panel, int stream)
{
    const int64_t vector0 = panel * cut->vectors, vectors = smaller(cut->vectors, cut->all_vectors - vector0);
    const int64_t lanes = accel_isa->lanes, column = vector0 * lanes, tall = accel_isa->footprint_rows;
    const int64_t out0 = image * job->out_pixels * job->channels + column;
    FootprintArgs g = {
        .x = job->x + image * job->in_pixels * job->channels + column, .out = job->out + out0,
        .residual = job->residual ? job->residual + out0 : NULL, .bias = job->bias ? job->bias + column : NULL,
        .weights = job->packed + column * job->taps, .weight_pitch = vectors * lanes, .pitch = job->channels,
        .channels = smaller(vectors * lanes, job->channels - column), .activation = (int)job->activation,
        .stream = stream,
    };
    for (const FootprintRun *run = job->runs + job->bands[band]; run < job->runs + job->bands[band + 1]; run++) {
        g.steps = job->steps + job->kinds[run->kind];
        g.taps = job->kinds[run->kind + 1] - job->kinds[run->kind];
        const int64_t whole = run->rows / tall * tall;
        for (int64_t done = 0; done < run->rows; done += g.rows) {
            const int64_t first = run->first + done, height = done < whole ? tall : run->rows - whole;
            g.rows = done < whole ? whole : height;
            g.bases = job->bases + first;
            g.starts = job->starts ? job->starts + first : NULL;
            g.targets = job->starts ? job->targets : job->targets + first;
            accel_isa->footprint[vectors][height](&g);
        }
    }
}

void accel_depthwise(const DepthwiseJob *job)
{
    const Panels cut = cut_panels(job->channels, MAX_VECTORS);
    const int64_t values = job->images * job->out_pixels * job->channels;
    accel_use_huge_pages(job->out, values * (int64_t)sizeof(float));
    const int threads = accel_threads(job->threads);
    const int stream = job->filled && accel_streams(job->out, values, job->channels);
    const int64_t lists = job->images * job->band_count;
    if (!lists)
        return;
    const int64_t shares = SHARES_PER_THREAD * threads;
    const int64_t spans = threads == 1 ? 1 : smaller(ceil_div(shares, lists), cut.panels), items = lists * spans;
    const int64_t chunk = ceil_div(items, shares);
    const int team = (int)smaller(threads, items);
#pragma omp parallel for schedule(dynamic, chunk) num_threads(team) if (team > 1)
    for (int64_t item = 0; item < items; item++) {
        const int64_t span = item % spans, list = item / spans;
        for (int64_t panel = span * cut.panels / spans; panel < (span + 1) * cut.panels / spans; panel++)
            run_panel(job, list / job->band_count, list % job->band_count, &cut, panel, stream);
        if (stream)
            accel_finish_streams();
    }
}
