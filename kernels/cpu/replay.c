/* A recorded chain of convolutions on other tensors, group of images by group. A thread takes its groups through the whole
 * chain, so that what one call writes the next finds in this core's caches: call by call, ResNet-32 at a quarter of the
 * positions took 12.8 ms on 64 pictures and two cores, 8.5 ms in groups of 8.
 *
 * A single group runs call by call, the threads inside of each. The values are the same either way. */
#include "engine.h"

static float *place(const Replay *r, const float *const *outside, int64_t buffer, int64_t group, float *memory)
{
    const ReplayBuffer b = r->buffers[buffer];
    return b.outside < 0 ? memory + b.floats : (float *)outside[b.outside] + group * b.floats;
}

static int run_call(const Replay *r, const float *const *outside, const ReplayCall *recorded, int64_t group,
                    float *memory, int64_t threads)
{
    const RecordedCall *call = &recorded->call;
    const float *x = place(r, outside, call->x, group, memory);
    const float *residual = call->residual < 0 ? NULL : place(r, outside, call->residual, group, memory);
    float *out = place(r, outside, call->out, group, memory);
    if (call->by_footprints) {
        FootprintJob job = recorded->footprints;
        job.x = x, job.residual = residual, job.out = out, job.threads = threads;
        (void)accel_convolve_footprints(&job); /* in floats */
        return 0;
    }
    Job job = recorded->job;
    job.x = x, job.residual = residual, job.out = out, job.threads = threads;
    return accel_convolve(&job);
}

static int run_group(const Replay *r, const float *const *outside, int64_t group, float *memory, int64_t threads)
{
    const ReplayCall *calls = r->calls;
    int failed = 0;
    for (int64_t i = 0; i < r->call_count && !failed; i++)
        failed = run_call(r, outside, calls + i, group, memory, threads);
    return failed;
}

static int is_buffer(const Replay *r, int64_t index) { return index >= 0 && index < r->buffer_count; }

int accel_replay(const Replay *r, const float *const *outside)
{
    REQUIRE(r->call_count >= 0 && r->buffer_count >= 0 && r->groups > 0 && r->memory_each >= 0);
    REQUIRE(is_array(r->calls, r->call_count, sizeof(int64_t)) && IS_ARRAY(r->buffers, r->buffer_count) &&
            IS_ARRAY_OR_NULL(r->memory));
    for (int64_t i = 0; ACCEL_CHECKED && i < r->call_count; i++) {
        const RecordedCall *call = &((const ReplayCall *)r->calls)[i].call;
        REQUIRE(is_buffer(r, call->x) && is_buffer(r, call->out));
        REQUIRE(call->residual == -1 || is_buffer(r, call->residual));
    }
    for (int64_t i = 0; ACCEL_CHECKED && i < r->buffer_count; i++) {
        REQUIRE(r->buffers[i].outside >= -1 && r->buffers[i].outside < r->outside_count && r->buffers[i].floats >= 0);
        REQUIRE(r->buffers[i].outside >= 0 ? outside[r->buffers[i].outside] != NULL
                                           : r->memory && r->buffers[i].floats < r->memory_each);
    }
    const int threads = accel_threads(r->threads), team = r->groups < threads ? (int)r->groups : threads;
    int failed = 0;
    if (r->groups == 1) /* outside of any parallel region: threads of a nested one are started anew every time */
        return run_group(r, outside, 0, r->memory, threads);
/* static: the next chain finds its images with the same thread */
#pragma omp parallel for schedule(static) num_threads(team) reduction(| : failed)
    for (int64_t group = 0; group < r->groups; group++) {
        const int worker = accel_worker();
        failed |= run_group(r, outside, group, r->memory + worker * r->memory_each, 1);
    }
    return failed;
}
