/* The register kernels for bytes in AVX-512 with VNNI. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma")
#endif
#include "avx512.h"

#define DOT(x, w, a) AS_FLOATS(_mm512_dpbusd_epi32(AS_INTS(a), AS_INTS(x), AS_INTS(w))) /* wraps, never saturates */
#include "tile.inc"

#define ISA_NAME "vnni"
#define ISA_BYTES accel_vnni_bytes
#define ROWS_FOR_BYTES ROWS_FOR
#define TILES_OF_BYTES TILES
#include "isa_bytes.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
