/* Compact rows to dense maps by the nearest map, the adjoint (a segment sum in a fixed order, without atomics), and
 * max pooling of such maps without making them; numbers to bytes; how large maps are written. */
#include <string.h>

#include "engine.h"

enum { STREAM_BYTES = 1 << 22 }; /* maps from here on are written past the caches */

/* Filling a map writes every line once: an ordinary store reads the line before and pushes others out of the caches. At
 * batch 8 and a quarter of the positions, 64 to 256 channels at 56x56 took 1.5 ms to fill in, streamed 0.2 ms. From
 * 16 MiB on only, 128 to 512 channels at 28x28 reached 0.56 of the theoretical speed-up there. */
int accel_streams(const float *out, int64_t values, int64_t channels)
{
    const int64_t vector = accel_isa->lanes * (int64_t)sizeof(float);
    return values * (int64_t)sizeof(float) >= STREAM_BYTES && channels % accel_isa->lanes == 0 &&
           (uintptr_t)out % (uintptr_t)vector == 0;
}

void accel_finish_streams(void)
{
#if defined(__x86_64__)
    __builtin_ia32_sfence(); /* streamed stores are ordered with nothing else */
#endif
}

static void require_fill(const Fill *f)
{
    REQUIRE(f->images >= 0 && f->count >= 0 && f->pixels >= 0 && f->channels >= 0);
    REQUIRE(IS_ARRAY(f->source, f->images * f->count * f->pixels * f->channels));
    REQUIRE(IS_ARRAY(f->result, f->images * f->count * f->pixels * f->channels));
}

void accel_interpolate(const Fill *f)
{
    require_fill(f);
    REQUIRE(IS_ARRAY(f->nearest, f->pixels) && (f->images == 0 || are_within(f->nearest, f->pixels, 0, f->count)));
    if (!f->channels)
        return; /* the arrays may be null then, which memcpy and memset must not be given even for nothing */
    const int threads = accel_threads(f->threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < f->images * f->pixels; i++) {
        const int64_t row = i / f->pixels * f->count + f->nearest[i % f->pixels];
        memcpy(f->result + i * f->channels, f->source + row * f->channels, (size_t)f->channels * sizeof(float));
    }
}

void accel_interpolate_backward(const Fill *f)
{
    require_fill(f);
    REQUIRE(are_lists(f->starts, f->targets, f->count, f->pixels));
    if (!f->channels)
        return; /* the arrays may be null then, which memcpy and memset must not be given even for nothing */
    const int threads = accel_threads(f->threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < f->images * f->count; i++) {
        const int64_t image = i / f->count, row = i % f->count;
        float *to = f->result + i * f->channels;
        memset(to, 0, (size_t)f->channels * sizeof(float));
        for (int32_t j = f->starts[row]; j < f->starts[row + 1]; j++) {
            const float *from = f->source + (image * f->pixels + f->targets[j]) * f->channels;
            for (int64_t c = 0; c < f->channels; c++)
                to[c] += from[c];
        }
    }
}

static void max_of_floats(const MaxJob *job, int64_t image, const int32_t *tap, int64_t result)
{
    const float *rows = (const float *)job->rows + image * job->count * job->channels;
    float *restrict to = (float *)job->out + result * job->channels;
    memcpy(to, rows + tap[0] * job->channels, (size_t)job->channels * sizeof(float));
    for (int64_t t = 1; t < job->tap_count; t++) {
        const float *restrict from = rows + tap[t * job->windows] * job->channels;
        for (int64_t c = 0; c < job->channels; c++)
            to[c] = from[c] > to[c] || from[c] != from[c] ? from[c] : to[c]; /* a NaN wins, as torch's does */
    }
}

/* Spans of one length, whose maximum stays in registers: 64 channels of 120x160 windows of 4 rows took 1.8 ms row by row,
 * 0.33 ms so. Floats are slower that way. */
static void max_of_bytes(const MaxJob *job, int64_t image, const int32_t *tap, int64_t result)
{
    enum { SPAN = 64 };
    const uint8_t *rows = (const uint8_t *)job->rows + image * job->count * job->channels;
    uint8_t *to = (uint8_t *)job->out + result * job->channels;
    for (int64_t c = 0; c < job->channels; c += SPAN) {
        const int64_t width = job->channels - c < SPAN ? job->channels - c : SPAN;
        uint8_t most[SPAN] = {0};
        for (int64_t t = 0; t < job->tap_count; t++) {
            const uint8_t *from = rows + tap[t * job->windows] * job->channels + c;
            if (width == SPAN)
                for (int i = 0; i < SPAN; i++)
                    most[i] = from[i] > most[i] ? from[i] : most[i];
            else
                for (int64_t i = 0; i < width; i++)
                    most[i] = from[i] > most[i] ? from[i] : most[i];
        }
        memcpy(to + c, most, (size_t)width);
    }
}

void accel_max_rows(const MaxJob *job)
{
    REQUIRE(job->images >= 0 && job->count >= 0 && job->windows >= 0 && job->channels >= 0 && job->tap_count > 0);
    const int64_t values = job->images * job->windows * job->channels;
    REQUIRE(job->narrow ? IS_ARRAY((const uint8_t *)job->rows, values) : IS_ARRAY((const float *)job->rows, values));
    REQUIRE(job->narrow ? IS_ARRAY((uint8_t *)job->out, values) : IS_ARRAY((float *)job->out, values));
    REQUIRE(IS_ARRAY(job->taps, job->tap_count * job->windows));
    REQUIRE(job->images == 0 || are_within(job->taps, job->tap_count * job->windows, 0, job->count));
    if (!job->channels)
        return; /* the arrays may be null then, which memcpy must not be given even for nothing */
    const int threads = accel_threads(job->threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && values > 1 << 14)
    for (int64_t i = 0; i < job->images * job->windows; i++) {
        const int64_t image = i / job->windows;
        (job->narrow ? max_of_bytes : max_of_floats)(job, image, job->taps + i % job->windows, i);
    }
}

int accel_quantize(const Quantizing *job)
{
    REQUIRE(IS_ARRAY(job->x, job->count) && IS_ARRAY(job->out, job->count));
    REQUIRE(job->zero_point >= 0 && job->zero_point <= 255 && job->inverse > 0);
    enum { CHUNK = 1 << 14 }; /* 80 KB in and out: below, threads cost more than they save */
    const int threads = accel_threads(job->threads);
    const int64_t chunks = (job->count + CHUNK - 1) / CHUNK;
    int odd = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : odd) if (threads > 1 && chunks > 1)
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t at = i * CHUNK, count = job->count - at < CHUNK ? job->count - at : CHUNK;
        odd |= !accel_isa_bytes->quantize(job->x + at, job->out + at, count, (float)job->inverse,
                                          (int32_t)job->zero_point);
    }
    return odd;
}
