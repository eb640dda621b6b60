/* table_attention: attention whose weights come from a table of a softmax in steps of a 32nd of a power of two, so that
 * all its sums are integers. */
#include <math.h>

#include "lil_kernels.h"
#include "lil_math.h"

const uint8_t lil_weights[256 + 3] = {
    127, 124, 122, 119, 116, 114, 112, 109, 107, 105, 102, 100, 98, 96, 94, 92, 90, 88, 86, 84, 82, 81, 79, 77,
    76, 74, 72, 71, 69, 68, 66, 65, 64, 62, 61, 60, 58, 57, 56, 55, 53, 52, 51, 50, 49, 48, 47, 46,
    45, 44, 43, 42, 41, 40, 39, 39, 38, 37, 36, 35, 35, 34, 33, 32, 32, 31, 30, 30, 29, 28, 28, 27,
    27, 26, 26, 25, 24, 24, 23, 23, 22, 22, 21, 21, 21, 20, 20, 19, 19, 18, 18, 18, 17, 17, 17, 16,
    16, 16, 15, 15, 15, 14, 14, 14, 13, 13, 13, 13, 12, 12, 12, 11, 11, 11, 11, 11, 10, 10, 10, 10,
    9, 9, 9, 9, 9, 8, 8, 8, 8, 8, 8, 7, 7, 7, 7, 7, 7, 7, 6, 6, 6, 6, 6, 6,
    6, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 3, 3,
    3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0,
};

/* One head's view of the call and of the scratch: levels in plain rows of `width`. */
typedef struct head {
    size_t num_tokens;
    size_t head_dim;
    size_t width;
    size_t row_stride; /* floats between two tokens of the input */
    const float *q, *k, *v;
    int8_t *keys, *values, *query;
    float *key_scales, *scores;
    uint8_t *weights;
} head;

/* levels[t][0..width) of every token's `x`, each with a scale of its own. */
static void quantize_keys(const head *h) {
    int8_t *levels = h->keys;
    for (size_t t = 0; t < h->num_tokens; t++, levels += h->width) {
        h->key_scales[t] = lil_quantize_row(h->k + t * h->row_stride, h->head_dim, LIL_INT8_MAX, levels);
        memset(levels + h->head_dim, 0, h->width - h->head_dim);
    }
}

/* The same of the values, with one scale, which is returned. */
static float quantize_values(const head *h) {
    float m = 0.0f;
    for (size_t t = 0; t < h->num_tokens; t++) {
        const float of_row = lil_max_magnitude(h->v + t * h->row_stride, h->head_dim);
        m = of_row > m ? of_row : m;
    }
    const bool alive = m >= LIL_TINY;
    const float inverse = alive ? 127.0f / m : 0.0f;
    memset(h->values, 0, h->num_tokens * h->width);
    for (size_t t = 0; t < h->num_tokens && alive; t++) {
        for (size_t d = 0; d < h->head_dim; d++) {
            const float scaled = lil_clamp(h->v[t * h->row_stride + d] * inverse, -127.0f, 127.0f);
            h->values[t * h->width + d] = (int8_t)lil_rint(scaled);
        }
    }
    return alive ? m / 127.0f : 0.0f;
}

/* The weights of one query; gives their sum. */
static int32_t weigh(const head *h, float c) {
    float largest = -INFINITY;
    for (size_t j = 0; j < h->num_tokens; j++) {
        int32_t dot = 0;
        for (size_t d = 0; d < h->width; d++) {
            dot += h->query[d] * h->keys[j * h->width + d];
        }
        h->scores[j] = ((float)dot * c) * h->key_scales[j];
        largest = h->scores[j] > largest ? h->scores[j] : largest;
    }
    int32_t sum = 0;
    for (size_t j = 0; j < h->num_tokens; j++) {
        float x = largest - h->scores[j];
        x = x <= 255.0f ? x : 255.0f; /* not below 0 */
        h->weights[j] = lil_weights[(size_t)lil_rint(x)];
        sum += h->weights[j];
    }
    return sum;
}

static void attend(const head *h, size_t num_queries, float logit_scale, size_t out_stride, float *y) {
    quantize_keys(h);
    const float value_scale = quantize_values(h);
    memset(h->query, 0, h->width);
    for (size_t i = 0; i < num_queries; i++, y += out_stride) {
        const float query_scale = lil_quantize_row(h->q + i * h->row_stride, h->head_dim, LIL_INT8_MAX, h->query);
        const int32_t sum = weigh(h, query_scale * logit_scale);
        const float f = sum > 0 ? value_scale / (float)sum : 0.0f;
        for (size_t d = 0; d < h->head_dim; d++) {
            int32_t mixed = 0;
            for (size_t j = 0; j < h->num_tokens; j++) {
                mixed += h->weights[j] * h->values[j * h->width + d];
            }
            y[d] = (float)mixed * f;
        }
    }
}

void lil_op_table_attention(const lil_call *call, const lil_part *part) {
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
            .q = x + n * head_dim,
            .k = x + block + n * head_dim,
            .v = x + 2 * block + n * head_dim,
            .keys = (int8_t *)(base + at.keys),
            .values = (int8_t *)(base + at.values),
            .query = (int8_t *)(base + at.queries),
            .key_scales = (float *)(void *)(base + at.key_scales),
            .scores = (float *)(void *)(base + at.scores),
            .weights = base + at.weights,
        };
        attend(&h, call->out[0].rows, lil_float_from_bits(call->a[2]), block, (float *)call->out[0].data + n * head_dim);
    }
}
