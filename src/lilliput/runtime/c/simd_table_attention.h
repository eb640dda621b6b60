/* table_attention on sixteen lanes, each of them one key: a query's weights lie together, as the format's table gives
 * them, and all sums are of integers. Internal; included once by each simd_<isa>.c.
 *
 * In the scratch of one head (lil_table_scratch):
 *   keys     int8 [Tp / 16][dp / 4][16 tokens][4 dims]
 *   values   int8 [dp / 16][ceil(T / 4)][16 dims][4 tokens]
 *   queries  int8 [16 queries][dp]
 *   scores   float [Tp / 16][16 queries][16 tokens]
 *   weights  uint8 [16 queries][T64], 0 behind the last token */
#ifndef LIL_SIMD_TABLE_ATTENTION_H
#define LIL_SIMD_TABLE_ATTENTION_H

#include "simd_heads.h"

/* What there is beside `head`, of up to 16 queries. */
typedef struct queries {
    size_t padded_tokens; /* Tp */
    size_t row;           /* T64 */
    size_t count;
    _Alignas(64) float scale[ROWS];   /* of each query's levels, times logit_scale */
    _Alignas(64) float largest[ROWS]; /* of its scores */
} queries;

/* All values of the head with one scale, which is returned. */
static float quantize_values_together(const head *h) {
    lanes m = lanes_zero();
    for (size_t t = 0; t < h->num_tokens; t++) {
        m = lanes_max(simd_magnitudes(h->v + t * h->row_stride, h->head_dim), m);
    }
    const float largest = lanes_largest(m);
    const bool alive = largest >= LIL_TINY;
    row_scales s;
    for (size_t r = 0; r < ROWS; r++) {
        s.inverse[r] = alive ? 127.0f / largest : 0.0f;
        s.low[r] = alive ? -127.0f : 0.0f;
    }
    for (size_t t0 = 0; t0 < h->num_tokens; t0 += ROWS) {
        store_values(h, t0, h->num_tokens - t0 < ROWS ? h->num_tokens - t0 : ROWS, &s);
    }
    return alive ? largest / 127.0f : 0.0f;
}

/* Queries [q0, q0 + count): levels in plain rows. */
static void quantize_queries(const head *h, size_t q0, queries *q) {
    const float *x = h->q + q0 * h->row_stride;
    row_scales s;
    simd_row_scales(x, h->row_stride, q->count, h->head_dim, LIL_INT8_MAX, &s);
    lanes_store(q->scale, lanes_mul(lanes_load(s.scale), lanes_set(h->logit_scale)));
    for (size_t r = 0; r < q->count; r++) {
        simd_store_levels(x + r * h->row_stride, h->head_dim, &s, r, h->queries + r * h->width, h->width);
    }
}

/* -LIL_OFFSET times the sum of a query's levels, in each lane. */
LIL_INLINE lanes_i32 offset_of(const int8_t *levels, size_t width) {
#if LIL_OFFSET
    lanes_i32 sum = lanes_i32_set(0);
    for (size_t d = 0; d < width; d += 4) {
        sum = lanes_dot_levels(sum, lanes_offset_of_zeros(), levels + d);
    }
    return lanes_i32_sub(lanes_i32_set(0), sum);
#else
    (void)levels;
    (void)width;
    return lanes_i32_set(0);
#endif
}

/* Scores of `count` (a literal) queries from number r on, and the largest of each, lane by lane. */
LIL_INLINE void score_queries(const head *h, const queries *q, size_t r, size_t count, lanes largest[ROWS]) {
    const int8_t *levels = h->queries + r * h->width;
    lanes most[LIL_KEYS];
    lanes_i32 offset[LIL_KEYS];
    LIL_UNROLL
    for (size_t i = 0; i < count; i++) {
        most[i] = lanes_set(-INFINITY);
        offset[i] = offset_of(levels + i * h->width, h->width);
    }
    for (size_t j0 = 0; j0 < h->num_tokens; j0 += 16) {
        const int8_t *keys = h->keys + j0 * h->width;
        lanes_i32 acc[LIL_KEYS];
        LIL_UNROLL
        for (size_t i = 0; i < count; i++) {
            acc[i] = lanes_i32_set(0);
        }
        for (size_t d = 0; d < h->width; d += 4, keys += 64) {
            const lanes_tile tile = lanes_offset_tile(keys);
            LIL_UNROLL
            for (size_t i = 0; i < count; i++) {
                acc[i] = lanes_dot_levels(acc[i], tile, levels + i * h->width + d);
            }
        }
        const lanes key_scales = lanes_load(h->key_scales + j0);
        LIL_UNROLL
        for (size_t i = 0; i < count; i++) {
            const lanes dot = lanes_from_i32(lanes_i32_add(acc[i], offset[i]));
            lanes s = lanes_mul(lanes_mul(dot, lanes_set(q->scale[r + i])), key_scales);
            if (j0 + 16 > h->num_tokens) {
                s = lanes_first(s, lanes_set(-INFINITY), h->num_tokens - j0);
            }
            lanes_store(h->scores + 16 * (j0 + r + i), s);
            most[i] = lanes_max(s, most[i]);
        }
    }
    LIL_UNROLL
    for (size_t i = 0; i < count; i++) {
        largest[r + i] = most[i];
    }
}

static void score_all(const head *h, queries *q) {
    lanes largest[ROWS];
    size_t r = 0;
    for (; r + LIL_KEYS <= q->count; r += LIL_KEYS) {
        score_queries(h, q, r, LIL_KEYS, largest);
    }
    for (; r < q->count; r++) {
        score_queries(h, q, r, 1, largest);
    }
    for (; r < ROWS; r++) {
        largest[r] = lanes_zero();
    }
    lanes_store(q->largest, lanes_largest16(largest));
}

/* Scores of one query to weights; gives lanes that add up to their sum, which is below 2^23: exactly, in any order. */
LIL_INLINE lanes weigh_query(const head *h, const queries *q, size_t r) {
    const float *scores = h->scores + 16 * r;
    uint8_t *weights = (uint8_t *)h->probabilities + r * q->row;
    const lanes largest = lanes_set(q->largest[r]), last = lanes_set(255.0f);
    lanes_i32 sum = lanes_i32_set(0);
    for (size_t j = 0; j < q->row; j += 64) {
        lanes_i32 t[4];
        LIL_UNROLL
        for (size_t i = 0; i < 4; i++) {
            const size_t at = j + 16 * i;
            const lanes x = at < q->padded_tokens ? lanes_sub(largest, lanes_load(scores + 16 * at)) : last;
            t[i] = lanes_round(lanes_min(x, last));
        }
        sum = lanes_store_weights(weights + j, t, sum);
    }
    return lanes_from_i32(sum);
}

/* Scores to weights; gives what the sums of the values that they weigh are multiplied with. */
static void weigh_all(const head *h, const queries *q, float value_scale, float scale[ROWS]) {
    lanes partial[ROWS];
    for (size_t r = 0; r < ROWS; r++) {
        partial[r] = r < q->count ? weigh_query(h, q, r) : lanes_zero();
    }
    const lanes sum = lanes_tree16(partial);
    lanes_store(scale, lanes_where_ge(sum, lanes_set(1.0f), lanes_div(lanes_set(value_scale), sum)));
}

static void mix_queries(const head *h, const queries *q, const float scale[ROWS], float *y) {
    size_t r = 0;
    for (; r + LIL_MIXED <= q->count; r += LIL_MIXED) {
        mix_all(h, scale + r, (mixture){h->probabilities + r * q->row, 4, q->row}, LIL_MIXED, y + r * h->out_stride);
    }
    for (; r < q->count; r++) {
        mix_all(h, scale + r, (mixture){h->probabilities + r * q->row, 4, q->row}, 1, y + r * h->out_stride);
    }
}

/* How one instruction set makes the integer products: scores and their largest, and the outputs from the weights. */
typedef struct products {
    void (*score)(const head *h, queries *q);
    void (*mix)(const head *h, const queries *q, const float scale[ROWS], float *y);
} products;

LIL_INLINE void table_attention_with(const lil_call *call, const lil_part *part, const products *by) {
    const size_t num_heads = call->a[0], head_dim = call->a[1], block = num_heads * head_dim;
    const float *x = call->in[0].data;
    uint8_t *base = part->scratch;
    lil_table_scratch at;
    (void)lil_table_layout(call->in[0].rows, head_dim, &at); /* lil_open has done it: it fits */
    for (size_t n = part->begin; n < part->end; n++) {
        const head h = {
            .num_tokens = call->in[0].rows,
            .head_dim = head_dim,
            .width = (size_t)at.width,
            .row_stride = 3 * block,
            .out_stride = block,
            .logit_scale = lil_float_from_bits(call->a[2]),
            .q = x + n * head_dim,
            .k = x + block + n * head_dim,
            .v = x + 2 * block + n * head_dim,
            .y = (float *)call->out[0].data + n * head_dim,
            .keys = (int8_t *)(base + at.keys),
            .values = (int8_t *)(base + at.values),
            .queries = (int8_t *)(base + at.queries),
            .key_scales = (float *)(void *)(base + at.key_scales),
            .scores = (float *)(void *)(base + at.scores),
            .probabilities = (int8_t *)(base + at.weights),
        };
        for (size_t t0 = 0; t0 < h.num_tokens; t0 += ROWS) {
            quantize_tiles(&h, h.k + t0 * h.row_stride, h.num_tokens - t0 < ROWS ? h.num_tokens - t0 : ROWS,
                           h.keys + t0 * h.width, h.key_scales + t0);
        }
        const float value_scale = quantize_values_together(&h);
        queries q = {.padded_tokens = (h.num_tokens + 15) / 16 * 16, .row = (size_t)at.row};
        for (size_t q0 = 0; q0 < call->out[0].rows; q0 += ROWS) {
            q.count = call->out[0].rows - q0 < ROWS ? call->out[0].rows - q0 : ROWS;
            quantize_queries(&h, q0, &q);
            by->score(&h, &q);
            _Alignas(64) float scale[ROWS];
            weigh_all(&h, &q, value_scale, scale);
            by->mix(&h, &q, scale, h.y + q0 * h.out_stride);
        }
    }
}

#endif
