/* The register kernels in AVX2 + FMA: 16 registers of 8 floats. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

#define V __m256
#define LANES 8
#define ZERO _mm256_setzero_ps()
#define SPLAT(s) _mm256_set1_ps(s)
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define STREAM(p, v) _mm256_stream_ps(p, v)
#define BROADCAST(p) _mm256_broadcast_ss(p)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define ADD(a, b) _mm256_add_ps(a, b)
#define MUL(a, b) _mm256_mul_ps(a, b)
/* A comparison, not the sign bit: NaN must not count as negative. */
#define WHERE_NEGATIVE(x, yes, no) _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, ZERO, _CMP_LT_OQ))
#define MASK __m256i
#define MASK_OF(lanes) _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(lanes)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define LOAD_MASK(p, m) _mm256_maskload_ps(p, m)
#define STORE_MASK(p, v, m) _mm256_maskstore_ps(p, m, v)
#define PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#define WEIGHTS_AHEAD 8
#include "tile.inc"
#include "rows.inc"

/* 12 accumulators, 2 weights and a broadcast value in 16 registers. */
#define UP_TO_6(X, nv) X(1, nv) X(2, nv) X(3, nv) X(4, nv) X(5, nv) X(6, nv)
#define TILE_ENTRY(mr, nv) [nv][mr] = tile_##mr##x##nv,
#define DEPTHWISE_ENTRY(mr, nv) [nv][mr] = depthwise_##mr##x##nv,
#define FOOTPRINT_ENTRY(mr, nv) [nv][mr] = footprint_##mr##x##nv,
#define NARROW_ENTRY(mr, nv) [mr] = narrow_##mr,
#define OUTER_ENTRY(mr, nv) [nv][mr] = outer_##mr##x##nv,

/* clang-format off */
UP_TO_6(TILE, 1) UP_TO_6(TILE, 2)
UP_TO_6(DEPTHWISE, 1) UP_TO_6(DEPTHWISE, 2)
UP_TO_6(FOOTPRINT, 1) UP_TO_6(FOOTPRINT, 2)
UP_TO_6(NARROW, 1)
UP_TO_6(OUTER, 1) UP_TO_6(OUTER, 2)
PAIRS(1) PAIRS(2)

const Isa accel_avx2 = {
    .name = "avx2", .sum_rows = sum_rows, .score_rows = score_rows,
    .sigmoid_rows = sigmoid_rows, .blend_rows = blend_rows, .lanes = LANES, .max_vectors = 2, .rows_for = {0, 6, 6},
    .tile = {UP_TO_6(TILE_ENTRY, 1) UP_TO_6(TILE_ENTRY, 2)},
    .depthwise = {UP_TO_6(DEPTHWISE_ENTRY, 1) UP_TO_6(DEPTHWISE_ENTRY, 2)},
    .footprint_rows = 6,
    .footprint = {UP_TO_6(FOOTPRINT_ENTRY, 1) UP_TO_6(FOOTPRINT_ENTRY, 2)},
    .narrow = {UP_TO_6(NARROW_ENTRY, 1)},
    .outer = {UP_TO_6(OUTER_ENTRY, 1) UP_TO_6(OUTER_ENTRY, 2)},
    .pairs = {NULL, pairs_1, pairs_2},
};
/* clang-format on */
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
