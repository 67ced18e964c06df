/* Compact rows to dense maps by the nearest map, and the adjoint: a segment sum in a fixed order, without atomics. */
#include <string.h>

#include "engine.h"

void accel_interpolate(const Fill *f)
{
    const int threads = accel_threads(f->threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < f->images * f->pixels; i++) {
        const int64_t row = i / f->pixels * f->count + f->nearest[i % f->pixels];
        memcpy(f->to + i * f->channels, f->from + row * f->channels, (size_t)f->channels * sizeof(float));
    }
}

void accel_interpolate_backward(const Fill *f)
{
    const int threads = accel_threads(f->threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < f->images * f->count; i++) {
        const int64_t image = i / f->count, row = i % f->count;
        float *to = f->to + i * f->channels;
        memset(to, 0, (size_t)f->channels * sizeof(float));
        for (int32_t j = f->starts[row]; j < f->starts[row + 1]; j++) {
            const float *from = f->from + (image * f->pixels + f->targets[j]) * f->channels;
            for (int64_t c = 0; c < f->channels; c++)
                to[c] += from[c];
        }
    }
}
