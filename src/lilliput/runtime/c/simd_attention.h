/* attention on sixteen lanes, each of them one query: scores, exponentials and sums need no step across lanes, and a
 * sum's 16 lanes of the format are 16 vectors. Internal; included once by each simd_<isa>.c.
 *
 * In the scratch of one head (lil_attention_scratch):
 *   keys           int8 [T][dp]
 *   values         int8 [dp / 16][ceil(T / 4)][16 dims][4 tokens]
 *   queries        int8 [dp / 4][16 queries][4 dims], LIL_QUERY_OFFSET added
 *   scores         float [T][16 queries]
 *   probabilities  int8 [ceil(T / 4)][16 queries][4 tokens] */
#ifndef LIL_SIMD_ATTENTION_H
#define LIL_SIMD_ATTENTION_H

#include "simd_math.h"

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
    float *value_scales;
    int32_t *key_sums; /* -LIL_QUERY_OFFSET times the sum of a key's levels */
    float *scores;
    int8_t *probabilities;
} head;

/* Levels [16 rows] of dims [d, d + 16) of rows of head_dim floats; past head_dim they are 0. */
LIL_INLINE lanes_i32 levels_at(const head *h, const float *x, const row_scales *s, size_t r, size_t d) {
    const float *p = x + r * h->row_stride + d;
    return simd_levels(d + 16 <= h->head_dim ? lanes_load(p) : lanes_load_part(p, h->head_dim - d), s, r);
}

static void quantize_keys(const head *h) {
    for (size_t t0 = 0; t0 < h->num_tokens; t0 += ROWS) {
        const size_t rows = h->num_tokens - t0 < ROWS ? h->num_tokens - t0 : ROWS;
        const float *x = h->k + t0 * h->row_stride;
        row_scales s;
        simd_row_scales(x, h->row_stride, rows, h->head_dim, &s);
        memcpy(h->key_scales + t0, s.scale, sizeof s.scale);
        for (size_t r = 0; r < rows; r++) {
            int8_t *key = h->keys + (t0 + r) * h->width;
            lanes_i32 sum = lanes_i32_set(0);
            for (size_t d = 0; d < h->width; d += 16) {
                const lanes_i32 levels = levels_at(h, x, &s, r, d);
                lanes_i32_store_i8(key + d, levels);
                sum = lanes_i32_add(sum, levels);
            }
            h->key_sums[t0 + r] = -LIL_QUERY_OFFSET * lanes_i32_sum(sum);
        }
    }
}

static void quantize_values(const head *h) {
    const size_t fours = (h->num_tokens + 3) / 4;
    for (size_t t0 = 0; t0 < h->num_tokens; t0 += ROWS) {
        const size_t rows = h->num_tokens - t0 < ROWS ? h->num_tokens - t0 : ROWS;
        const float *x = h->v + t0 * h->row_stride;
        row_scales s;
        simd_row_scales(x, h->row_stride, rows, h->head_dim, &s);
        memcpy(h->value_scales + t0, s.scale, sizeof s.scale);
        for (size_t d = 0; d < h->width; d += 16) {
            int8_t *tile = h->values + 64 * (d / 16 * fours + t0 / 4);
            for (size_t r = 0; r < rows; r += 4, tile += 64) {
                lanes_i32 levels[4];
                for (size_t i = 0; i < 4; i++) {
                    levels[i] = r + i < rows ? levels_at(h, x, &s, r + i, d) : lanes_i32_set(0);
                }
                lanes_i32_store_fours(tile, levels);
            }
        }
    }
}

/* The tile of `count` queries from number q0 on; gives their scales. The other lanes repeat the last one. */
static void quantize_queries(const head *h, size_t q0, size_t count, float scale[ROWS]) {
    const float *x = h->q + q0 * h->row_stride;
    row_scales s;
    simd_row_scales(x, h->row_stride, count, h->head_dim, &s);
    memcpy(scale, s.scale, sizeof s.scale);
    for (size_t d = 0; d < h->width; d += 16) {
        int8_t levels[ROWS][16];
        for (size_t r = 0; r < ROWS; r++) {
            lanes_i32_store_i8(levels[r], levels_at(h, x, &s, r < count ? r : count - 1, d));
        }
        lanes_store_query_tiles(h->queries + 16 * d, levels);
    }
}

/* scores[j] = s[j] of 16 queries, whose scales times logit_scale are c; gives the largest. */
LIL_INLINE lanes score(const head *h, lanes c) {
    enum { KEYS = 8 };
    lanes largest = lanes_zero();
    for (size_t j0 = 0; j0 < h->num_tokens; j0 += KEYS) {
        const int8_t *keys = h->keys + j0 * h->width;
        lanes_i32 acc[KEYS];
        for (size_t i = 0; i < KEYS; i++) {
            acc[i] = lanes_i32_set(h->key_sums[j0 + i]);
        }
        for (size_t d = 0; d < h->width; d += 4) {
            for (size_t i = 0; i < KEYS; i++) {
                acc[i] = lanes_dot_queries(acc[i], h->queries + 16 * d, keys + i * h->width + d);
            }
        }
        const size_t count = h->num_tokens - j0 < KEYS ? h->num_tokens - j0 : KEYS;
        for (size_t i = 0; i < count; i++) {
            const lanes s = lanes_mul(lanes_mul(lanes_from_i32(acc[i]), c), lanes_set(h->key_scales[j0 + i]));
            lanes_store(h->scores + 16 * (j0 + i), s);
            largest = j0 + i == 0 ? s : lanes_max(s, largest);
        }
    }
    return largest;
}

/* Turn scores into the levels that multiply the values; gives their scales, 0 where all the levels' rows are zero, and
 * in `good` 1 or 0 for that. */
LIL_INLINE lanes weigh(const head *h, lanes largest) {
    const size_t n = h->num_tokens;
    float sums[16][16]; /* [lane of the format][query] */
    memset(sums, 0, sizeof sums);
    lanes w = lanes_zero();
    for (size_t j = 0; j < n; j++) {
        const lanes e = lanes_exp(lanes_sub(lanes_load(h->scores + 16 * j), largest));
        const lanes g = lanes_mul(e, lanes_set(h->value_scales[j]));
        lanes_store(sums[j % 16], lanes_add(lanes_load(sums[j % 16]), e));
        lanes_store(h->scores + 16 * j, g);
        w = lanes_max(g, w);
    }
    for (size_t width = 8; width > 0; width /= 2) {
        for (size_t j = 0; j < width; j++) {
            lanes_store(sums[j], lanes_add(lanes_load(sums[j]), lanes_load(sums[j + width])));
        }
    }
    const lanes top = lanes_set(127.0f), inverse = lanes_div(top, w);
    for (size_t j = 0; j < n; j += 4) {
        lanes_i32 p[4];
        for (size_t i = 0; i < 4; i++) { /* g * inverse cannot pass 127 by as much as 0.5; NaN becomes 0 */
            const lanes g = j + i < n ? lanes_load(h->scores + 16 * (j + i)) : lanes_zero();
            p[i] = lanes_round(lanes_max(lanes_mul(g, inverse), lanes_zero()));
        }
        lanes_i32_store_fours(h->probabilities + 16 * j, p);
    }
    const lanes scale = lanes_div(lanes_div(w, top), lanes_load(sums[0]));
    return lanes_where_ge(w, lanes_set(LIL_TINY), scale);
}

/* Outputs of `count` (1..8, a literal) queries from lane `lane` on, dims [d, d + 16). */
LIL_INLINE void mix(const head *h, const float *scale, size_t lane, size_t count, size_t d, float *y) {
    const size_t fours = (h->num_tokens + 3) / 4;
    const int8_t *values = h->values + 64 * (d / 16 * fours), *weights = h->probabilities + 4 * lane;
    lanes_i32 acc[8];
    for (size_t q = 0; q < count; q++) {
        acc[q] = lanes_i32_set(0);
    }
    for (size_t j = 0; j < fours; j++) {
        for (size_t q = 0; q < count; q++) {
            acc[q] = lanes_dot_values(acc[q], values + 64 * j, weights + 64 * j + 4 * q);
        }
    }
    for (size_t q = 0; q < count; q++, y += h->out_stride) {
        /* Where the scale is 0 the row is +0, whatever the sums are. */
        const lanes value = scale[lane + q] == 0.0f ? lanes_zero()
                                                    : lanes_mul(lanes_from_i32(acc[q]), lanes_set(scale[lane + q]));
        if (d + 16 <= h->head_dim) {
            lanes_store(y + d, value);
        } else {
            lanes_store_part(y + d, value, h->head_dim - d);
        }
    }
}

/* Queries [q0, q0 + count), at most 16. */
static void attend(const head *h, size_t q0, size_t count) {
    float scale[ROWS];
    quantize_queries(h, q0, count, scale);
    const lanes c = lanes_mul(lanes_load(scale), lanes_set(h->logit_scale));
    lanes_store(scale, weigh(h, score(h, c)));
    for (size_t d = 0; d < h->width; d += 16) {
        float *y = h->y + q0 * h->out_stride;
        size_t q = 0;
        for (; q + 8 <= count; q += 8) {
            mix(h, scale, q, 8, d, y + q * h->out_stride);
        }
        for (; q < count; q++) {
            mix(h, scale, q, 1, d, y + q * h->out_stride);
        }
    }
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
        for (size_t q = 0; q < num_queries; q += ROWS) {
            attend(&h, q, num_queries - q < ROWS ? num_queries - q : ROWS);
        }
    }
}

#endif
