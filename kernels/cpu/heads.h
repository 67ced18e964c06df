/* What halting heads have in common, in a whole stage and everywhere. */
#ifndef ACCEL_HEADS_H
#define ACCEL_HEADS_H

#include <math.h>
#include <stdint.h>

/* <weights, totals / pixels>: the share that an image's positions have in common. */
static inline float accel_pooled_score(const float *weights, const double *totals, int64_t channels, int64_t pixels)
{
    double sum = 0;
    for (int64_t c = 0; c < channels; c++)
        sum += weights[c] * totals[c];
    return (float)(sum / (double)pixels);
}

static inline float accel_sigmoid(float x) { return 1 / (1 + expf(-x)); }

#endif
