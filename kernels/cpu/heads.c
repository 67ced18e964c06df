/* The scores of a halting head at every position, each the same bits as in a whole stage (stage.c), where only some are
 * computed. */
#include <stdlib.h>

#include "engine.h"
#include "heads.h"

static void score_image(const HeadJob *j, int64_t n, double *totals)
{
    const Rows rows = {j->x + n * j->pixels * j->channels, j->at, j->count, j->channels};
    const float *bias = j->bias + n * j->bias_step;
    float *scores = j->scores + n * (j->weights ? j->count : 1);
    accel_isa->sum_rows(&rows, 0, j->channels, totals);
    const float pooled = accel_pooled_score(j->pooled, totals, j->channels, j->count);
    if (!j->weights) {
        scores[0] = j->logits ? pooled + bias[0] : accel_sigmoid(pooled + bias[0]);
        return;
    }
    accel_isa->score_rows(&rows, j->steps, j->step_count, j->weights, scores);
    for (int64_t r = 0; r < j->count; r++)
        scores[r] += bias[r] + pooled;
    if (!j->logits)
        accel_isa->sigmoid_rows(scores, j->count);
}

int accel_head_scores(const HeadJob *j)
{
    REQUIRE(j->images >= 0 && j->count > 0 && j->channels > 0 && j->bias_step >= 0);
    REQUIRE(IS_ARRAY(j->x, j->images) && IS_ARRAY(j->pooled, j->channels) && IS_ARRAY(j->bias, 1));
    REQUIRE(IS_ARRAY(j->at, j->count) && are_within(j->at, j->count, 0, j->pixels) && IS_ARRAY(j->scores, j->images));
    REQUIRE(!j->weights || (IS_ARRAY(j->weights, 1) && IS_ARRAY(j->steps, j->step_count) && j->step_count > 0));
    const int threads = accel_threads(j->threads);
    double *totals = malloc((size_t)(threads * j->channels) * sizeof(double));
    if (!totals)
        return -1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && j->images > 1)
    for (int64_t n = 0; n < j->images; n++)
        score_image(j, n, totals + accel_worker() * j->channels);
    free(totals);
    return 0;
}
