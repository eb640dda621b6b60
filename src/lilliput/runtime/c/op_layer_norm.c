/* layer_norm: each row to mean 0 and variance 1, then gamma and beta. */
#include "lil_kernels.h"
#include "lil_math.h"

void lil_op_layer_norm(const lil_call *call, const lil_part *part) {
    const size_t cols = call->in[0].cols;
    const float *restrict x = (const float *)call->in[0].data + part->begin * cols;
    float *restrict y = (float *)call->out[0].data + part->begin * cols;
    const uint8_t *restrict gamma = call->tensor[0].data, *restrict beta = call->tensor[1].data;
    const float eps = lil_float_from_bits(call->a[0]), count = (float)cols; /* cols <= 2^24: exact */
    for (size_t r = part->begin; r < part->end; r++, x += cols, y += cols) {
        const float mean = lil_sum(x, cols) / count;
        for (size_t c = 0; c < cols; c++) {
            y[c] = x[c] - mean;
        }
        const float variance = lil_sum_squares(y, cols) / count;
        const float inverse = 1.0f / sqrtf(variance + eps);
        for (size_t c = 0; c < cols; c++) {
            y[c] = (y[c] * inverse) * lil_bf16_at(gamma, c) + lil_bf16_at(beta, c);
        }
    }
}

void lil_op_normalize_rows(const lil_call *call, const lil_part *part) {
    const size_t cols = call->in[0].cols;
    const float *restrict x = (const float *)call->in[0].data + part->begin * cols;
    float *restrict y = (float *)call->out[0].data + part->begin * cols;
    for (size_t r = part->begin; r < part->end; r++, x += cols, y += cols) {
        const float length = sqrtf(lil_sum_squares(x, cols)), divisor = length >= 1e-12f ? length : 1e-12f;
        for (size_t c = 0; c < cols; c++) {
            y[c] = x[c] / divisor;
        }
    }
}

void lil_op_scale_shift(const lil_call *call, const lil_part *part) {
    const size_t cols = call->in[0].cols;
    const uint8_t *gamma = call->tensor[0].data, *beta = call->tensor[1].data;
    const float *restrict x = (const float *)call->in[0].data + part->begin * cols;
    float *restrict y = (float *)call->out[0].data + part->begin * cols;
    for (size_t r = part->begin; r < part->end; r++, x += cols, y += cols) {
        for (size_t c = 0; c < cols; c++) {
            y[c] = x[c] * lil_bf16_at(gamma, c) + lil_bf16_at(beta, c);
        }
    }
}
