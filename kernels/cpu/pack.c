/* Weights into panels, and small-C inputs into padded NHWC frames. */
#include <string.h>

#include "engine.h"

int64_t accel_packed_size(const PanelSize *s)
{
    REQUIRE(s->groups > 0 && s->k_group > 0 && s->c_group > 0 && s->taps > 0);
    return s->groups * cut_panels(s->k_group, MAX_VECTORS).all_vectors * accel_isa->lanes * s->c_group * s->taps;
}

/* One panel: [taps][c_group][vectors * lanes], zeros where there is no output channel. */
static void pack_panel(const Packing *p, int64_t group, int64_t k0, int64_t width, float *to)
{
    const int64_t real = p->k_group - k0 < width ? p->k_group - k0 : width;
    for (int64_t y = 0; y < p->kh; y++)
        for (int64_t x = 0; x < p->kw; x++)
            for (int64_t c = 0; c < p->c_group; c++, to += width) {
                const float *from =
                    p->w + group * p->stride_g + k0 * p->stride_k + c * p->stride_c + y * p->stride_h + x * p->stride_w;
                for (int64_t k = 0; k < real; k++)
                    to[k] = from[k * p->stride_k];
                memset(to + real, 0, (size_t)(width - real) * sizeof(float));
            }
}

void accel_pack(const Packing *p)
{
    REQUIRE(p->groups > 0 && p->k_group > 0 && p->c_group > 0 && p->kh > 0 && p->kw > 0);
    REQUIRE(IS_ARRAY(p->w, 1) && IS_ARRAY(p->packed, 1) && p->most_vectors > 0 && p->most_vectors <= MAX_VECTORS);
    const Panels cut = cut_panels(p->k_group, p->most_vectors);
    const int64_t lanes = accel_isa->lanes, depth = p->kh * p->kw * p->c_group;
    const int threads = accel_threads(p->threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && cut.panels * p->groups > 1)
    for (int64_t i = 0; i < cut.panels * p->groups; i++) {
        const int64_t group = i / cut.panels, vector0 = i % cut.panels * cut.vectors;
        const int64_t left = cut.all_vectors - vector0, vectors = left < cut.vectors ? left : cut.vectors;
        pack_panel(p, group, vector0 * lanes, vectors * lanes,
                   p->packed + (group * cut.all_vectors + vector0) * lanes * depth);
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
