/* The innermost loops of AVX2's matrix product; what they compute is explained in simd_linear_avx2.h. Internal. */
#ifndef LIL_SIMD_PRODUCT_AVX2_H
#define LIL_SIMD_PRODUCT_AVX2_H

#include "simd_lanes_avx2.h"

enum {
    BLOCK = 4,       /* rows whose sums stay in registers */
    SMALL_BLOCK = 3, /* the same of pot4 in runs, whose 16-bit sums take registers too */
    INT4_RUN = 8,    /* tiles whose products are added in 16 bits */
    INT6_RUN = 2,    /* of apot4 too */
    POT4_RUN = 4,
};

/* Whether a format's levels are multiplied as words. */
LIL_INLINE bool is_widened(uint16_t format) {
    return format == LIL_INT8 || format == LIL_APOT6;
}

/* Some rows of a group by 16 outputs. A tile of 64 bytes has four levels of 16 outputs, or, widened, two; each is
 * multiplied by four bytes of a row's activations. */
typedef struct product {
    const uint8_t *rows; /* which of the group */
    const uint8_t *x;    /* the group's activations */
    size_t stride;       /* bytes from one row to the next */
    const uint8_t *w;
    size_t tiles;        /* an even number */
    int32_t *sums;       /* [group][16], added to */
    const int32_t *bias; /* pot4: of each run two words, where 16-bit sums begin; NULL: each pair goes to 32 bits */
    size_t num_biases;   /* from one row of the group to the next */
} product;

LIL_INLINE __m256i load_bytes(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
LIL_INLINE void store_bytes(void *p, __m256i x) {
    _mm256_storeu_si256((__m256i *)p, x);
}

/* Load the sums of `count` rows, a literal at each call, here and below; and find where their activations are. */
LIL_INLINE void begin_rows(const product *p, size_t count, __m256i acc[BLOCK][2], const uint8_t *x[BLOCK]) {
    LIL_UNROLL
    for (size_t r = 0; r < count; r++) {
        acc[r][0] = load_bytes(p->sums + 16 * p->rows[r]);
        acc[r][1] = load_bytes(p->sums + 16 * p->rows[r] + 8);
        x[r] = p->x + p->rows[r] * p->stride;
    }
}
LIL_INLINE void end_rows(const product *p, size_t count, __m256i acc[BLOCK][2]) {
    LIL_UNROLL
    for (size_t r = 0; r < count; r++) {
        store_bytes(p->sums + 16 * p->rows[r], acc[r][0]);
        store_bytes(p->sums + 16 * p->rows[r] + 8, acc[r][1]);
    }
}

/* Each pair of products goes to 32 bits: of words, or (pot4) of bytes. `words` is a literal too. */
LIL_INLINE void multiply_pairs(const product *p, bool words, size_t count) {
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t *w = p->w, *x[BLOCK];
    __m256i acc[BLOCK][2];
    begin_rows(p, count, acc, x);
    for (size_t at = 0; at < 4 * p->tiles; at += 8, w += 128) {
        LIL_UNROLL
        for (size_t i = 0; i < 2; i++) {
            const __m256i w0 = load_bytes(w + 64 * i), w1 = load_bytes(w + 64 * i + 32);
            LIL_UNROLL
            for (size_t r = 0; r < count; r++) {
                const __m256i four = lanes_repeat_four(x[r] + at + 4 * i);
                const __m256i p0 = words ? _mm256_madd_epi16(w0, four)
                                         : _mm256_madd_epi16(_mm256_maddubs_epi16(w0, four), ones);
                const __m256i p1 = words ? _mm256_madd_epi16(w1, four)
                                         : _mm256_madd_epi16(_mm256_maddubs_epi16(w1, four), ones);
                acc[r][0] = lanes_add_ints(acc[r][0], p0);
                acc[r][1] = lanes_add_ints(acc[r][1], p1);
            }
        }
    }
    end_rows(p, count, acc);
}

/* The pairs of `run` tiles are added in 16 bits, from p->bias on or (but for pot4) from 0, and then to 32 bits; p->tiles
 * is a multiple of `run`, which is a literal too. */
LIL_INLINE void multiply_whole_runs(const product *p, size_t run, bool biased, size_t count) {
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t *w = p->w, *x[BLOCK];
    const int32_t *bias[BLOCK];
    __m256i acc[BLOCK][2];
    begin_rows(p, count, acc, x);
    if (biased) {
        LIL_UNROLL
        for (size_t r = 0; r < count; r++) {
            bias[r] = p->bias + p->rows[r] * p->num_biases;
        }
    }
    for (size_t at = 0; at < 4 * p->tiles; at += 4 * run, w += 64 * run) {
        __m256i pairs[BLOCK][2];
        if (biased) {
            LIL_UNROLL
            for (size_t r = 0; r < count; r++) {
                pairs[r][0] = pairs[r][1] = lanes_repeat_four((const uint8_t *)bias[r] + at / run);
            }
        }
        LIL_UNROLL
        for (size_t i = 0; i < run; i++) {
            const __m256i w0 = load_bytes(w + 64 * i), w1 = load_bytes(w + 64 * i + 32);
            LIL_UNROLL
            for (size_t r = 0; r < count; r++) {
                const __m256i four = lanes_repeat_four(x[r] + at + 4 * i);
                const __m256i p0 = _mm256_maddubs_epi16(w0, four), p1 = _mm256_maddubs_epi16(w1, four);
                pairs[r][0] = i == 0 && !biased ? p0 : lanes_add_words(pairs[r][0], p0);
                pairs[r][1] = i == 0 && !biased ? p1 : lanes_add_words(pairs[r][1], p1);
            }
        }
        LIL_UNROLL
        for (size_t r = 0; r < count; r++) {
            acc[r][0] = lanes_add_ints(acc[r][0], _mm256_madd_epi16(pairs[r][0], ones));
            acc[r][1] = lanes_add_ints(acc[r][1], _mm256_madd_epi16(pairs[r][1], ones));
        }
    }
    end_rows(p, count, acc);
}

/* The same of any even number of tiles. */
LIL_INLINE void multiply_runs(const product *p, size_t run, bool biased, size_t count) {
    product whole = *p, rest = *p;
    rest.tiles = p->tiles % run;
    whole.tiles = p->tiles - rest.tiles;
    rest.x += 4 * whole.tiles;
    rest.w += 64 * whole.tiles;
    rest.bias = biased ? p->bias + whole.tiles / run : NULL;
    if (whole.tiles > 0) {
        multiply_whole_runs(&whole, run, biased, count);
    }
    if (rest.tiles > 0) {
        multiply_whole_runs(&rest, 2, biased, count);
    }
}

#define LIL_SUMS_OF(n, fits)                                                                                          \
    case n:                                                                                                           \
        if (is_widened(format)) {                                                                                     \
            multiply_pairs(p, true, n);                                                                               \
        } else if (format == LIL_INT4) {                                                                              \
            multiply_runs(p, INT4_RUN, false, n);                                                                     \
        } else if (format == LIL_INT6 || format == LIL_APOT4) {                                                       \
            multiply_runs(p, INT6_RUN, false, n);                                                                     \
        } else if (p->bias == NULL) {                                                                                 \
            multiply_pairs(p, false, n);                                                                              \
        } else if (fits) {                                                                                            \
            multiply_runs(p, POT4_RUN, true, n);                                                                      \
        }                                                                                                             \
        break

/* Multiply `count` rows, at most BLOCK, and SMALL_BLOCK where there are biases. */
static void multiply(const product *p, uint16_t format, size_t count) {
    switch (count) {
        LIL_SUMS_OF(1, true);
        LIL_SUMS_OF(2, true);
        LIL_SUMS_OF(3, true);
        LIL_SUMS_OF(4, false);
    }
}

#endif
