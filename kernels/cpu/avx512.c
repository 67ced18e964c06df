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
#define ISA accel_avx512
#define ISA_NAME "avx512"
#define WIDTHS(X) X(1) X(2) X(3) X(4)
#define ROWS_FOR {0, 14, 14, 9, 6}
#define TILES(X) UP_TO_14(X, 1) UP_TO_14(X, 2) UP_TO_9(X, 3) UP_TO_6(X, 4)
#define NARROW_TILES(X) UP_TO_14(X, 1)
#define FOOTPRINT_ROWS 6
#define FOOTPRINT_TILES(X) UP_TO_6(X, 1) UP_TO_6(X, 2) UP_TO_6(X, 3) UP_TO_6(X, 4)
#include "isa.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
