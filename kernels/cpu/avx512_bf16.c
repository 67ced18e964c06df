/* The register kernels for bf16 in AVX-512 with its instructions. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")
#endif

/* Both instructions round to the nearest even whatever the mode, and take subnormal numbers for zeros. */
#define DOT_PAIRS(x, w, a) _mm512_dpbf16_ps(a, (__m512bh)(x), (__m512bh)(w))
#define ROUND_BF16(v) ((__m256i)_mm512_cvtneps_pbh(v))
#include "avx512.h"
#include "tile.inc"

#define ISA_NAME "avx512_bf16"
#define ISA_BF16 accel_avx512_bf16
#define ROWS_FOR_BF16 ROWS_FOR
#define TILES_OF_BF16 TILES
#include "isa_bf16.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
