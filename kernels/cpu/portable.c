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
#define ISA accel_portable
#define ISA_NAME "portable"
#define WIDTHS(X) X(1) X(2)
#define ROWS_FOR {0, 4, 4}
#define TILES(X) UP_TO_4(X, 1) UP_TO_4(X, 2)
#define NARROW_TILES(X) UP_TO_4(X, 1)
#define FOOTPRINT_ROWS 4
#define FOOTPRINT_TILES TILES
#include "isa.inc"
