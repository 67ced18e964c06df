/* The register kernels in AVX-512: 32 registers of 16 floats. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#include <immintrin.h>

#define V __m512
#define LANES 16
#define ZERO _mm512_setzero_ps()
#define SPLAT(s) _mm512_set1_ps(s)
#define LOAD(p) _mm512_loadu_ps(p)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define STREAM(p, v) _mm512_stream_ps(p, v)
#define BROADCAST(p) _mm512_set1_ps(*(p))
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define ADD(a, b) _mm512_add_ps(a, b)
#define MUL(a, b) _mm512_mul_ps(a, b)
#define WHERE_NEGATIVE(x, yes, no) _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(x, ZERO, _CMP_LT_OQ), yes)
#define MASK __mmask16
#define MASK_OF(lanes) ((MASK)((1u << (lanes)) - 1))
#define LOAD_MASK(p, m) _mm512_maskz_loadu_ps(m, p)
#define STORE_MASK(p, v, m) _mm512_mask_storeu_ps(p, m, v)
#define LANE_SUM(v) _mm512_reduce_add_ps(v)
#define PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#define WEIGHTS_AHEAD 8
#include "tile.inc"
#include "rows.inc"

/* 24 to 28 accumulators, up to 4 weights and a broadcast value: all 32 registers are in use. */
#define UP_TO_6(X, nv) X(1, nv) X(2, nv) X(3, nv) X(4, nv) X(5, nv) X(6, nv)
#define UP_TO_9(X, nv) UP_TO_6(X, nv) X(7, nv) X(8, nv) X(9, nv)
#define UP_TO_14(X, nv) UP_TO_9(X, nv) X(10, nv) X(11, nv) X(12, nv) X(13, nv) X(14, nv)
#define TILE_ENTRY(mr, nv) [nv][mr] = tile_##mr##x##nv,
#define DEPTHWISE_ENTRY(mr, nv) [nv][mr] = depthwise_##mr##x##nv,
#define FOOTPRINT_ENTRY(mr, nv) [nv][mr] = footprint_##mr##x##nv,
#define NARROW_ENTRY(mr, nv) [mr] = narrow_##mr,
#define OUTER_ENTRY(mr, nv) [nv][mr] = outer_##mr##x##nv,

/* clang-format off */
UP_TO_14(TILE, 1) UP_TO_14(TILE, 2) UP_TO_9(TILE, 3) UP_TO_6(TILE, 4)
UP_TO_14(DEPTHWISE, 1) UP_TO_14(DEPTHWISE, 2) UP_TO_9(DEPTHWISE, 3) UP_TO_6(DEPTHWISE, 4)
UP_TO_6(FOOTPRINT, 1) UP_TO_6(FOOTPRINT, 2) UP_TO_6(FOOTPRINT, 3) UP_TO_6(FOOTPRINT, 4)
UP_TO_14(NARROW, 1)
UP_TO_14(OUTER, 1) UP_TO_14(OUTER, 2) UP_TO_9(OUTER, 3) UP_TO_6(OUTER, 4)
PAIRS(1) PAIRS(2) PAIRS(3) PAIRS(4)

const Isa accel_avx512 = {
    .name = "avx512", .sum_rows = sum_rows, .score_rows = score_rows,
    .sigmoid_rows = sigmoid_rows, .blend_rows = blend_rows, .lanes = LANES, .max_vectors = 4, .rows_for = {0, 14, 14, 9, 6},
    .tile = {UP_TO_14(TILE_ENTRY, 1) UP_TO_14(TILE_ENTRY, 2) UP_TO_9(TILE_ENTRY, 3) UP_TO_6(TILE_ENTRY, 4)},
    .depthwise = {UP_TO_14(DEPTHWISE_ENTRY, 1) UP_TO_14(DEPTHWISE_ENTRY, 2) UP_TO_9(DEPTHWISE_ENTRY, 3)
                  UP_TO_6(DEPTHWISE_ENTRY, 4)},
    .footprint_rows = 6,
    .footprint = {UP_TO_6(FOOTPRINT_ENTRY, 1) UP_TO_6(FOOTPRINT_ENTRY, 2)
                  UP_TO_6(FOOTPRINT_ENTRY, 3) UP_TO_6(FOOTPRINT_ENTRY, 4)},
    .narrow = {UP_TO_14(NARROW_ENTRY, 1)},
    .outer = {UP_TO_14(OUTER_ENTRY, 1) UP_TO_14(OUTER_ENTRY, 2) UP_TO_9(OUTER_ENTRY, 3) UP_TO_6(OUTER_ENTRY, 4)},
    .pairs = {NULL, pairs_1, pairs_2, pairs_3, pairs_4},
};
/* clang-format on */
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
