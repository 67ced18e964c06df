/* Compact rows to dense maps by the nearest map, the adjoint (a segment sum in a fixed order, without atomics), and
 * max pooling of such maps without making them; maps side by side, and sums of two; numbers to bytes; how large maps are
 * written. */
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

/* To the nearest integer, halves to even: the last bits of a sum that has no others. */
static inline int32_t nearest_integer(float x)
{
    union {
        float value;
        int32_t bits;
    } sum = {.value = x + 12582912.0f}; /* 1.5 * 2^23 */
    return sum.bits - 0x4B400000;
}

static void mean_of_bytes(const MeanJob *job, int64_t image, const int32_t *tap, float share, uint8_t *to)
{
    enum { SPAN = 64, LARGEST = 1 << 21 };
    const uint8_t *rows = job->rows + image * job->count * job->channels;
    const int32_t zero = (int32_t)job->zero_point;
    for (int64_t c = 0; c < job->channels; c += SPAN) {
        const int64_t width = job->channels - c < SPAN ? job->channels - c : SPAN;
        int32_t sum[SPAN] = {0};
        for (int64_t t = 0; t < job->tap_count; t++) {
            const int32_t row = tap[t * job->windows];
            if (row < 0)
                continue;
            const uint8_t *from = rows + row * job->channels + c;
            for (int64_t i = 0; i < width; i++)
                sum[i] += from[i] - zero;
        }
        for (int64_t i = 0; i < width; i++) {
            float mean = (float)sum[i] * share;
            mean = mean < -LARGEST ? -LARGEST : mean > LARGEST ? LARGEST : mean;
            const int32_t byte = nearest_integer(mean) + zero;
            to[c + i] = (uint8_t)(byte < 0 ? 0 : byte > UINT8_MAX ? UINT8_MAX : byte);
        }
    }
}

/* The same with a weight for every tap, of which one that is no row counts nothing. */
static void blend_of_bytes(const MeanJob *job, int64_t image, int64_t window, uint8_t *to)
{
    const int32_t zero = (int32_t)job->zero_point;
    const uint8_t *rows = job->rows + image * job->count * job->channels;
    Term terms[MOST_BLENDED];
    for (int64_t t = 0; t < job->tap_count; t++) {
        const int32_t row = job->taps[t * job->windows + window];
        terms[t] = (Term){.bytes = rows + (row < 0 ? 0 : row) * job->channels,
                          .weight = row < 0 ? 0.0f : job->share[t * job->windows + window],
                          .zero = zero};
    }
    accel_isa_bytes->sum_terms(terms, job->tap_count, job->channels, (ByteRange){zero, 0, UINT8_MAX}, to);
}

/* Of one channel: windows that follow each other, since a call for every one of them would take longer than its sums. */
static void blend_of_single_bytes(const MeanJob *job, int64_t image, int64_t window, int64_t count, uint8_t *to)
{
    const uint8_t *rows = job->rows + image * job->count;
    const int32_t zero = (int32_t)job->zero_point;
    for (int64_t w = window; w < window + count; w++) {
        float sum = 0;
        for (int64_t t = 0; t < job->tap_count; t++) {
            const int32_t row = job->taps[t * job->windows + w];
            const float product = row < 0 ? 0.0f : (float)(rows[row] - zero) * job->share[t * job->windows + w];
            sum += product;
        }
        sum = sum<-(float)zero ? -(float)zero : sum>(float)(UINT8_MAX - zero) ? (float)(UINT8_MAX - zero) : sum;
        to[w - window] = (uint8_t)(nearest_integer(sum) + zero);
    }
}

static void blend_rows(const MeanJob *job, int threads)
{
    enum { TOGETHER = 256 };
    REQUIRE(job->tap_count <= MOST_BLENDED);
    const int64_t each = job->channels == 1 ? TOGETHER : 1, chunks = (job->windows + each - 1) / each;
    const int64_t values = job->images * job->windows * job->channels;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && values > 1 << 14)
    for (int64_t i = 0; i < job->images * chunks; i++) {
        const int64_t image = i / chunks, window = i % chunks * each, left = job->windows - window;
        uint8_t *to = job->out + (image * job->windows + window) * job->channels;
        if (job->channels == 1)
            blend_of_single_bytes(job, image, window, left < each ? left : each, to);
        else
            blend_of_bytes(job, image, window, to);
    }
}

void accel_mean_rows(const MeanJob *job)
{
    REQUIRE(job->images >= 0 && job->count >= 0 && job->windows >= 0 && job->channels >= 0 && job->tap_count > 0);
    REQUIRE(IS_ARRAY(job->rows, job->images * job->count * job->channels));
    REQUIRE(IS_ARRAY(job->out, job->images * job->windows * job->channels));
    REQUIRE(IS_ARRAY(job->share, job->windows * (job->weighted ? job->tap_count : 1)));
    REQUIRE(IS_ARRAY(job->taps, job->tap_count * job->windows) && job->zero_point >= 0 && job->zero_point <= UINT8_MAX);
    REQUIRE(job->images == 0 || are_within(job->taps, job->tap_count * job->windows, -1, job->count));
    const int threads = accel_threads(job->threads);
    const int64_t windows = job->images * job->windows;
    if (job->weighted) {
        blend_rows(job, threads);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && windows * job->channels > 1 << 14)
    for (int64_t i = 0; i < windows; i++) {
        const int64_t window = i % job->windows;
        mean_of_bytes(job, i / job->windows, job->taps + window, job->share[window], job->out + i * job->channels);
    }
}

static int is_byte(int64_t value) { return value >= 0 && value <= UINT8_MAX; }

static const void *row_of(const Placing *job, int64_t row, int other)
{
    const int64_t image = row / job->windows, window = row % job->windows;
    const int32_t *taps = other ? job->other_taps : job->taps;
    const int64_t at = image * (other ? job->other_count : job->count) + (taps ? taps[window] : window);
    return (const char *)(other ? job->other : job->rows) + at * job->width;
}

static void place_row(const Placing *job, int64_t row)
{
    char *to = (char *)job->out + row * job->pitch + job->at;
    const void *from = row_of(job, row, 0);
    if (job->multiplier != 0) {
        const Term terms[] = {
            {from, (float)job->multiplier, (int32_t)job->zero},
            {job->other ? row_of(job, row, 1) : NULL, (float)job->other_multiplier, (int32_t)job->other_zero},
        };
        const ByteRange range = {(int32_t)job->out_zero, (int32_t)job->low, (int32_t)job->high};
        accel_isa_bytes->sum_terms(terms, job->other ? 2 : 1, job->width, range, (uint8_t *)to);
    } else if (job->width == 1)
        *to = *(const char *)from; /* a move: rows of one byte are many */
    else
        memcpy(to, from, (size_t)job->width);
}

void accel_place(const Placing *job)
{
    REQUIRE(job->images >= 0 && job->count >= 0 && job->windows >= 0 && job->width >= 0 && job->at >= 0);
    REQUIRE(job->at + job->width <= job->pitch && (job->taps || job->count == job->windows));
    REQUIRE(IS_ARRAY((const uint8_t *)job->rows, job->images * job->count * job->width));
    REQUIRE(IS_ARRAY((uint8_t *)job->out, job->images * job->windows * job->pitch));
    REQUIRE(!job->taps || job->images == 0 || are_within(job->taps, job->windows, 0, job->count));
    REQUIRE(!job->other || (job->multiplier != 0 && (job->other_taps || job->other_count == job->windows)));
    REQUIRE(!job->other || IS_ARRAY((const uint8_t *)job->other, job->images * job->other_count * job->width));
    REQUIRE(!job->other || !job->other_taps || job->images == 0 ||
            are_within(job->other_taps, job->windows, 0, job->other_count));
    REQUIRE(is_byte(job->zero) && is_byte(job->other_zero) && is_byte(job->out_zero));
    REQUIRE(is_byte(job->low) && is_byte(job->high) && job->low <= job->high);
    if (!job->width)
        return; /* the arrays may be null then, which memcpy must not be given even for nothing */
    const int threads = accel_threads(job->threads);
    const int64_t rows = job->images * job->windows;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * job->width > 1 << 14)
    for (int64_t i = 0; i < rows; i++)
        place_row(job, i);
}

/* The same with zeros behind each row. */
static void round_rows(const Rounding *job, const float *x, uint16_t *out, int64_t rows)
{
    enum { SPAN = 1 << 10 }; /* longer than the rows that it holds */
    const int64_t width = job->width, pitch = job->pitch, each = SPAN / pitch;
    uint16_t span[SPAN];
    for (int64_t at = 0; at < rows; at += each) {
        const int64_t here = rows - at < each ? rows - at : each;
        accel_isa_bf16->round(x + at * width, span, here * width);
        for (int64_t row = 0; row < here; row++)
            for (int64_t i = 0; i < pitch; i++)
                out[(at + row) * pitch + i] = i < width ? span[row * width + i] : 0;
    }
}

void accel_round_bf16(const Rounding *job)
{
    enum { CHUNK = 1 << 14 };
    REQUIRE(job->count >= 0 && job->width > 0 && job->pitch >= job->width);
    REQUIRE(job->pitch == job->width || job->pitch <= MOST_PITCH);
    REQUIRE(IS_ARRAY(job->x, job->count * job->width) && IS_ARRAY(job->out, job->count * job->pitch));
    const int flat = job->pitch == job->width;
    const int threads = accel_threads(job->threads);
    const int64_t width = flat ? 1 : job->width, pitch = flat ? 1 : job->pitch;
    const int64_t rows = flat ? job->count * job->width : job->count, each = CHUNK / pitch;
    const int64_t chunks = (rows + each - 1) / each;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && chunks > 1)
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t at = i * each, here = rows - at < each ? rows - at : each;
        if (flat)
            accel_isa_bf16->round(job->x + at, job->out + at, here);
        else
            round_rows(job, job->x + at * width, job->out + at * pitch, here);
    }
}

/* count floats from x to bytes; returns whether one of them was not finite. */
static int quantize_values(const Quantizing *job, const float *x, uint8_t *out, int64_t count)
{
    return !accel_isa_bytes->quantize(x, out, count, (float)job->inverse, (int32_t)job->zero_point);
}

/* The same for rows of bytes with room between them. */
static int quantize_rows(const Quantizing *job, const float *x, uint8_t *out, int64_t rows)
{
    enum { SPAN = 1 << 10 }; /* longer than the rows that it holds, by a row at least */
    const int64_t width = job->width, pitch = job->pitch, each = SPAN / pitch - 1;
    uint8_t span[SPAN] = {0};
    int odd = 0;
    for (int64_t at = 0; at < rows; at += each) {
        const int64_t here = rows - at < each ? rows - at : each;
        odd |= quantize_values(job, x + at * width, span, here * width);
        for (int64_t row = 0; row < here; row++)
            if (pitch == 4)
                memcpy(out + (at + row) * 4, span + row * width, 4); /* of a constant length: a move */
            else
                memcpy(out + (at + row) * pitch, span + row * width, (size_t)width);
    }
    return odd;
}

int accel_quantize(const Quantizing *job)
{
    enum { CHUNK = 1 << 14 }; /* 80 KB in and out: below, threads cost more than they save */
    REQUIRE(job->count >= 0 && job->width > 0 && job->pitch >= job->width);
    REQUIRE(job->pitch == job->width || job->pitch <= MOST_PITCH);
    REQUIRE(IS_ARRAY(job->x, job->count * job->width) && IS_ARRAY(job->out, job->count * job->pitch));
    REQUIRE(job->zero_point >= 0 && job->zero_point <= 255 && job->inverse > 0);
    const int flat = job->pitch == job->width;
    const int threads = accel_threads(job->threads);
    const int64_t width = flat ? 1 : job->width, pitch = flat ? 1 : job->pitch;
    const int64_t rows = flat ? job->count * job->width : job->count, each = CHUNK / pitch;
    const int64_t chunks = (rows + each - 1) / each;
    int odd = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : odd) if (threads > 1 && chunks > 1)
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t at = i * each, here = rows - at < each ? rows - at : each;
        const float *x = job->x + at * width;
        uint8_t *out = job->out + at * pitch;
        odd |= flat ? quantize_values(job, x, out, here) : quantize_rows(job, x, out, here);
    }
    return odd;
}
