/* attention on sixteen lanes, each of them one query: scores, exponentials and sums need no step across lanes, and a
 * sum's 16 lanes of the format are 16 vectors. The few queries that are left are taken one by one, a lane a key.
 * Internal; included once by each simd_<isa>.c.
 *
 * In the scratch of one head (lil_attention_scratch), both integer operands as tiles of 16 x 4 levels:
 *   keys           int8 [Tp / 16][dp / 4][16 tokens][4 dims]
 *   values         int8 [dp / 16][ceil(T / 4)][16 dims][4 tokens]
 *   queries        int8 [dp / 4][16 queries][4 dims]; one query: [dp]
 *   scores         float [T][16 queries]; one query: [T]
 *   probabilities  int8 [ceil(T / 4)][16 queries][4 tokens]; one query: [T] */
#ifndef LIL_SIMD_ATTENTION_H
#define LIL_SIMD_ATTENTION_H

#include "simd_heads.h"

enum { FEW = 4 }; /* as many queries or fewer are faster one by one */

static void quantize_keys(const head *h) {
    static const int8_t ones[4] = {1, 1, 1, 1};
    for (size_t t0 = 0; t0 < h->num_tokens; t0 += ROWS) {
        const size_t rows = h->num_tokens - t0 < ROWS ? h->num_tokens - t0 : ROWS;
        int8_t *tiles = h->keys + t0 * h->width;
        quantize_tiles(h, h->k + t0 * h->row_stride, rows, tiles, h->key_scales + t0);
        lanes_i32 sum = lanes_i32_set(0);
        for (size_t d = 0; d < h->width && LIL_OFFSET != 0; d += 4) {
            sum = lanes_dot_weights(sum, lanes_plain_tile(tiles + 16 * d), ones);
        }
        /* |sum| <= 127 * 65536 < 2^24: exact as a float, and still an int32 times 128 */
        const lanes offset = lanes_mul(lanes_from_i32(sum), lanes_set(-(float)LIL_OFFSET));
        lanes_i32_store(h->key_sums + t0, lanes_round(offset));
    }
}

static void quantize_values(const head *h) {
    for (size_t t0 = 0; t0 < h->num_tokens; t0 += ROWS) {
        const size_t rows = h->num_tokens - t0 < ROWS ? h->num_tokens - t0 : ROWS;
        row_scales s;
        simd_row_scales(h->v + t0 * h->row_stride, h->row_stride, rows, h->head_dim, &s);
        memcpy(h->value_scales + t0, s.scale, sizeof s.scale);
        store_values(h, t0, rows, &s);
    }
}

/* scores[j] = s[j] of 16 queries, whose scales times logit_scale are c; gives the largest. */
LIL_INLINE lanes score(const head *h, lanes c) {
    enum { KEYS = LIL_KEYS }; /* together; those past the last key get scores that nobody looks at */
    const size_t n = h->num_tokens;
    lanes largest = lanes_zero();
    for (size_t j0 = 0; j0 < n; j0 += KEYS) {
        const int8_t *keys = h->keys + j0 / 16 * 16 * h->width + j0 % 16 * 4, *queries = h->queries;
        lanes_i32 acc[KEYS];
        LIL_UNROLL
        for (size_t i = 0; i < KEYS; i++) {
            acc[i] = lanes_i32_set(h->key_sums[j0 + i]);
        }
        for (const int8_t *end = queries + 16 * h->width; queries < end; keys += 64, queries += 64) {
            const lanes_tile tile = lanes_offset_tile(queries);
            LIL_UNROLL
            for (size_t i = 0; i < KEYS; i++) {
                acc[i] = lanes_dot_levels(acc[i], tile, keys + 4 * i);
            }
        }
        lanes s[KEYS];
        LIL_UNROLL
        for (size_t i = 0; i < KEYS; i++) {
            s[i] = lanes_mul(lanes_mul(lanes_from_i32(acc[i]), c), lanes_set(h->key_scales[j0 + i]));
            lanes_store(h->scores + 16 * (j0 + i), s[i]);
        }
        largest = j0 == 0 ? s[0] : lanes_max(s[0], largest);
        LIL_UNROLL
        for (size_t i = 1; i < KEYS; i++) {
            largest = j0 + i < n ? lanes_max(s[i], largest) : largest;
        }
    }
    return largest;
}

/* For `count` (a literal) keys from number j on: score to e * value scale. */
LIL_INLINE lanes exponentials(const head *h, lanes largest, size_t j, size_t count, float sums[16][16], lanes w) {
    lanes e[LIL_CHAINS];
    LIL_UNROLL
    for (size_t i = 0; i < count; i++) {
        e[i] = lanes_sub(lanes_load(h->scores + 16 * (j + i)), largest);
    }
    lanes_exp2(e, count);
    LIL_UNROLL
    for (size_t i = 0; i < count; i++) {
        float *sum = sums[(j + i) % 16];
        lanes_store(sum, lanes_add(lanes_load(sum), e[i]));
        e[i] = lanes_mul(e[i], lanes_set(h->value_scales[j + i]));
        lanes_store(h->scores + 16 * (j + i), e[i]);
        w = lanes_max(e[i], w);
    }
    return w;
}

/* Turn scores into the levels that multiply the values; gives their scales, 0 where all levels are to count as 0. */
LIL_INLINE lanes weigh(const head *h, lanes largest) {
    const size_t n = h->num_tokens;
    _Alignas(64) float sums[16][16]; /* [lane of the format][query] */
    for (size_t i = 0; i < 16; i++) {
        lanes_store(sums[i], lanes_zero());
    }
    lanes w = lanes_zero();
    size_t j = 0;
    for (; j + LIL_CHAINS <= n; j += LIL_CHAINS) {
        w = exponentials(h, largest, j, LIL_CHAINS, sums, w);
    }
    for (; j < n; j++) {
        w = exponentials(h, largest, j, 1, sums, w);
    }
    for (size_t width = 8; width > 0; width /= 2) {
        for (size_t i = 0; i < width; i++) {
            lanes_store(sums[i], lanes_add(lanes_load(sums[i]), lanes_load(sums[i + width])));
        }
    }
    const lanes top = lanes_set(127.0f), inverse = lanes_div(top, w);
    for (j = 0; j < n; j += 4) {
        lanes_i32 p[4];
        LIL_UNROLL
        for (size_t i = 0; i < 4; i++) { /* g * inverse cannot pass 127 by as much as 0.5; NaN becomes 0 */
            const lanes g = j + i < n ? lanes_load(h->scores + 16 * (j + i)) : lanes_zero();
            p[i] = lanes_round(lanes_max(lanes_mul(g, inverse), lanes_zero()));
        }
        lanes_i32_store_fours(h->probabilities + 16 * j, p);
    }
    const lanes scale = lanes_div(lanes_div(w, top), lanes_load(sums[0]));
    return lanes_where_ge(w, lanes_set(LIL_TINY), scale);
}

/* Queries [q0, q0 + count), at most 16. */
static void attend(const head *h, size_t q0, size_t count) {
    float *y = h->y + q0 * h->out_stride;
    _Alignas(64) float scale[ROWS];
    quantize_tiles(h, h->q + q0 * h->row_stride, count, h->queries, scale);
    const lanes c = lanes_mul(lanes_load(scale), lanes_set(h->logit_scale));
    lanes_store(scale, weigh(h, score(h, c)));
    size_t q = 0;
    for (; q + LIL_MIXED <= count; q += LIL_MIXED) {
        mix_all(h, scale + q, (mixture){h->probabilities + 4 * q, 64, 4}, LIL_MIXED, y + q * h->out_stride);
    }
    for (; q < count; q++) {
        mix_all(h, scale + q, (mixture){h->probabilities + 4 * q, 64, 4}, 1, y + q * h->out_stride);
    }
}

/* The same for one query, a lane a key. */
LIL_INLINE lanes score_one(const head *h, float query_scale) {
    const lanes c = lanes_set(query_scale * h->logit_scale);
    int32_t sum = 0;
    for (size_t d = 0; d < h->width; d++) {
        sum += h->queries[d];
    }
    lanes largest = lanes_zero();
    for (size_t j0 = 0; j0 < h->num_tokens; j0 += 16) {
        const int8_t *keys = h->keys + j0 * h->width;
        lanes_i32 acc[2] = {lanes_i32_set(-LIL_OFFSET * sum), lanes_i32_set(0)}; /* width / 4 is even: two chains */
        for (size_t d = 0; d < h->width; d += 8, keys += 128) {
            acc[0] = lanes_dot_levels(acc[0], lanes_offset_tile(keys), h->queries + d);
            acc[1] = lanes_dot_levels(acc[1], lanes_offset_tile(keys + 64), h->queries + d + 4);
        }
        const lanes dot = lanes_from_i32(lanes_i32_add(acc[0], acc[1]));
        const lanes s = lanes_mul(lanes_mul(dot, c), lanes_load(h->key_scales + j0));
        lanes_store(h->scores + j0, s);
        if (j0 == 0) {
            largest = lanes_set(h->scores[0]);
        }
        largest = lanes_max(lanes_first(s, largest, h->num_tokens - j0), largest);
    }
    return lanes_set(lanes_largest(largest));
}

static float weigh_one(const head *h, lanes largest) {
    const size_t n = h->num_tokens;
    lanes sum = lanes_zero(), top = lanes_zero();
    for (size_t j = 0; j < n; j += 16) {
        lanes e = lanes_sub(lanes_load(h->scores + j), largest);
        lanes_exp2(&e, 1);
        e = lanes_first(e, lanes_zero(), n - j);
        const lanes g = lanes_mul(e, lanes_load(h->value_scales + j));
        sum = lanes_add(sum, e);
        top = lanes_max(g, top);
        lanes_store(h->scores + j, g);
    }
    const float w = lanes_largest(top);
    if (!(w >= LIL_TINY)) {
        return 0.0f;
    }
    const lanes inverse = lanes_set(127.0f / w);
    for (size_t j = 0; j < n; j += 16) {
        const lanes p = lanes_max(lanes_mul(lanes_load(h->scores + j), inverse), lanes_zero());
        lanes_i32_store_i8(h->probabilities + j, lanes_round(p));
    }
    return (w / 127.0f) / lanes_tree(sum);
}

static void attend_one(const head *h, size_t q) {
    row_scales s;
    const float *x = h->q + q * h->row_stride;
    simd_row_scales(x, h->row_stride, 1, h->head_dim, &s);
    simd_store_levels(x, h->head_dim, &s, 0, h->queries, h->width);
    const float scale = weigh_one(h, score_one(h, s.scale[0]));
    mix_all(h, &scale, (mixture){h->probabilities, 4, 0}, 1, h->y + q * h->out_stride);
}

static void attention(const lil_call *call, const lil_part *part) {
    const size_t num_heads = call->a[0], head_dim = call->a[1], block = num_heads * head_dim;
    const float *x = call->in[0].data;
    uint8_t *base = part->scratch;
    lil_attention_scratch at;
    (void)lil_attention_layout(call->in[0].rows, head_dim, &at); /* lil_open has done it: it fits */
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
            .value_scales = (float *)(void *)(base + at.value_scales),
            .key_sums = (int32_t *)(void *)(base + at.key_sums),
            .scores = (float *)(void *)(base + at.scores),
            .probabilities = (int8_t *)(base + at.probabilities),
        };
        quantize_keys(&h);
        quantize_values(&h);
        const size_t num_queries = call->out[0].rows;
        size_t q = 0;
        for (; q + FEW < num_queries; q += ROWS) {
            attend(&h, q, num_queries - q < ROWS ? num_queries - q : ROWS);
        }
        for (; q < num_queries; q++) {
            attend_one(&h, q);
        }
    }
}

#endif
