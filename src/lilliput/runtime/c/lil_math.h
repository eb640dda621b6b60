/* The float functions of docs/format.md, "Exact arithmetic": every operation is one rounding to binary32, in the page's
 * order, so that every target gives the same bits. Internal; `restrict` here is the caller's promise. */
#ifndef LIL_MATH_H
#define LIL_MATH_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "lil_format.h"
#include "lil_tables.h"

#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "float arithmetic must round to binary32 at every step (x87: use -msse2 -mfpmath=sse)"
#endif
#ifdef __FAST_MATH__
#error "fast-math reorders sums: the results would not be those of docs/format.md"
#endif

#define LIL_LANES 16
#define LIL_INT8_MAX 127.0f
#define LIL_TINY 1e-30f /* rows whose largest magnitude is below this are zero */

/* x within [low, high]; NaN becomes low. */
static inline float lil_clamp(float x, float low, float high) {
    x = x >= low ? x : low;
    return x <= high ? x : high;
}

/* Nearest integer, half to even, for |x| <= 2^22: adding 1.5 * 2^23 leaves no bit for a fraction. (-0.25 gives +0.) */
static inline float lil_rint(float x) {
    const float magic = 12582912.0f;
    return (x + magic) - magic;
}

static inline float lil_relu(float x) {
    return x > 0.0f ? x : 0.0f;
}

/* 2^x for x <= 0, or 2^-126 for x below -126 and for NaN; relative error at most 1.1e-4. */
static inline float lil_exp2(float x) {
    x = x >= -126.0f ? x : -126.0f;
    const float n = lil_rint(x); /* 2^n is a normal number */
    const float r = x - n;
    float p = LIL_EXP2_C[0];
    for (int i = 1; i < 4; i++) {
        p = p * r + LIL_EXP2_C[i];
    }
    return p * lil_float_from_bits((uint32_t)((int32_t)n + 127) << 23);
}

/* The piecewise cubic h(|x|). */
static inline float lil_piecewise(const lil_cubics *p, float x) {
    const float u = lil_clamp(fabsf(x) * p->inverse_step, 0.0f, 31.999998f);
    const int32_t k = (int32_t)u;
    const float t = u - (float)k;
    return ((p->c3[k] * t + p->c2[k]) * t + p->c1[k]) * t + p->c0[k];
}

/* x * Phi(x), and its form with tanh; absolute error at most 2e-6. */
static inline float lil_gelu(float x) {
    return lil_relu(x) - lil_piecewise(&LIL_GELU, x);
}

static inline float lil_gelu_tanh(float x) {
    return lil_relu(x) - lil_piecewise(&LIL_GELU_TANH, x);
}

/* Either gelu, where its levels are all that is wanted; absolute error at most 8e-4. */
static inline float lil_coarse_gelu(const lil_lines *p, float x) {
    const float a = fabsf(x) <= LIL_LINES_END ? fabsf(x) : LIL_LINES_END;
    const int32_t k = (int32_t)lil_rint(a * LIL_LINES_STEPS);
    return lil_relu(x) - (p->c1[k] * a + p->c0[k]);
}

/* Absolute error at most 1e-5. */
static inline float lil_tanh(float x) {
    const float y = 1.0f - lil_piecewise(&LIL_TANH, x);
    return (x >= 0.0f ? y : 0.0f) - (x <= 0.0f ? y : 0.0f);
}

/* The fixed tree that ends every sum. */
static inline float lil_lane_tree(float lane[LIL_LANES]) {
    for (int width = LIL_LANES / 2; width > 1; width /= 2) {
        for (int j = 0; j < width; j++) {
            lane[j] += lane[j + width];
        }
    }
    return lane[0] + lane[1];
}

/* Sum of x[0..n). */
static inline float lil_sum(const float *restrict x, size_t n) {
    float lane[LIL_LANES] = {0.0f};
    size_t i = 0;
    for (; i + LIL_LANES <= n; i += LIL_LANES) {
        for (size_t j = 0; j < LIL_LANES; j++) {
            lane[j] += x[i + j];
        }
    }
    for (size_t j = 0; i + j < n; j++) {
        lane[j] += x[i + j];
    }
    return lil_lane_tree(lane);
}

/* Sum of x[i] * x[i] over [0..n). */
static inline float lil_sum_squares(const float *restrict x, size_t n) {
    float lane[LIL_LANES] = {0.0f};
    size_t i = 0;
    for (; i + LIL_LANES <= n; i += LIL_LANES) {
        for (size_t j = 0; j < LIL_LANES; j++) {
            lane[j] += x[i + j] * x[i + j];
        }
    }
    for (size_t j = 0; i + j < n; j++) {
        lane[j] += x[i + j] * x[i + j];
    }
    return lil_lane_tree(lane);
}

/* Largest |x[i]| over [0..n), at least 0. NaN never wins, so any order gives the same: lanes are allowed. */
static inline float lil_max_magnitude(const float *restrict x, size_t n) {
    float lane[LIL_LANES] = {0.0f};
    size_t i = 0;
    for (; i + LIL_LANES <= n; i += LIL_LANES) {
        for (size_t j = 0; j < LIL_LANES; j++) {
            const float a = fabsf(x[i + j]);
            lane[j] = a > lane[j] ? a : lane[j];
        }
    }
    for (size_t j = 0; i + j < n; j++) {
        const float a = fabsf(x[i + j]);
        lane[j] = a > lane[j] ? a : lane[j];
    }
    float m = 0.0f;
    for (size_t j = 0; j < LIL_LANES; j++) {
        m = lane[j] > m ? lane[j] : m;
    }
    return m;
}

/* Symmetric int8 levels q[0..n), each -limit..limit, of x[0..n). Returns the scale: x ~ level * scale. */
static inline float lil_quantize_row(const float *restrict x, size_t n, float limit, int8_t *restrict q) {
    const float m = lil_max_magnitude(x, n);
    if (!(m >= LIL_TINY)) {
        memset(q, 0, n);
        return 0.0f;
    }
    const float inv = limit / m;
    for (size_t i = 0; i < n; i++) {
        q[i] = (int8_t)lil_rint(lil_clamp(x[i] * inv, -limit, limit));
    }
    return m / limit;
}

/* A level whose scale is a constant of the file. */
static inline int8_t lil_static_level(float x, float multiplier, float limit) {
    return (int8_t)lil_rint(lil_clamp(x * multiplier, -limit, limit));
}

#endif
