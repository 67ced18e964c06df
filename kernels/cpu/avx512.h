/* The vectors of AVX-512, and the tiles that fit in its 32 registers of 16 floats or integers; for avx512.c and vnni.c, each
 * behind its own target. */
#ifndef ACCEL_AVX512_H
#define ACCEL_AVX512_H

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

#define INTS __m512i
#define AS_INTS(v) _mm512_castps_si512(v)
#define AS_FLOATS(i) _mm512_castsi512_ps(i)
#define SPLAT_INTS(s) _mm512_set1_epi32(s)
#define ADD_INTS(a, b) _mm512_add_epi32(a, b)
#define TO_FLOATS(i) _mm512_cvtepi32_ps(i)
#define TO_INTS(v) _mm512_cvtps_epi32(v)
#define MAX(a, b) _mm512_max_ps(a, b)
#define MIN(a, b) _mm512_min_ps(a, b)
#define WIDEN(p) _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(p)))
#define WIDEN_MASK(p, m) _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, p))
#define WIDEN_SIGNED(p) _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(p)))
#define STORE_BYTES(p, i) _mm_storeu_si128((void *)(p), _mm512_cvtepi32_epi8(i))
#define STORE_BYTES_MASK(p, i, m) _mm_mask_storeu_epi8(p, m, _mm512_cvtepi32_epi8(i))
#define EVEN_BYTES(x) _mm512_and_si512(x, _mm512_set1_epi16(255))
#define ODD_BYTES(x) _mm512_srli_epi16(x, 8)
#define EVEN_SIGNED(w) _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8)
#define ODD_SIGNED(w) _mm512_srai_epi16(w, 8)
#define ADD_PAIRS(a, b) _mm512_madd_epi16(a, b)

#define WIDEN_BF16(i) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(i), 16))
#define LOAD_BF16(p) WIDEN_BF16(_mm256_loadu_si256((const void *)(p)))
#define LOAD_BF16_MASK(p, m) WIDEN_BF16(_mm256_maskz_loadu_epi16(m, p))
#define STORE_BF16(p, v) _mm256_storeu_si256((void *)(p), ROUND_BF16(v))
#define STORE_BF16_MASK(p, v, m) _mm256_mask_storeu_epi16(p, m, ROUND_BF16(v))
#define FIRST_BF16(x) AS_FLOATS(_mm512_slli_epi32(AS_INTS(x), 16))
#define SECOND_BF16(x) AS_FLOATS(_mm512_and_si512(AS_INTS(x), _mm512_set1_epi32(-65536)))
#ifndef ROUND_BF16
#define ROUND_BF16(v) round_bf16(v)

static inline __m256i round_bf16(__m512 v)
{
    const __m512i bits = _mm512_castps_si512(v), quiet = _mm512_or_si512(bits, _mm512_set1_epi32(1 << 22));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i high = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16));
}
#endif

/* 24 to 28 accumulators, up to 4 weights and a broadcast value: all 32 registers are in use. */
#define UP_TO_6(X, nv) X(1, nv) X(2, nv) X(3, nv) X(4, nv) X(5, nv) X(6, nv)
#define UP_TO_9(X, nv) UP_TO_6(X, nv) X(7, nv) X(8, nv) X(9, nv)
#define UP_TO_14(X, nv) UP_TO_9(X, nv) X(10, nv) X(11, nv) X(12, nv) X(13, nv) X(14, nv)
#define WIDTHS(X) X(1) X(2) X(3) X(4)
#define ROWS_FOR {0, 14, 14, 9, 6}
#define TILES(X) UP_TO_14(X, 1) UP_TO_14(X, 2) UP_TO_9(X, 3) UP_TO_6(X, 4)

#endif
