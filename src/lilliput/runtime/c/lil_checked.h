/* Checked arithmetic on sizes and offsets. Every size that comes from a file is computed here, before it is aligned,
 * compared or added to a pointer: each function returns false, and leaves `out` alone, where the true result does
 * not fit. */
#ifndef LIL_CHECKED_H
#define LIL_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool lil_add(uint64_t a, uint64_t b, uint64_t *out) {
    if (b > UINT64_MAX - a) {
        return false;
    }
    *out = a + b;
    return true;
}

static inline bool lil_mul(uint64_t a, uint64_t b, uint64_t *out) {
    if (a != 0 && b > UINT64_MAX / a) {
        return false;
    }
    *out = a * b;
    return true;
}

/* The smallest multiple of `alignment` (a power of two) that is >= a. */
static inline bool lil_align(uint64_t a, uint64_t alignment, uint64_t *out) {
    uint64_t sum;
    if (!lil_add(a, alignment - 1, &sum)) {
        return false;
    }
    *out = sum & ~(alignment - 1);
    return true;
}

/* Whether [offset, offset + bytes) lies in [0, size). */
static inline bool lil_inside(uint64_t offset, uint64_t bytes, uint64_t size) {
    return offset <= size && bytes <= size - offset;
}

#endif
