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
#define ISA accel_avx2
#define ISA_NAME "avx2"
#define WIDTHS(X) X(1) X(2)
#define ROWS_FOR {0, 6, 6}
#define TILES(X) UP_TO_6(X, 1) UP_TO_6(X, 2)
#define NARROW_TILES(X) UP_TO_6(X, 1)
#define FOOTPRINT_ROWS 6
#define FOOTPRINT_TILES TILES
#include "isa.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
