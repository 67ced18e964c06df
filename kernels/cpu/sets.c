/* Dynamic position sets: mask -> positions, scores -> positions, and the map from a position back to its row. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

/* to[i] = 1 where any of from[i - reach * step .. i + reach * step] is, within the line of `length` elements. */
static void spread_line(const uint8_t *from, uint8_t *to, int64_t length, int64_t step, int64_t reach)
{
    int64_t last_seen = -reach - 1; /* the closest set element at or before i + reach */
    for (int64_t i = -reach; i < length; i++) {
        if (i + reach < length && from[(i + reach) * step])
            last_seen = i + reach;
        if (i >= 0)
            to[i * step] = last_seen >= i - reach;
    }
}

/* The (2 dilate + 1)-square maximum of one image's mask, one axis after the other. */
static void dilate_image(const ActiveJob *job, int64_t image, uint8_t *rows, uint8_t *out)
{
    const int64_t h = job->height, w = job->width;
    const uint8_t *mask = job->mask + image * h * w;
    for (int64_t y = 0; y < h; y++)
        spread_line(mask + y * w, rows + y * w, w, 1, job->dilate);
    for (int64_t x = 0; x < w; x++)
        spread_line(rows + x, out + x, h, w, job->dilate);
}

int accel_active(const ActiveJob *job)
{
    REQUIRE(job->images >= 0 && job->height >= 0 && job->width >= 0 && job->dilate >= 0);
    REQUIRE(job->images * job->height * job->width <= INT32_MAX && IS_ARRAY(job->counts, job->images));
    REQUIRE(IS_ARRAY(job->mask, job->images * job->height * job->width));
    REQUIRE(IS_ARRAY(job->positions, job->images * job->height * job->width));
    const int64_t pixels = job->height * job->width, all = job->images * pixels;
    const int threads = accel_threads(job->threads);
    const uint8_t *mask = job->mask;
    uint8_t *work = NULL;
    if (job->dilate) {
        work = malloc((size_t)(2 * all) + 1);
        if (!work)
            return -1;
        mask = work;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && all > 1 << 14)
    for (int64_t n = 0; n < job->images; n++) {
        int32_t count = 0;
        if (job->dilate)
            dilate_image(job, n, work + all + n * pixels, work + n * pixels);
        for (int64_t i = 0; i < pixels; i++)
            count += mask[n * pixels + i] != 0;
        job->counts[n] = count;
    }
    int64_t total = 0;
    for (int64_t i = 0; i < all; i++) { /* without a branch: masks are hard to predict */
        job->positions[total] = (int32_t)i;
        total += mask[i] != 0;
    }
    while (total < all)
        job->positions[total++] = -1;
    free(work);
    return 0;
}

void accel_invert(const Inversion *job)
{
    REQUIRE(job->rows >= 0 && IS_ARRAY(job->positions, job->rows) && IS_ARRAY(job->inverse, job->size));
    REQUIRE(are_within(job->positions, job->rows, INT32_MIN, job->size));
    for (int64_t i = 0; i < job->size; i++)
        job->inverse[i] = -1;
    for (int64_t r = 0; r < job->rows && job->positions[r] >= 0; r++)
        job->inverse[job->positions[r]] = (int32_t)r;
}

/* Unsigned keys in the order of the floats; -0 and 0 are equal. */
static uint32_t sort_key(float score)
{
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The budget-th highest key of one image, byte by byte from the top; *ties: how many equal to it are to be taken. */
static uint32_t find_threshold(const float *score, int64_t pixels, int64_t budget, int64_t *ties)
{
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t histogram[256] = {0};
        for (int64_t i = 0; i < pixels; i++) {
            const uint32_t key = sort_key(score[i]);
            histogram[key >> shift & 255] += shift == 24 || key >> (shift + 8) == prefix;
        }
        uint32_t digit = 255;
        while (histogram[digit] < budget)
            budget -= histogram[digit--];
        prefix = prefix << 8 | digit;
    }
    *ties = budget;
    return prefix;
}

void accel_select(const Selection *job)
{
    REQUIRE(job->images >= 0 && job->budget >= 0 && (job->images == 0 || job->budget <= job->pixels));
    REQUIRE(job->images * job->pixels <= INT32_MAX && IS_ARRAY(job->score, job->images * job->pixels));
    REQUIRE(IS_ARRAY(job->positions, job->images * job->budget));
    const int64_t pixels = job->pixels, budget = job->budget;
    const int team = accel_threads(job->threads);
    if (budget == 0)
        return;
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1 && job->images * pixels > 1 << 13)
    for (int64_t n = 0; n < job->images; n++) {
        const float *score = job->score + n * pixels;
        int32_t *to = job->positions + n * budget;
        int64_t ties;
        const uint32_t threshold = find_threshold(score, pixels, budget, &ties);
        for (int64_t i = 0; i < pixels; i++) {
            const uint32_t key = sort_key(score[i]);
            if (key > threshold || (key == threshold && ties-- > 0))
                *to++ = (int32_t)(n * pixels + i);
        }
    }
}

/* One version per instruction set, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONED
#endif

enum { LINE = 16 }; /* channels summed side by side, so that a compiler vectorises the sum */

/* scores of one line of the map: sum over the first channels of |x - mean of its neighbours|; NULL: no such line. */
CLONED static void deviate_line(const float *above, const float *line, const float *below, int64_t width, int64_t pitch,
                                int64_t channels, float *score)
{
    for (int64_t at = 0; at < width; at++) {
        const float *here = line + at * pitch, *around[4];
        int count = 0;
        if (above)
            around[count++] = above + at * pitch;
        if (at > 0)
            around[count++] = here - pitch;
        if (at + 1 < width)
            around[count++] = here + pitch;
        if (below)
            around[count++] = below + at * pitch;
        for (int i = count; i < 4; i++)
            around[i] = here; /* weighted by 0 */
        const float share = count ? 1.0f / (float)count : 0;
        const float shares[4] = {share, count > 1 ? share : 0, count > 2 ? share : 0, count > 3 ? share : 0};
        const float *p = around[0], *q = around[1], *r = around[2], *s = around[3];
        float sums[LINE] = {0}, total = 0;
        int64_t c = 0;
        for (; c + LINE <= channels; c += LINE)
            for (int l = 0; l < LINE; l++)
                sums[l] += fabsf(here[c + l] - (p[c + l] * shares[0] + q[c + l] * shares[1] + r[c + l] * shares[2] +
                                                s[c + l] * shares[3]));
        for (; c < channels; c++)
            sums[0] += fabsf(here[c] - (p[c] * shares[0] + q[c] * shares[1] + r[c] * shares[2] + s[c] * shares[3]));
        for (int l = 0; l < LINE; l++)
            total += sums[l];
        score[at] = count ? total : 0;
    }
}

void accel_local_deviation(const Deviation *job)
{
    REQUIRE(job->images >= 0 && job->height >= 0 && job->width >= 0);
    REQUIRE(job->channels >= 0 && job->channels <= job->pitch);
    REQUIRE(IS_ARRAY(job->x, job->images * job->height * job->width * job->pitch));
    REQUIRE(IS_ARRAY(job->score, job->images * job->height * job->width));
    const int64_t lines = job->images * job->height, length = job->width * job->pitch;
    const int team = accel_threads(job->threads);
#pragma omp parallel for schedule(static) \
    num_threads(team) if (team > 1 && lines * job->width * job->channels > 1 << 14)
    for (int64_t line = 0; line < lines; line++) {
        const float *here = job->x + line * length;
        const int64_t y = line % job->height;
        deviate_line(y ? here - length : NULL, here, y + 1 < job->height ? here + length : NULL, job->width, job->pitch,
                     job->channels, job->score + line * job->width);
    }
}
