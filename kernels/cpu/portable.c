/* The register kernels in GNU C vectors of 4 floats: whatever the compiler's baseline offers (SSE2, NEON, ...). */
#include <stdint.h>
#include <string.h>

typedef float V4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));

static inline V4 load_part(const float *p, int64_t lanes)
{
    V4 v = {0};
    memcpy(&v, p, (size_t)lanes * sizeof(float));
    return v;
}

static inline void store_part(float *p, V4 v, int64_t lanes) { memcpy(p, &v, (size_t)lanes * sizeof(float)); }

#define V V4
#define LANES 4
#define ZERO ((V4){0})
#define SPLAT(s) ((V4){(s), (s), (s), (s)})
#define LOAD(p) load_part(p, 4)
#define STORE(p, v) store_part(p, v, 4)
#define STREAM(p, v) STORE(p, v)
#define BROADCAST(p) SPLAT(*(p))
#define FMA(a, b, c) ((a) * (b) + (c))
#define ADD(a, b) ((a) + (b))
#define MUL(a, b) ((a) * (b))
#define WHERE_NEGATIVE(x, yes, no) ((V4)((((I4)((x) < ZERO)) & (I4)(yes)) | (~((I4)((x) < ZERO)) & (I4)(no))))
#define MASK int64_t
#define MASK_OF(lanes) (lanes)
#define LOAD_MASK(p, m) load_part(p, m)
#define STORE_MASK(p, v, m) store_part(p, v, m)
#define PREFETCH(p) __builtin_prefetch(p)
#define WEIGHTS_AHEAD 8
#include "tile.inc"
#include "rows.inc"

/* 8 accumulators, 2 weights, a broadcast value and a product fit in the 16 registers of SSE2. */
#define UP_TO_4(X, nv) X(1, nv) X(2, nv) X(3, nv) X(4, nv)
#define TILE_ENTRY(mr, nv) [nv][mr] = tile_##mr##x##nv,
#define DEPTHWISE_ENTRY(mr, nv) [nv][mr] = depthwise_##mr##x##nv,
#define FOOTPRINT_ENTRY(mr, nv) [nv][mr] = footprint_##mr##x##nv,
#define NARROW_ENTRY(mr, nv) [mr] = narrow_##mr,
#define OUTER_ENTRY(mr, nv) [nv][mr] = outer_##mr##x##nv,

/* clang-format off */
UP_TO_4(TILE, 1) UP_TO_4(TILE, 2)
UP_TO_4(DEPTHWISE, 1) UP_TO_4(DEPTHWISE, 2)
UP_TO_4(FOOTPRINT, 1) UP_TO_4(FOOTPRINT, 2)
UP_TO_4(NARROW, 1)
UP_TO_4(OUTER, 1) UP_TO_4(OUTER, 2)
PAIRS(1) PAIRS(2)

const Isa accel_portable = {
    .name = "portable", .sum_rows = sum_rows, .score_rows = score_rows,
    .sigmoid_rows = sigmoid_rows, .blend_rows = blend_rows, .lanes = LANES, .max_vectors = 2, .rows_for = {0, 4, 4},
    .tile = {UP_TO_4(TILE_ENTRY, 1) UP_TO_4(TILE_ENTRY, 2)},
    .depthwise = {UP_TO_4(DEPTHWISE_ENTRY, 1) UP_TO_4(DEPTHWISE_ENTRY, 2)},
    .footprint_rows = 4,
    .footprint = {UP_TO_4(FOOTPRINT_ENTRY, 1) UP_TO_4(FOOTPRINT_ENTRY, 2)},
    .narrow = {UP_TO_4(NARROW_ENTRY, 1)},
    .outer = {UP_TO_4(OUTER_ENTRY, 1) UP_TO_4(OUTER_ENTRY, 2)},
    .pairs = {NULL, pairs_1, pairs_2},
};
/* clang-format on */
