/* What follows a matrix product, on sixteen lanes: scales, bias, activation or residual. Internal. */
#ifndef LIL_SIMD_FINISH_H
#define LIL_SIMD_FINISH_H

#include "simd_math.h"

/* Where the outputs of one product come from and go to. */
typedef struct finish_target {
    const uint8_t *scale, *bias; /* bf16, one an output */
    const float *row_scales;
    const float *residual;       /* FINISH_ADD only */
    float *y;
    size_t outputs;              /* floats from one row of y and residual to the next */
} finish_target;

LIL_INLINE finish_target finish_target_of(const lil_call *call) {
    return (finish_target){
        .scale = call->tensor[1].data,
        .bias = call->tensor[2].data,
        .row_scales = call->in[1].data,
        .residual = call->in[2].data,
        .y = call->out[0].data,
        .outputs = call->tensor[0].rows,
    };
}

/* Outputs [n0, n0 + count) of rows [r0, r0 + rows), whose sums are 16 a row. `how` and `full` (count is 16) are
 * literals at each call. */
LIL_INLINE void finish_rows(const finish_target *t, finish how, bool full, const int32_t *sums, size_t r0, size_t rows,
                            size_t n0, size_t count) {
    const uint8_t *scales = t->scale + 2 * n0, *biases = t->bias + 2 * n0;
    const lanes scale = full ? lanes_from_bf16(scales) : lanes_from_bf16_part(scales, count);
    const lanes bias = full ? lanes_from_bf16(biases) : lanes_from_bf16_part(biases, count);
    /* Copies: what `t` points to could be written through y, as far as the compiler knows. */
    const size_t stride = t->outputs;
    const float *row_scale = t->row_scales + r0;
    float *y = t->y + r0 * stride + n0;
    const float *residual = how == FINISH_ADD ? t->residual + r0 * stride + n0 : NULL;
    for (size_t r = 0; r < rows; r++, y += stride, sums += 16) {
        const lanes sum = lanes_mul(lanes_from_i32(lanes_i32_load(sums)), scale);
        lanes value = lanes_add(lanes_mul(sum, lanes_set(row_scale[r])), bias);
        if (how == FINISH_RELU) {
            value = lanes_relu(value);
        } else if (how == FINISH_GELU) {
            value = lanes_gelu(value);
        } else if (how == FINISH_GELU_TANH) {
            value = lanes_gelu_tanh(value);
        } else if (how == FINISH_TANH) {
            value = lanes_tanh(value);
        } else if (how == FINISH_ADD) {
            value = lanes_add(value, full ? lanes_load(residual) : lanes_load_part(residual, count));
            residual += stride;
        }
        if (full) {
            lanes_store(y, value);
            LIL_PREFETCH_WRITE(y + 16); /* the row's next outputs, which are next in time too */
        } else {
            lanes_store_part(y, value, count);
        }
    }
}

/* The same for any `how` and count of 1 to 16. */
static void finish_tile(const finish_target *t, finish how, const int32_t *sums, size_t r0, size_t rows, size_t n0,
                        size_t count) {
    if (count < 16) {
        switch (how) {
        case FINISH_NONE: finish_rows(t, FINISH_NONE, false, sums, r0, rows, n0, count); break;
        case FINISH_RELU: finish_rows(t, FINISH_RELU, false, sums, r0, rows, n0, count); break;
        case FINISH_GELU: finish_rows(t, FINISH_GELU, false, sums, r0, rows, n0, count); break;
        case FINISH_GELU_TANH: finish_rows(t, FINISH_GELU_TANH, false, sums, r0, rows, n0, count); break;
        case FINISH_TANH: finish_rows(t, FINISH_TANH, false, sums, r0, rows, n0, count); break;
        case FINISH_ADD: finish_rows(t, FINISH_ADD, false, sums, r0, rows, n0, count); break;
        }
        return;
    }
    switch (how) {
    case FINISH_NONE: finish_rows(t, FINISH_NONE, true, sums, r0, rows, n0, 16); break;
    case FINISH_RELU: finish_rows(t, FINISH_RELU, true, sums, r0, rows, n0, 16); break;
    case FINISH_GELU: finish_rows(t, FINISH_GELU, true, sums, r0, rows, n0, 16); break;
    case FINISH_GELU_TANH: finish_rows(t, FINISH_GELU_TANH, true, sums, r0, rows, n0, 16); break;
    case FINISH_TANH: finish_rows(t, FINISH_TANH, true, sums, r0, rows, n0, 16); break;
    case FINISH_ADD: finish_rows(t, FINISH_ADD, true, sums, r0, rows, n0, 16); break;
    }
}

#endif
