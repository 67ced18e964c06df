/* Weights into panels, and small-C inputs into padded NHWC frames. */
#include <string.h>

#include "engine.h"

int64_t accel_packed_size(const PanelSize *s)
{
    REQUIRE(s->groups > 0 && s->k_group > 0 && s->c_group > 0 && s->taps > 0 && is_kind(s->kind));
    const Isa *isa = isa_of(s->kind);
    return s->groups * cut_panels(isa, s->k_group, MAX_VECTORS).all_vectors * isa->lanes *
           panel_bytes(s->kind, s->taps, s->c_group);
}

/* Where the weights of one tap and one panel are read, and how many of its lanes there are. */
typedef struct {
    int64_t first, real, width;
} Lanes;

/* [c_group][width], zeros where there is no output channel. */
static float *pack_floats(const Packing *p, const Lanes *l, float *to)
{
    for (int64_t c = 0; c < p->c_group; c++, to += l->width) {
        const float *from = (const float *)p->w + l->first + c * p->stride_c;
        for (int64_t k = 0; k < l->real; k++)
            to[k] = from[k * p->stride_k];
        memset(to + l->real, 0, (size_t)(l->width - l->real) * sizeof(float));
    }
    return to;
}

/* [c_group / each][width][each], zeros where there is no output channel or no more of the run; their sums are taken from
 * head, the zero point times. */
static int8_t *pack_bytes(const Packing *p, const Lanes *l, int64_t each, int32_t *head, int8_t *to)
{
    for (int64_t c = 0; c < p->c_group; c += each)
        for (int64_t k = 0; k < l->width; k++)
            for (int64_t i = 0; i < each; i++) {
                const int there = k < l->real && c + i < p->c_group;
                *to = there ? ((const int8_t *)p->w)[l->first + k * p->stride_k + (c + i) * p->stride_c] : 0;
                head[k] -= (int32_t)p->zero_point * *to++;
            }
    return to;
}

/* The same of floats made bf16. */
static uint16_t *pack_bf16(const Packing *p, const Lanes *l, int64_t each, uint16_t *to)
{
    for (int64_t c = 0; c < p->c_group; c += each)
        for (int64_t k = 0; k < l->width; k++)
            for (int64_t i = 0; i < each; i++) {
                const int there = k < l->real && c + i < p->c_group;
                const float *from = (const float *)p->w + l->first;
                *to++ = there ? bf16_of(from[k * p->stride_k + (c + i) * p->stride_c]) : 0;
            }
    return to;
}

static void pack_panel(const Packing *p, int64_t group, int64_t k0, int64_t width, char *to)
{
    Lanes l = {0, p->k_group - k0 < width ? p->k_group - k0 : width, width};
    const int64_t start = group * p->stride_g + k0 * p->stride_k;
    int32_t *head = (int32_t *)to;
    float *floats = (float *)to;
    uint16_t *bf16 = (uint16_t *)to;
    int8_t *bytes = (int8_t *)(head + width);
    if (is_of_bytes(p->kind))
        memset(head, 0, (size_t)width * sizeof(int32_t));
    for (int64_t y = 0; y < p->kh; y++)
        for (int64_t x = 0; x < p->kw; x++) {
            l.first = start + y * p->stride_h + x * p->stride_w;
            if (p->kind == KIND_FLOATS)
                floats = pack_floats(p, &l, floats);
            else if (is_of_bf16(p->kind))
                bf16 = pack_bf16(p, &l, lane_elements(p->kind), bf16);
            else
                bytes = pack_bytes(p, &l, lane_elements(p->kind), head, bytes);
        }
}

void accel_pack(const Packing *p)
{
    REQUIRE(p->groups > 0 && p->k_group > 0 && p->c_group > 0 && p->kh > 0 && p->kw > 0 && is_kind(p->kind));
    REQUIRE(is_array(p->w, 1, is_of_bytes(p->kind) ? 1 : sizeof(float)) && is_array(p->packed, 1, sizeof(float)));
    REQUIRE(p->most_vectors > 0 && p->most_vectors <= MAX_VECTORS);
    REQUIRE(!is_of_bytes(p->kind) || p->kh * p->kw <= MOST_TERMS / p->c_group);
    REQUIRE(p->zero_point >= 0 && p->zero_point <= UINT8_MAX);
    const Isa *isa = isa_of(p->kind);
    const Panels cut = cut_panels(isa, p->k_group, p->most_vectors);
    const int64_t depth = panel_bytes(p->kind, p->kh * p->kw, p->c_group) * isa->lanes;
    const int threads = accel_threads(p->threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && cut.panels * p->groups > 1)
    for (int64_t i = 0; i < cut.panels * p->groups; i++) {
        const int64_t group = i / cut.panels, vector0 = i % cut.panels * cut.vectors;
        const int64_t left = cut.all_vectors - vector0, vectors = left < cut.vectors ? left : cut.vectors;
        pack_panel(p, group, vector0 * isa->lanes, vectors * isa->lanes,
                   (char *)p->packed + (group * cut.all_vectors + vector0) * depth);
    }
}

void accel_frame(const Frame *f)
{
    REQUIRE(f->images >= 0 && f->piece_count >= 0 && f->channels > 0 && f->pixels >= 0);
    REQUIRE(IS_ARRAY(f->x, f->images) && IS_ARRAY(f->out, f->images) && IS_ARRAY(f->pieces, f->piece_count));
    for (const FramePiece *p = f->pieces; ACCEL_CHECKED && p < f->pieces + f->piece_count; p++)
        REQUIRE(p->to >= 0 && p->count > 0 && p->to + p->count <= f->pixels && p->first >= -1);
    const int threads = accel_threads(f->threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t item = 0; item < f->images * f->piece_count; item++) {
        const int64_t image = item / f->piece_count, channels = f->channels;
        const FramePiece piece = f->pieces[item % f->piece_count];
        float *to = f->out + (image * f->pixels + piece.to) * channels;
        const float *from = f->x + image * f->stride_n + piece.first * f->stride_pixel;
        if (piece.first < 0)
            memset(to, 0, (size_t)(piece.count * channels) * sizeof(float));
        else if (f->stride_c == 1 && f->stride_pixel == channels)
            memcpy(to, from, (size_t)(piece.count * channels) * sizeof(float));
        else
            for (int64_t i = 0; i < piece.count; i++, from += f->stride_pixel)
                for (int64_t c = 0; c < channels; c++)
                    *to++ = from[c * f->stride_c];
    }
}
