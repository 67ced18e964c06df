/* A recorded chain of convolutions on other tensors, group of images by group. A thread takes its groups through the whole
 * chain, so that what one call writes the next finds in this core's caches: call by call, ResNet-32 at a quarter of the
 * positions took 12.8 ms on 64 pictures and two cores, 8.5 ms in groups of 8.
 *
 * A single group runs call by call, the threads inside of each. The values are the same either way. */
#include <string.h>

#include "engine.h"

enum { X, RESIDUAL = 3, OUT }; /* fields of both kinds of job */

Job accel_job(const int64_t *a)
{
    return (Job){
        .x = POINTER(const float *, X), .packed = POINTER(const float *, 1), .bias = POINTER(const float *, 2),
        .residual = POINTER(const float *, RESIDUAL), .out = POINTER(float *, OUT), .zero = POINTER(const float *, 5),
        .table = POINTER(const int32_t *, 6), .positions = POINTER(const int32_t *, 7),
        .starts = POINTER(const int32_t *, 8), .targets = POINTER(const int32_t *, 9),
        .inverse = POINTER(const int32_t *, 10), .dynamic = a[11], .scatter = a[12], .rows = a[13],
        .table_rows = a[14], .in_pixels = a[15], .in_pitch = a[16], .taps = a[17], .run = a[18], .out_pixels = a[19],
        .out_channels = a[20], .groups = a[21], .depthwise = a[22], .activation = a[23], .edge_run = a[24],
        .edges_each = a[25], .threads = a[26],
    };
}

FootprintJob accel_footprint_job(const int64_t *a)
{
    return (FootprintJob){
        .x = POINTER(const float *, X), .weights = POINTER(const float *, 1), .bias = POINTER(const float *, 2),
        .residual = POINTER(const float *, RESIDUAL), .out = POINTER(float *, OUT), .bases = POINTER(const int32_t *, 5),
        .starts = POINTER(const int32_t *, 6), .targets = POINTER(const int32_t *, 7),
        .runs = POINTER(const FootprintRun *, 8), .bands = POINTER(const int32_t *, 9),
        .footprints = POINTER(const int32_t *, 10), .steps = POINTER(const Step *, 11), .images = a[12],
        .band_count = a[13], .in_pixels = a[14], .out_pixels = a[15], .in_channels = a[16], .channels = a[17],
        .taps = a[18], .activation = a[19], .filled = a[20], .plain = a[21], .narrow = a[22], .threads = a[23],
    };
}

static int64_t place(const Replay *r, int64_t buffer, int64_t group, const float *memory)
{
    const ReplayBuffer b = r->buffers[buffer];
    return (int64_t)(intptr_t)(b.outside < 0 ? memory + b.floats : (const float *)r->outside[b.outside] + group * b.floats);
}

static int run_call(const Replay *r, const RecordedCall *call, int64_t group, const float *memory, int64_t threads)
{
    int64_t fields[JOB_FIELDS];
    memcpy(fields, call->fields, sizeof fields);
    fields[X] = place(r, call->x, group, memory);
    fields[RESIDUAL] = call->residual < 0 ? 0 : place(r, call->residual, group, memory);
    fields[OUT] = place(r, call->out, group, memory);
    if (call->by_footprints) {
        FootprintJob job = accel_footprint_job(fields);
        job.threads = threads;
        accel_convolve_footprints(&job);
        return 0;
    }
    Job job = accel_job(fields);
    job.threads = threads;
    return accel_convolve(&job);
}

static int run_group(const Replay *r, int64_t group, const float *memory, int64_t threads)
{
    int failed = 0;
    for (int64_t i = 0; i < r->call_count && !failed; i++)
        failed = run_call(r, r->calls + i, group, memory, threads);
    return failed;
}

/* Returns 0, or -1 when memory ran out. */
int accel_replay(const Replay *r)
{
    const int threads = accel_threads(r->threads), team = r->groups < threads ? (int)r->groups : threads;
    int failed = 0;
    if (r->groups == 1) /* outside of any parallel region: threads of a nested one are started anew every time */
        return run_group(r, 0, r->memory, threads);
/* static: the next chain finds its images with the same thread */
#pragma omp parallel for schedule(static) num_threads(team) reduction(| : failed)
    for (int64_t group = 0; group < r->groups; group++) {
        const int worker = accel_worker();
        failed |= run_group(r, group, r->memory + worker * r->memory_each, 1);
    }
    return failed;
}
