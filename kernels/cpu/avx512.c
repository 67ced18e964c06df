/* The register kernels in AVX-512: 32 registers of 16 floats. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#include "avx512.h"
#include "tile.inc"
#include "rows.inc"

#define ISA accel_avx512
#define ISA_NAME "avx512"
#define NARROW_TILES(X) UP_TO_14(X, 1)
#define FOOTPRINT_ROWS 6
#define FOOTPRINT_TILES(X) UP_TO_6(X, 1) UP_TO_6(X, 2) UP_TO_6(X, 3) UP_TO_6(X, 4)
#include "isa.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
