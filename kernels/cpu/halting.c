/* One unit of adaptive computation time, and the sums of its cost: see kernels/reference/halting_step.py. */
#include <string.h>

#include "engine.h"
#include "halting.h"

/* One pass: each position decides, then adds its share of x to the output. In place, positions of weight 0 are skipped. */
void accel_halting_step(const HaltingJob *j)
{
    REQUIRE(j->positions >= 0 && j->channels >= 0 && j->eps >= 0);
    REQUIRE(IS_ARRAY(j->remainder, j->positions) && IS_ARRAY(j->ponder, j->positions));
    REQUIRE(IS_ARRAY(j->h, j->last ? 0 : j->positions) && IS_ARRAY(j->units, j->positions));
    REQUIRE(IS_ARRAY(j->x, j->positions * j->channels) && IS_ARRAY(j->output, j->positions * j->channels));
    REQUIRE(IS_ARRAY(j->new_remainder, j->positions) && IS_ARRAY(j->new_ponder, j->positions));
    REQUIRE(IS_ARRAY(j->new_output, j->positions * j->channels) && IS_ARRAY(j->new_units, j->positions));
    REQUIRE(IS_ARRAY_OR_NULL(j->weight));
    const int threads = accel_threads(j->threads);
    const int in_place = j->output == j->new_output;
    const float eps = (float)j->eps;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && j->positions * j->channels > 1 << 14)
    for (int64_t i = 0; i < j->positions; i++) {
        const Halted done = accel_halt(j->remainder[i], j->last ? 0 : j->h[i], eps, (int)j->last, (int)j->sticks);
        const int running = done.running;
        const float weight = done.weight;
        j->new_remainder[i] = done.after;
        j->new_ponder[i] = j->ponder[i] + done.cost;
        j->new_units[i] = j->units[i] + running;
        if (j->weight)
            j->weight[i] = weight;
        if (j->still_running)
            j->still_running[i] = done.after > 0;
        if (in_place && !running)
            continue;
        const float *x = j->x + i * j->channels, *old = j->output + i * j->channels;
        float *out = j->new_output + i * j->channels;
        for (int64_t c = 0; c < j->channels; c++)
            out[c] = old[c] + weight * x[c];
    }
}

/* dx = weight * dy; returns the sum of dy * x, in double: an image of ACT has as many values as its map. */
static double weigh(const float *dy, const float *x, float weight, float *dx, int64_t channels)
{
    double part[8] = {0}, sum = 0;
    const int64_t whole = channels / 8 * 8;
    for (int64_t c = 0; c < whole; c += 8)
        for (int64_t lane = 0; lane < 8; lane++) {
            part[lane] += (double)dy[c + lane] * x[c + lane];
            dx[c + lane] = weight * dy[c + lane];
        }
    for (int64_t c = whole; c < channels; c++) {
        sum += (double)dy[c] * x[c];
        dx[c] = weight * dy[c];
    }
    for (int64_t lane = 0; lane < 8; lane++)
        sum += part[lane];
    return sum;
}

void accel_halting_step_backward(const HaltingGradJob *j)
{
    REQUIRE(j->positions >= 0 && j->channels >= 0 && j->eps >= 0);
    REQUIRE(IS_ARRAY(j->h, j->last ? 0 : j->positions) && IS_ARRAY(j->remainder, j->positions));
    REQUIRE(IS_ARRAY(j->d_remainder, j->positions) && IS_ARRAY(j->d_ponder, j->positions));
    REQUIRE(IS_ARRAY(j->d_weight, j->positions) && IS_ARRAY(j->d_h, j->positions) && IS_ARRAY(j->d_old, j->positions));
    REQUIRE(IS_ARRAY(j->x, j->positions * j->channels) && IS_ARRAY(j->d_x, j->positions * j->channels));
    REQUIRE(IS_ARRAY(j->d_output, j->positions * j->channels));
    const int threads = accel_threads(j->threads);
    const float eps = (float)j->eps;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && j->positions * j->channels > 1 << 14)
    for (int64_t i = 0; i < j->positions; i++) {
        const float left = j->remainder[i], h = j->last ? 0 : j->h[i];
        const Halted done = accel_halt(left, h, eps, (int)j->last, (int)j->sticks);
        const int going = done.after > 0;
        float *dx = j->d_x + i * j->channels;
        j->d_h[i] = j->d_old[i] = 0;
        if (!done.running && !j->sticks) {
            memset(dx, 0, (size_t)j->channels * sizeof(float));
            continue;
        }
        const float *dy = j->d_output + i * j->channels, *x = j->x + i * j->channels;
        const float through = (float)(j->d_weight[i] + weigh(dy, x, done.weight, dx, j->channels));
        if (j->sticks) { /* smooth, also where nothing is left */
            const float d_left = j->d_remainder[i] + j->d_ponder[i];
            j->d_h[i] = j->last ? 0 : left * (through - d_left);
            j->d_old[i] = j->last ? through : h * through + (1 - h) * d_left;
            continue;
        }
        if (going) /* the score of the unit it halts in decided that it halts, no more: no gradient */
            j->d_h[i] = through - j->d_remainder[i];
        j->d_old[i] = going ? j->d_remainder[i] : through + j->d_ponder[i];
    }
}

/* Per image, in double: float terms of a few units add up exactly, so no order of additions can show. */
void accel_ponder_cost(const PonderJob *j)
{
    REQUIRE(j->images >= 0 && j->pixels >= 0 && IS_ARRAY(j->rho, j->images) && IS_ARRAY(j->executed, j->images));
    REQUIRE(IS_ARRAY(j->ponder, j->images * j->pixels) && IS_ARRAY(j->units, j->images * j->pixels));
    for (int64_t n = 0; n < j->images; n++) {
        double sum = 0;
        int64_t count = 0;
        for (int64_t i = n * j->pixels; i < (n + 1) * j->pixels; i++) {
            sum += j->ponder[i];
            count += j->units[i];
        }
        j->rho[n] = (float)sum;
        j->executed[n] = count;
    }
}
