/* The register kernels in AVX2 + FMA: 16 registers of 8 floats. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

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

/* How many lanes a mask names. */
static inline int lanes_of(__m256i mask)
{
    return __builtin_ctz(~(unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(mask)));
}

static inline __m128i load_bytes(const void *p, int lanes)
{
    int64_t bytes = 0;
    memcpy(&bytes, p, (size_t)lanes);
    return _mm_cvtsi64_si128(bytes);
}

/* Of integers from 0 to 255. */
static inline void store_bytes(void *p, __m256i i, int lanes)
{
    const __m128i pairs = _mm_packus_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs));
    memcpy(p, &bytes, (size_t)lanes);
}

#define INTS __m256i
#define AS_INTS(v) _mm256_castps_si256(v)
#define AS_FLOATS(i) _mm256_castsi256_ps(i)
#define SPLAT_INTS(s) _mm256_set1_epi32(s)
#define ADD_INTS(a, b) _mm256_add_epi32(a, b)
#define TO_FLOATS(i) _mm256_cvtepi32_ps(i)
#define TO_INTS(v) _mm256_cvtps_epi32(v)
#define MAX(a, b) _mm256_max_ps(a, b)
#define MIN(a, b) _mm256_min_ps(a, b)
#define WIDEN(p) _mm256_cvtepu8_epi32(load_bytes(p, LANES))
#define WIDEN_MASK(p, m) _mm256_cvtepu8_epi32(load_bytes(p, lanes_of(m)))
#define WIDEN_SIGNED(p) _mm256_cvtepi8_epi32(load_bytes(p, LANES))
#define STORE_BYTES(p, i) store_bytes(p, i, LANES)
#define STORE_BYTES_MASK(p, i, m) store_bytes(p, i, lanes_of(m))
#define EVEN_BYTES(x) _mm256_and_si256(x, _mm256_set1_epi16(255))
#define ODD_BYTES(x) _mm256_srli_epi16(x, 8)
#define EVEN_SIGNED(w) _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8)
#define ODD_SIGNED(w) _mm256_srai_epi16(w, 8)
#define ADD_PAIRS(a, b) _mm256_madd_epi16(a, b)

static inline __m256 load_bf16(const void *p, int lanes)
{
    uint16_t numbers[8];
    memcpy(numbers, p, (size_t)lanes * sizeof(uint16_t));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)numbers)), 16));
}

static inline __m128i round_bf16(__m256 v)
{
    const __m256i bits = _mm256_castps_si256(v), quiet = _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

static inline void store_bf16(void *p, __m128i numbers, int lanes)
{
    uint16_t all[8];
    _mm_storeu_si128((void *)all, numbers);
    memcpy(p, all, (size_t)lanes * sizeof(uint16_t));
}

#define LOAD_BF16(p) load_bf16(p, LANES)
#define LOAD_BF16_MASK(p, m) load_bf16(p, lanes_of(m))
#define STORE_BF16(p, v) store_bf16(p, round_bf16(v), LANES)
#define STORE_BF16_MASK(p, v, m) store_bf16(p, round_bf16(v), lanes_of(m))
#define FIRST_BF16(x) AS_FLOATS(_mm256_slli_epi32(AS_INTS(x), 16))
#define SECOND_BF16(x) AS_FLOATS(_mm256_and_si256(AS_INTS(x), _mm256_set1_epi32(-65536)))
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

/* 8 accumulators: weights and bytes are split in even and odd ones, which takes 6 registers more. */
#define UP_TO_4(X, nv) X(1, nv) X(2, nv) X(3, nv) X(4, nv)
#define ISA_BYTES accel_avx2_bytes
#define ROWS_FOR_BYTES {0, 6, 4}
#define TILES_OF_BYTES(X) UP_TO_6(X, 1) UP_TO_4(X, 2)
#include "isa_bytes.inc"

/* 8 accumulators here too: weights are split in first and second ones. */
#define ISA_BF16 accel_avx2_bf16
#define ROWS_FOR_BF16 ROWS_FOR_BYTES
#define TILES_OF_BF16 TILES_OF_BYTES
#include "isa_bf16.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
