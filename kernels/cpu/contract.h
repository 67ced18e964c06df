/* What the C functions take for granted, said at their heads. It is looked at in debug (-DACCEL_DEBUG) and sanitizer builds,
 * and costs others nothing. */
#ifndef ACCEL_CONTRACT_H
#define ACCEL_CONTRACT_H

#include <stdint.h>

#if defined(ACCEL_DEBUG) || defined(__SANITIZE_ADDRESS__)
#include <stdio.h>
#include <stdlib.h>
#define ACCEL_CHECKED 1

static inline _Noreturn void accel_broken(const char *function, const char *condition)
{
    fprintf(stderr, "accel: %s requires %s\n", function, condition);
    abort();
}

#define REQUIRE(condition) ((condition) ? (void)0 : accel_broken(__func__, #condition))
#else
#define ACCEL_CHECKED 0
#define REQUIRE(condition) ((void)sizeof((condition) ? 1 : 0)) /* nothing is evaluated */
#endif

/* An array of so many elements; what has none may be NULL. */
#define IS_ARRAY(p, count) is_array(p, count, _Alignof(__typeof__(*(p))))
#define IS_ARRAY_OR_NULL(p) ((uintptr_t)(p) % _Alignof(__typeof__(*(p))) == 0)

static inline int is_array(const void *p, int64_t count, uintptr_t alignment)
{
    return count == 0 || (count > 0 && p && (uintptr_t)p % alignment == 0);
}

static inline int are_within(const int32_t *values, int64_t count, int64_t low, int64_t end)
{
    for (int64_t i = 0; i < count; i++)
        if (values[i] < low || values[i] >= end)
            return 0;
    return 1;
}

/* CSR lists: starts [count + 1] of targets within [0, end). */
static inline int are_lists(const int32_t *starts, const int32_t *targets, int64_t count, int64_t end)
{
    if (!is_array(starts, count + 1, sizeof *starts) || starts[0] != 0)
        return 0;
    for (int64_t i = 0; i < count; i++)
        if (starts[i] > starts[i + 1])
            return 0;
    return is_array(targets, starts[count], sizeof *targets) && are_within(targets, starts[count], 0, end);
}

#endif
