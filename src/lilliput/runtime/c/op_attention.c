/* attention: full softmax attention whose two products are integer; q, k, v and the probabilities are quantised. */
#include "lil_checked.h"
#include "lil_kernels.h"
#include "lil_math.h"

enum { GROUP = 16 }; /* rows of levels are padded to this, so the integer loops have no rest */

/* Give `*part` the next `bytes` of the scratch, which are at `*end`. */
static bool place(uint64_t *end, uint64_t bytes, uint64_t *part) {
    *part = *end;
    return lil_add(*end, bytes, end);
}

bool lil_attention_layout(uint64_t num_tokens, uint64_t head_dim, lil_attention_scratch *scratch) {
    uint64_t tokens, levels, queries, floats, scores, probabilities, end = 0;
    return lil_align(num_tokens, GROUP, &tokens) && lil_align(head_dim, GROUP, &scratch->width) &&
           lil_mul(tokens, scratch->width, &levels) && lil_mul(scratch->width, LIL_QUERIES, &queries) &&
           lil_mul(tokens, sizeof(float), &floats) && lil_mul(floats, LIL_QUERIES, &scores) &&
           lil_mul(tokens, LIL_QUERIES, &probabilities) && place(&end, levels, &scratch->keys) &&
           place(&end, levels, &scratch->values) && place(&end, queries, &scratch->queries) &&
           place(&end, floats, &scratch->key_scales) && place(&end, floats, &scratch->value_scales) &&
           place(&end, floats, &scratch->key_sums) && place(&end, scores, &scratch->scores) &&
           place(&end, probabilities, &scratch->probabilities) && place(&end, 0, &scratch->bytes);
}

bool lil_table_layout(uint64_t num_tokens, uint64_t head_dim, lil_table_scratch *scratch) {
    uint64_t tokens, levels, queries, floats, scores, weights, end = 0;
    return lil_align(num_tokens, GROUP, &tokens) && lil_align(head_dim, GROUP, &scratch->width) &&
           lil_align(num_tokens, 64, &scratch->row) && lil_mul(tokens, scratch->width, &levels) &&
           lil_mul(scratch->width, LIL_QUERIES, &queries) && lil_mul(tokens, sizeof(float), &floats) &&
           lil_mul(floats, LIL_QUERIES, &scores) && lil_mul(scratch->row, LIL_QUERIES, &weights) &&
           place(&end, levels, &scratch->keys) && place(&end, levels, &scratch->values) &&
           place(&end, queries, &scratch->queries) && place(&end, floats, &scratch->key_scales) &&
           place(&end, scores, &scratch->scores) && place(&end, weights, &scratch->weights) &&
           lil_align(end, 64, &scratch->bytes);
}

/* One head's view of the call and of the scratch. */
typedef struct head {
    size_t num_tokens;
    size_t num_queries; /* the first of the tokens */
    size_t head_dim;
    size_t width;      /* head_dim padded to GROUP */
    size_t row_stride; /* floats between two tokens of the input: 3 * num_heads * head_dim */
    const float *q;    /* the first token's; the next is row_stride further; the same for k and v */
    const float *k;
    const float *v;
    int8_t *keys;
    int8_t *values;
    int8_t *query;
    float *key_scales;
    float *value_scales;
    float *scores;
    int8_t *probabilities;
} head;

/* levels[t][0..width) and scales[t] of every token's `x`. */
static void quantize_tokens(const head *h, const float *x, int8_t *levels, float *scales) {
    for (size_t t = 0; t < h->num_tokens; t++, x += h->row_stride, levels += h->width) {
        scales[t] = lil_quantize_row(x, h->head_dim, LIL_INT8_MAX, levels);
        memset(levels + h->head_dim, 0, h->width - h->head_dim);
    }
}

static int32_t dot(const int8_t *restrict a, const int8_t *restrict b, size_t width) {
    int32_t sum = 0;
    for (size_t i = 0; i < width; i += GROUP) {
        for (size_t j = 0; j < GROUP; j++) {
            sum += a[i + j] * b[i + j];
        }
    }
    return sum;
}

/* scores[j] = s[j] of one query, whose levels are in h->query. */
static void score(const head *h, float query_scale, float logit_scale) {
    const float c = query_scale * logit_scale;
    for (size_t j = 0; j < h->num_tokens; j++) {
        h->scores[j] = ((float)dot(h->query, h->keys + j * h->width, h->width) * c) * h->key_scales[j];
    }
}

/* Turn scores into the levels p[j] that multiply the values, and their scale f; false where all of them are 0. */
static bool weigh(const head *h, float *scale) {
    const size_t n = h->num_tokens;
    float *restrict s = h->scores;
    float largest = s[0];
    for (size_t j = 1; j < n; j++) {
        largest = s[j] > largest ? s[j] : largest;
    }
    for (size_t j = 0; j < n; j++) {
        s[j] = lil_exp2(s[j] - largest);
    }
    const float sum = lil_sum(s, n);
    float w = 0.0f;
    for (size_t j = 0; j < n; j++) {
        s[j] = s[j] * h->value_scales[j];
        w = s[j] > w ? s[j] : w;
    }
    if (!(w >= LIL_TINY)) {
        return false;
    }
    const float inverse = 127.0f / w;
    for (size_t j = 0; j < n; j++) {
        h->probabilities[j] = (int8_t)lil_rint(lil_clamp(s[j] * inverse, 0.0f, 127.0f));
    }
    *scale = (w / 127.0f) / sum;
    return true;
}

/* y[0..head_dim) = the values weighted by h->probabilities, times `scale`. */
static void mix(const head *h, float scale, float *restrict y) {
    for (size_t d0 = 0; d0 < h->head_dim; d0 += GROUP) {
        int32_t acc[GROUP] = {0};
        const int8_t *restrict values = h->values + d0;
        for (size_t j = 0; j < h->num_tokens; j++, values += h->width) {
            const int16_t p = h->probabilities[j];
            for (size_t d = 0; d < GROUP; d++) {
                acc[d] += p * values[d];
            }
        }
        for (size_t d = 0; d < GROUP && d0 + d < h->head_dim; d++) {
            y[d0 + d] = (float)acc[d] * scale;
        }
    }
}

static void attend(const head *h, float logit_scale, size_t out_stride, float *y) {
    quantize_tokens(h, h->k, h->keys, h->key_scales);
    quantize_tokens(h, h->v, h->values, h->value_scales);
    memset(h->query, 0, h->width);
    for (size_t i = 0; i < h->num_queries; i++, y += out_stride) {
        float scale;
        score(h, lil_quantize_row(h->q + i * h->row_stride, h->head_dim, LIL_INT8_MAX, h->query), logit_scale);
        if (weigh(h, &scale)) {
            mix(h, scale, y);
        } else {
            memset(y, 0, h->head_dim * sizeof *y);
        }
    }
}

void lil_op_attention(const lil_call *call, const lil_part *part) {
    const size_t num_heads = call->a[0], head_dim = call->a[1], block = num_heads * head_dim;
    const float *x = call->in[0].data;
    float *y = call->out[0].data;
    uint8_t *base = part->scratch;
    lil_attention_scratch at;
    (void)lil_attention_layout(call->in[0].rows, head_dim, &at); /* lil_open has done it: it fits */
    for (size_t n = part->begin; n < part->end; n++) {
        const head h = {
            .num_tokens = call->in[0].rows,
            .num_queries = call->out[0].rows,
            .head_dim = head_dim,
            .width = (size_t)at.width,
            .row_stride = 3 * block,
            .q = x + n * head_dim,
            .k = x + block + n * head_dim,
            .v = x + 2 * block + n * head_dim,
            .keys = (int8_t *)(base + at.keys),
            .values = (int8_t *)(base + at.values),
            .query = (int8_t *)(base + at.queries),
            .key_scales = (float *)(void *)(base + at.key_scales),
            .value_scales = (float *)(void *)(base + at.value_scales),
            .scores = (float *)(void *)(base + at.scores),
            .probabilities = (int8_t *)(base + at.probabilities),
        };
        attend(&h, lil_float_from_bits(call->a[2]), block, y + n * head_dim);
    }
}
