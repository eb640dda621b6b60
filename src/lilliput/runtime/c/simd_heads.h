/* A head's levels as tiles of 16 x 4, on sixteen lanes, and the mixing of its values. Internal; included once by each
 * simd_<isa>.c. */
#ifndef LIL_SIMD_HEADS_H
#define LIL_SIMD_HEADS_H

#include "simd_quantize.h"

#ifndef LIL_KEYS /* a simd_lanes_*.h with fewer registers has its own. What is multiplied together: */
#define LIL_KEYS 8   /* keys by 16 queries; */
#define LIL_MIXED 8  /* queries */
#define LIL_SLICES 2 /* by so many times 16 dims of the values */
#endif

typedef struct head {
    size_t num_tokens;
    size_t head_dim;
    size_t width;      /* dp: head_dim padded to 16 */
    size_t row_stride; /* floats between two tokens of the input */
    size_t out_stride; /* and of the output */
    float logit_scale;
    const float *q;    /* the first token's; the next is row_stride further; the same for k and v */
    const float *k;
    const float *v;
    float *y;
    int8_t *keys;
    int8_t *values;
    int8_t *queries;
    float *key_scales;
    float *scores;
    int8_t *probabilities;
} head;

/* Levels [16 rows] of dims [d, d + 16) of rows of head_dim floats; past head_dim they are 0. */
LIL_INLINE lanes_i32 levels_at(const head *h, const float *x, const row_scales *s, size_t r, size_t d) {
    const float *p = x + r * h->row_stride + d;
    return simd_levels(d + 16 <= h->head_dim ? lanes_load(p) : lanes_load_part(p, h->head_dim - d), s, r);
}

/* 16 rows as tiles, and their scales; the missing ones repeat the last. */
static void quantize_tiles(const head *h, const float *x, size_t rows, int8_t *tiles, float scale[ROWS]) {
    row_scales s;
    simd_row_scales(x, h->row_stride, rows, h->head_dim, LIL_INT8_MAX, &s);
    memcpy(scale, s.scale, sizeof s.scale);
    for (size_t d = 0; d < h->width; d += 16) {
        lanes_i32 levels[ROWS];
        LIL_UNROLL
        for (size_t r = 0; r < ROWS; r++) {
            levels[r] = levels_at(h, x, &s, r < rows ? r : rows - 1, d);
        }
        lanes_store_tiles(tiles + 16 * d, levels);
    }
}

/* The values of up to 16 tokens from t0 on, as tiles. */
LIL_INLINE void store_values(const head *h, size_t t0, size_t rows, const row_scales *s) {
    const size_t fours = (h->num_tokens + 3) / 4;
    const float *x = h->v + t0 * h->row_stride;
    for (size_t d = 0; d < h->width; d += 16) {
        int8_t *tile = h->values + 64 * (d / 16 * fours + t0 / 4);
        for (size_t r = 0; r < rows; r += 4, tile += 64) {
            lanes_i32 levels[4];
            LIL_UNROLL
            for (size_t i = 0; i < 4; i++) {
                levels[i] = r + i < rows ? levels_at(h, x, s, r + i, d) : lanes_i32_set(0);
            }
            lanes_i32_store_fours(tile, levels);
        }
    }
}

LIL_INLINE void store_output(const head *h, lanes_i32 sum, float scale, size_t d, float *y) {
    /* Where the scale is 0 the row is +0, whatever the sums are. */
    const lanes value = scale == 0.0f ? lanes_zero() : lanes_mul(lanes_from_i32(sum), lanes_set(scale));
    if (d + 16 <= h->head_dim) {
        lanes_store(y + d, value);
    } else {
        lanes_store_part(y + d, value, h->head_dim - d);
    }
}

/* Weights of some queries: four tokens at a time, `four` bytes from those to the next and `query` from one query to the
 * next. */
typedef struct mixture {
    const int8_t *weights;
    size_t four;
    size_t query;
} mixture;

/* Outputs of `count` (1..LIL_MIXED) queries, dims [d, d + 16 * slices). Counts, and as far as they are known the
 * distances of weights, are literals at each call. */
LIL_INLINE void mix(const head *h, const float *scale, mixture from, size_t count, size_t d, size_t slices, float *y) {
    const size_t fours = (h->num_tokens + 3) / 4;
    const int8_t *values = h->values + 64 * (d / 16 * fours);
    lanes_i32 acc[2][LIL_MIXED];
    LIL_UNROLL
    for (size_t q = 0; q < count; q++) {
        acc[0][q] = acc[1][q] = lanes_i32_set(0);
    }
    for (const int8_t *end = values + 64 * fours; values < end; values += 64, from.weights += from.four) {
        const lanes_tile first = lanes_plain_tile(values);
        const lanes_tile second = slices == 2 ? lanes_plain_tile(values + 64 * fours) : first;
        LIL_UNROLL
        for (size_t q = 0; q < count; q++) {
            acc[0][q] = lanes_dot_weights(acc[0][q], first, from.weights + from.query * q);
            if (slices == 2) {
                acc[1][q] = lanes_dot_weights(acc[1][q], second, from.weights + from.query * q);
            }
        }
    }
    LIL_UNROLL
    for (size_t q = 0; q < count; q++) {
        store_output(h, acc[0][q], scale[q], d, y + q * h->out_stride);
        if (slices == 2) {
            store_output(h, acc[1][q], scale[q], d + 16, y + q * h->out_stride);
        }
    }
}

/* All dims of `count` queries; literals as for mix. */
LIL_INLINE void mix_all(const head *h, const float *scale, mixture from, size_t count, float *y) {
    const size_t slices = count == 1 ? 2 : LIL_SLICES;
    size_t d = 0;
    for (; d + 16 * slices <= h->width; d += 16 * slices) {
        mix(h, scale, from, count, d, slices, y);
    }
    if (d < h->width) {
        mix(h, scale, from, count, d, 1, y);
    }
}

#endif
