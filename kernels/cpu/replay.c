/* A recorded chain of convolutions on other tensors, group of images by group. A thread takes its groups through the whole
 * chain, so that what one call writes the next finds in this core's caches: call by call, ResNet-32 at a quarter of the
 * positions took 12.8 ms on 64 pictures and two cores, 8.5 ms in groups of 8.
 *
 * A single group runs call by call, the threads inside of each. The values are the same either way. */
#include "engine.h"

static char *place(const Replay *r, char *const *outside, int64_t buffer, int64_t group, char *memory)
{
    const ReplayBuffer b = r->buffers[buffer];
    return b.outside < 0 ? memory + b.bytes : outside[b.outside] + group * b.bytes;
}

#define FILLED_IN(job, input) now.job.input = x, now.job.out = out, now.job.threads = threads

static int run_call(const Replay *r, char *const *outside, const ReplayCall *recorded, int64_t group, char *memory,
                    int64_t threads)
{
    ReplayCall now = *recorded;
    const void *x = place(r, outside, now.call.x, group, memory);
    const void *residual = now.call.residual < 0 ? NULL : place(r, outside, now.call.residual, group, memory);
    void *out = place(r, outside, now.call.out, group, memory);
    switch (now.call.kind) {
    case CALL_FOOTPRINTS:
        now.footprints.x = x, now.footprints.threads = threads;
        if (now.footprints.added_scale > 0) /* a residual in bytes */
            now.footprints.added = residual;
        else
            now.footprints.residual = residual;
        if (now.footprints.inverse > 0) /* in bytes */
            now.footprints.bytes = out;
        else
            now.footprints.out = out;
        return accel_convolve_footprints(&now.footprints);
    case CALL_QUANTIZE:
        return FILLED_IN(quantizing, x), accel_quantize(&now.quantizing);
    case CALL_ROUND_BF16:
        return FILLED_IN(rounding, x), accel_round_bf16(&now.rounding), 0;
    case CALL_MAX_ROWS:
        return FILLED_IN(max, rows), accel_max_rows(&now.max), 0;
    case CALL_FRAME:
        return FILLED_IN(frame, x), accel_frame(&now.frame), 0;
    case CALL_PLACE:
        now.placing.other = residual;
        return FILLED_IN(placing, rows), accel_place(&now.placing), 0;
    case CALL_MEAN_ROWS:
        return FILLED_IN(mean, rows), accel_mean_rows(&now.mean), 0;
    default:
        if (now.call.edges >= 0)
            now.job.zero = place(r, outside, now.call.edges, group, memory);
        now.job.x = x, now.job.residual = residual, now.job.out = out, now.job.threads = threads;
        return accel_convolve(&now.job);
    }
}

static int run_group(const Replay *r, char *const *outside, int64_t group, char *memory, int64_t threads)
{
    const ReplayCall *calls = r->calls;
    int said = 0;
    for (int64_t i = 0; i < r->call_count && !said; i++)
        said = run_call(r, outside, calls + i, group, memory, threads);
    return said;
}

static int is_buffer(const Replay *r, int64_t index) { return index >= 0 && index < r->buffer_count; }

int accel_replay(const Replay *r, char *const *outside)
{
    REQUIRE(r->call_count >= 0 && r->buffer_count >= 0 && r->groups > 0 && r->memory_each >= 0);
    REQUIRE(is_array(r->calls, r->call_count, sizeof(int64_t)) && IS_ARRAY(r->buffers, r->buffer_count) &&
            IS_ARRAY_OR_NULL((double *)r->memory));
    for (int64_t i = 0; ACCEL_CHECKED && i < r->call_count; i++) {
        const RecordedCall *call = &((const ReplayCall *)r->calls)[i].call;
        REQUIRE(is_buffer(r, call->x) && is_buffer(r, call->out));
        REQUIRE(call->residual == -1 || is_buffer(r, call->residual));
        REQUIRE(call->edges == -1 || (call->kind == CALL_CONVOLVE && is_buffer(r, call->edges)));
        REQUIRE(call->kind >= CALL_CONVOLVE && call->kind <= CALL_ROUND_BF16);
    }
    for (int64_t i = 0; ACCEL_CHECKED && i < r->buffer_count; i++) {
        REQUIRE(r->buffers[i].outside >= -1 && r->buffers[i].outside < r->outside_count && r->buffers[i].bytes >= 0);
        REQUIRE(r->buffers[i].outside >= 0 ? outside[r->buffers[i].outside] != NULL
                                           : r->memory && r->buffers[i].bytes < r->memory_each);
    }
    const int threads = accel_threads(r->threads), team = r->groups < threads ? (int)r->groups : threads;
    int said = 0;
    if (r->groups == 1) /* outside of any parallel region: threads of a nested one are started anew every time */
        return run_group(r, outside, 0, r->memory, threads);
/* static: the next chain finds its images with the same thread */
#pragma omp parallel for schedule(static) num_threads(team) reduction(| : said)
    for (int64_t group = 0; group < r->groups; group++) {
        const int worker = accel_worker();
        said |= run_group(r, outside, group, (char *)r->memory + worker * r->memory_each, 1);
    }
    return said; /* -1 with whatever else is -1 */
}
