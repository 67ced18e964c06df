/* What stage.c takes for granted of the tables of a stage. */
#ifndef ACCEL_STAGE_CONTRACT_H
#define ACCEL_STAGE_CONTRACT_H

#include "engine.h"

static inline void require_conv(const Stage *s, const StageConv *c, int first)
{
    const StageBuffer *from = s->buffers + c->source, *to = s->buffers + c->target;
    REQUIRE(c->source >= 0 && c->target >= 0 && c->source != c->target);
    REQUIRE(IS_ARRAY(c->packed, 1) && IS_ARRAY(c->zero, 1) && IS_ARRAY_OR_NULL(c->bias) &&
            is_activation(c->activation));
    REQUIRE(c->taps > 0 && IS_ARRAY(c->offsets, c->taps) && (!c->steps || c->step_count > 0));
    REQUIRE(is_kind(c->kind) && c->kind != KIND_BYTES && from->itemsize == (c->kind == KIND_FLOATS ? 4 : 1));
    REQUIRE(to->itemsize == (c->narrow ? 1 : 4) && (c->kind == KIND_FOURS || (!c->narrow && c->quantizes < 0)));
    REQUIRE(c->kind == KIND_FLOATS || (IS_ARRAY(c->multiplier, 1) && !c->steps));
    REQUIRE(c->quantizes < 0 ||
            (IS_ARRAY(c->inverse, 1) && *c->inverse > 0 && c->zero_point >= 0 && c->zero_point <= UINT8_MAX &&
             s->buffers[c->quantizes].itemsize == 4 && s->buffers[c->quantizes].pixels == from->pixels &&
             s->buffers[c->quantizes].channels == from->channels));
    REQUIRE(c->groups > 0 && c->in_channels % c->groups == 0 && c->out_channels % c->groups == 0);
    REQUIRE(from->channels == c->in_channels && to->channels == c->out_channels);
    REQUIRE(c->reach >= 0 && c->reach <= s->reach);
    REQUIRE(first || (from->pixels == s->buffers[BUFFER_STATE].pixels && to->pixels == from->pixels));
    REQUIRE(!first ||
            (c->pixels > 0 && c->pixels <= s->most_pixels && are_within(c->bases, c->pixels, 0, from->pixels) &&
             are_within(c->places, c->pixels, 0, to->pixels)));
}

static inline void require_unit(const Stage *s, const StageUnit *u, int first, int last)
{
    REQUIRE(u->first_conv >= 0 && u->convs > 0);
    for (int64_t i = 0; ACCEL_CHECKED && i < u->convs; i++)
        require_conv(s, s->convs + u->first_conv + i, first);
    for (int64_t i = 0; ACCEL_CHECKED && i < u->convs && !first; i++) {
        const int64_t reach = s->convs[u->first_conv + i].reach;
        REQUIRE(reach == 0 || u->reaches >> reach & 1);
    }
    REQUIRE(last || (IS_ARRAY(u->pooled, 1) && IS_ARRAY(u->bias, 1) && u->bias_step >= 0));
    REQUIRE(last || !s->spatial || IS_ARRAY(u->weights, 1));
}

static inline void require_stage(const Stage *s)
{
    const StageBuffer *state = s->buffers + BUFFER_STATE;
    REQUIRE(s->images >= 0 && s->group > 0 && s->unit_count > 0 && s->eps >= 0 && s->memory_each >= 0);
    REQUIRE(s->height > 0 && s->width > 0 && s->channels > 0 && s->pitch == s->width + 2 * s->border);
    REQUIRE(s->reach >= 0 && s->reach < MAX_REACH && s->reach <= s->border);
    REQUIRE(IS_ARRAY(s->buffers, 2) && IS_ARRAY(s->convs, 1) && IS_ARRAY(s->units, 1));
    REQUIRE(state->pixels == (s->height + 2 * s->border) * s->pitch && state->channels == s->channels);
    REQUIRE(s->group * state->pixels <= INT32_MAX && s->group * s->buffers[BUFFER_INPUT].pixels <= INT32_MAX);
    REQUIRE(IS_ARRAY(s->x, s->images) && IS_ARRAY_OR_NULL(s->shortcut) && IS_ARRAY(s->memory, s->images));
    REQUIRE(IS_ARRAY(s->output, s->images) && IS_ARRAY(s->ponder, s->images) && IS_ARRAY(s->shares, s->images));
    REQUIRE(IS_ARRAY(s->executed, s->images) && IS_ARRAY(s->macs, s->images));
    REQUIRE(IS_ARRAY(s->input_pieces, s->input_count) && (!s->shortcut || IS_ARRAY(s->shortcut_pieces, 1)));
    REQUIRE(IS_ARRAY(s->head_steps, s->head_step_count) && (!s->spatial || s->head_step_count > 0));
    for (int64_t k = 0; ACCEL_CHECKED && k < s->unit_count; k++)
        require_unit(s, s->units + k, k == 0, k + 1 == s->unit_count);
}

#endif
