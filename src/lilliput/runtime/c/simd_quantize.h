/* quantize_row on sixteen lanes, for 16 rows together. Internal; equal to its scalar twin of lil_math.h bit for bit. */
#ifndef LIL_SIMD_QUANTIZE_H
#define LIL_SIMD_QUANTIZE_H

#include "simd_math.h"

/* Lane-wise maxima of |x[i]| over [0..n), at least 0; NaN never wins. */
LIL_INLINE lanes simd_magnitudes(const float *x, size_t n) {
    lanes m = lanes_zero();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        m = lanes_max_abs(lanes_load(x + i), m);
    }
    if (i < n) {
        m = lanes_max_abs(lanes_load_part(x + i, n - i), m);
    }
    return m;
}

enum { ROWS = 16 }; /* rows whose lanes are reduced together */

/* What quantises 16 rows: level = rint(max(x * inverse, low)). A row of zeros has low 0, so that NaN becomes 0 there
 * and -limit elsewhere, as lil_quantize_row has it; x * inverse cannot pass the limit by as much as 0.5. */
typedef struct row_scales {
    _Alignas(64) float inverse[ROWS];
    float low[ROWS];
    float scale[ROWS];
} row_scales;

/* Scales of `rows` (1..16) rows of n floats, `stride` apart; the missing ones are as rows of zeros. Levels are -limit to
 * limit. */
static void simd_row_scales(const float *x, size_t stride, size_t rows, size_t n, float limit, row_scales *s) {
    lanes largest[ROWS];
    for (size_t r = 0; r < ROWS; r++) {
        largest[r] = r < rows ? simd_magnitudes(x + r * stride, n) : lanes_zero();
    }
    const lanes m = lanes_largest16(largest), tiny = lanes_set(LIL_TINY), top = lanes_set(limit);
    lanes_store(s->inverse, lanes_where_ge(m, tiny, lanes_div(top, m)));
    lanes_store(s->low, lanes_where_ge(m, tiny, lanes_set(-limit)));
    lanes_store(s->scale, lanes_where_ge(m, tiny, lanes_div(m, top)));
}

LIL_INLINE lanes_i32 simd_levels(lanes x, const row_scales *s, size_t r) {
    return lanes_round(lanes_max(lanes_mul(x, lanes_set(s->inverse[r])), lanes_set(s->low[r])));
}

/* Levels of row r, and 0 into q[n..padded). */
LIL_INLINE void simd_store_levels(const float *x, size_t n, const row_scales *s, size_t r, int8_t *q, size_t padded) {
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const lanes_i32 levels[4] = {simd_levels(lanes_load(x + i), s, r), simd_levels(lanes_load(x + i + 16), s, r),
                                     simd_levels(lanes_load(x + i + 32), s, r),
                                     simd_levels(lanes_load(x + i + 48), s, r)};
        lanes_i32_store_i8x4(q + i, levels);
    }
    for (; i + 16 <= n; i += 16) {
        lanes_i32_store_i8(q + i, simd_levels(lanes_load(x + i), s, r));
    }
    if (i < n) {
        lanes_i32_store_i8_part(q + i, simd_levels(lanes_load_part(x + i, n - i), s, r), n - i);
        i = n;
    }
    for (; i < padded; i++) {
        q[i] = 0;
    }
}

#endif
