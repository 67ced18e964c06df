/* The register kernels in GNU C vectors of 4 floats: whatever the compiler's baseline offers (SSE2, NEON, ...). */
#include <stdint.h>
#include <string.h>

#include "engine.h"

typedef float V4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
typedef uint32_t U4 __attribute__((vector_size(16)));
typedef int16_t I8 __attribute__((vector_size(16)));
typedef uint16_t U8 __attribute__((vector_size(16)));

static inline V4 load_part(const float *p, int64_t lanes)
{
    V4 v = {0};
    memcpy(&v, p, (size_t)lanes * sizeof(float));
    return v;
}

static inline void store_part(float *p, V4 v, int64_t lanes) { memcpy(p, &v, (size_t)lanes * sizeof(float)); }

static inline I4 widen(const uint8_t *p, int64_t lanes)
{
    I4 i = {0};
    for (int64_t k = 0; k < lanes; k++)
        i[k] = p[k];
    return i;
}

static inline I4 widen_signed(const int8_t *p) { return (I4){p[0], p[1], p[2], p[3]}; }

static inline void store_bytes(uint8_t *p, I4 i, int64_t lanes)
{
    for (int64_t k = 0; k < lanes; k++)
        p[k] = (uint8_t)i[k];
}

static inline V4 load_bf16(const uint16_t *p, int64_t lanes)
{
    U4 bits = {0};
    for (int64_t k = 0; k < lanes; k++)
        bits[k] = (uint32_t)p[k] << 16;
    return (V4)bits;
}

static inline void store_bf16(uint16_t *p, V4 v, int64_t lanes)
{
    for (int64_t k = 0; k < lanes; k++)
        p[k] = bf16_of(v[k]);
}

/* a where the lanes of `where` are all ones, else b. */
static inline V4 pick(I4 where, V4 a, V4 b) { return (V4)((where & (I4)a) | (~where & (I4)b)); }

/* Sums of pairs of products, each of which fits in 16 bits. */
static inline I4 add_pairs(I4 a, I4 b)
{
    const U8 products = (U8)a * (U8)b;
    return ((I4)((U4)products << 16) >> 16) + ((I4)products >> 16);
}

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
#define WHERE_NEGATIVE(x, yes, no) pick((x) < ZERO, yes, no)
#define MASK int64_t
#define MASK_OF(lanes) (lanes)
#define LOAD_MASK(p, m) load_part(p, m)
#define STORE_MASK(p, v, m) store_part(p, v, m)
#define PREFETCH(p) __builtin_prefetch(p)
#define WEIGHTS_AHEAD 8
#define INTS I4
#define AS_INTS(v) ((I4)(v))
#define AS_FLOATS(i) ((V4)(i))
#define SPLAT_INTS(s) ((I4){(s), (s), (s), (s)})
#define ADD_INTS(a, b) ((I4)((U4)(a) + (U4)(b)))
#define TO_FLOATS(i) __builtin_convertvector(i, V4)
#define TO_INTS(v) \
    ((I4)((v) + SPLAT(12582912.0f)) - 0x4b400000) /* below 2^22, to nearest even: 1.5 * 2^23 has no halves */
#define MAX(a, b) pick((a) > (b), a, b)
#define MIN(a, b) pick((a) < (b), a, b)
#define WIDEN(p) widen(p, 4)
#define WIDEN_MASK(p, m) widen(p, m)
#define WIDEN_SIGNED(p) widen_signed(p)
#define STORE_BYTES(p, i) store_bytes(p, i, 4)
#define STORE_BYTES_MASK(p, i, m) store_bytes(p, i, m)
#define EVEN_BYTES(x) ((I4)((U8)(x) & 255))
#define ODD_BYTES(x) ((I4)((U8)(x) >> 8))
#define EVEN_SIGNED(w) ((I4)((I8)((U8)(w) << 8) >> 8))
#define ODD_SIGNED(w) ((I4)((I8)(w) >> 8))
#define ADD_PAIRS(a, b) add_pairs(a, b)
#define LOAD_BF16(p) load_bf16(p, 4)
#define LOAD_BF16_MASK(p, m) load_bf16(p, m)
#define STORE_BF16(p, v) store_bf16(p, v, 4)
#define STORE_BF16_MASK(p, v, m) store_bf16(p, v, m)
#define FIRST_BF16(x) ((V4)((U4)(x) << 16))
#define SECOND_BF16(x) ((V4)((U4)(x) & 0xffff0000u))
#include "tile.inc"
#include "rows.inc"

/* 8 accumulators, 2 weights, a broadcast value and a product fit in the 16 registers of SSE2. */
#define UP_TO_4(X, nv) X(1, nv) X(2, nv) X(3, nv) X(4, nv)
#define ISA accel_portable
#define ISA_NAME "portable"
#define WIDTHS(X) X(1) X(2)
#define ROWS_FOR {0, 4, 4}
#define TILES(X) UP_TO_4(X, 1) UP_TO_4(X, 2)
#define NARROW_TILES(X) UP_TO_4(X, 1)
#define FOOTPRINT_ROWS 4
#define FOOTPRINT_TILES TILES
#include "isa.inc"

#define ISA_BYTES accel_portable_bytes
#define ROWS_FOR_BYTES ROWS_FOR
#define TILES_OF_BYTES TILES
#include "isa_bytes.inc"

#define ISA_BF16 accel_portable_bf16
#define ROWS_FOR_BF16 ROWS_FOR
#define TILES_OF_BF16 TILES
#include "isa_bf16.inc"
