/* exp, gelu, quantize_row and what the kernels of simd_*.h share, on sixteen lanes. Internal; each equals its scalar
 * twin of lil_math.h bit for bit. */
#ifndef LIL_SIMD_MATH_H
#define LIL_SIMD_MATH_H

#include "lil_math.h"

#ifndef LIL_SIMD_LANES_H
#error "include one simd_lanes_*.h first"
#endif

/* x[i] = 2^x[i] for x[i] <= 0 or NaN (then 2^-126), step by step for all n (1..LIL_CHAINS, a literal): a processor
 * looks ahead too little to find the next chain of so many dependent operations by itself. */
LIL_INLINE void lanes_exp2(lanes *x, size_t n) {
    const lanes magic = lanes_set(12582912.0f); /* 1.5 * 2^23: adding it rounds, see lil_rint */
    lanes biased[LIL_CHAINS], p[LIL_CHAINS];
    LIL_UNROLL
    for (size_t i = 0; i < n; i++) {
        x[i] = lanes_max(x[i], lanes_set(-126.0f));
        biased[i] = lanes_add(x[i], magic);
        x[i] = lanes_sub(x[i], lanes_sub(biased[i], magic));
        p[i] = lanes_set(LIL_EXP2_C[0]);
    }
    LIL_UNROLL
    for (int c = 1; c < 4; c++) {
        LIL_UNROLL
        for (size_t i = 0; i < n; i++) {
            p[i] = lanes_add(lanes_mul(p[i], x[i]), lanes_set(LIL_EXP2_C[c]));
        }
    }
    LIL_UNROLL
    for (size_t i = 0; i < n; i++) { /* p is 0.7 to 1.5, and above 1 where n is -126: a normal number */
        x[i] = lanes_times_power(p[i], biased[i]);
    }
}

LIL_INLINE lanes lanes_relu(lanes x) {
    return lanes_max(x, lanes_zero());
}

LIL_INLINE lanes lanes_gelu(lanes x) {
    const lanes scaled = lanes_mul(lanes_abs(x), lanes_set(LIL_GELU_INV_STEP));
    const lanes u = lanes_min(lanes_max(scaled, lanes_zero()), lanes_set(31.999998f));
    const lanes_i32 k = lanes_truncate(u);
    const lanes t = lanes_sub(u, lanes_from_i32(k));
#ifdef LIL_LOOK_UP_FOURS /* four values that lie together are faster to find than four times one */
    lanes c[4];
    lanes_look_up_fours(LIL_GELU_C, k, c);
#else
    const lanes c[4] = {lanes_look_up(LIL_GELU_C3, k), lanes_look_up(LIL_GELU_C2, k), lanes_look_up(LIL_GELU_C1, k),
                        lanes_look_up(LIL_GELU_C0, k)};
#endif
    const lanes h = lanes_add(lanes_mul(lanes_add(lanes_mul(lanes_add(lanes_mul(c[0], t), c[1]), t), c[2]), t), c[3]);
    return lanes_sub(lanes_relu(x), h);
}

/* The format's lanes of a sum of x[0..n). A tail's missing elements add +0, which changes no sum that began at +0. */
LIL_INLINE lanes simd_sum(const float *x, size_t n) {
    lanes sum = lanes_zero();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        sum = lanes_add(sum, lanes_load(x + i));
    }
    if (i < n) {
        sum = lanes_add(sum, lanes_load_part(x + i, n - i));
    }
    return sum;
}

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

/* What quantises 16 rows: level = rint(max(x * inverse, low)). A row of zeros has low 0, so that NaN becomes 0 there and
 * -127 elsewhere, as lil_quantize_row has it; x * inverse cannot pass 127 by as much as 0.5. */
typedef struct row_scales {
    _Alignas(64) float inverse[ROWS];
    float low[ROWS];
    float scale[ROWS];
} row_scales;

/* Scales of `rows` (1..16) rows of n floats, `stride` apart; the missing ones are as rows of zeros. */
LIL_INLINE void simd_row_scales(const float *x, size_t stride, size_t rows, size_t n, row_scales *s) {
    lanes largest[ROWS];
    LIL_UNROLL
    for (size_t r = 0; r < ROWS; r++) {
        largest[r] = r < rows ? simd_magnitudes(x + r * stride, n) : lanes_zero();
    }
    const lanes m = lanes_largest16(largest), tiny = lanes_set(LIL_TINY), top = lanes_set(127.0f);
    lanes_store(s->inverse, lanes_where_ge(m, tiny, lanes_div(top, m)));
    lanes_store(s->low, lanes_where_ge(m, tiny, lanes_set(-127.0f)));
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
