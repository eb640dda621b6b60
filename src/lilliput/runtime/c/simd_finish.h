/* What follows a matrix product, on sixteen lanes: scales, bias, activation or residual, and int8 levels. Internal. */
#ifndef LIL_SIMD_FINISH_H
#define LIL_SIMD_FINISH_H

#include "simd_math.h"

/* Where the outputs of one product come from and go to. */
typedef struct finish_target {
    const uint8_t *scale, *bias; /* bf16, one an output */
    const uint8_t *multiplier;   /* the same, with FINISH_LEVELS only */
    float limit;                 /* of a level */
    const float *row_scales;
    size_t row_step;             /* from one row's scale to the next: 0 where all have the first */
    const float *residual;       /* FINISH_ADD only */
    float *y;                    /* without FINISH_LEVELS */
    int8_t *levels;              /* with it */
    size_t stride;               /* elements from one row of y, levels and residual to the next */
    size_t column_mask;          /* of a column of levels: which of its bits count there */
    size_t outputs;
    size_t padding;              /* columns of levels behind the last output */
} finish_target;

LIL_INLINE finish_target finish_target_of(const lil_call *call) {
    static const float one = 1.0f;
    const bool own_scales = call->in[1].data != call->in[0].data;
    return (finish_target){
        .scale = call->tensor[1].data,
        .bias = call->tensor[2].data,
        .multiplier = call->tensor[3].data,
        .limit = lil_largest_level(call->a[1]),
        .row_scales = own_scales ? call->in[1].data : &one,
        .row_step = own_scales ? 1 : 0,
        .residual = call->in[2].data,
        .y = call->out[0].data,
        .levels = call->out[0].data,
        .stride = call->out[0].cols,
        .column_mask = SIZE_MAX,
        .outputs = call->tensor[0].rows,
        .padding = call->out[0].cols - call->tensor[0].rows,
    };
}

/* Outputs [n0, n0 + 16) of rows [r0, r0 + rows), whose sums are 16 a row. `how` is a literal at each call. */
LIL_INLINE void finish_rows(const finish_target *t, finish how, const int32_t *sums, size_t r0, size_t rows,
                            size_t n0) {
    const finish activation = (finish)(how & ~(unsigned)FINISH_LEVELS);
    const lanes scale = lanes_from_bf16(t->scale + 2 * n0), bias = lanes_from_bf16(t->bias + 2 * n0);
    const lanes multiplier = how & FINISH_LEVELS ? lanes_from_bf16(t->multiplier + 2 * n0) : lanes_zero();
    /* Copies: what `t` points to could be written through y, as far as the compiler knows. */
    const size_t stride = t->stride, row_step = t->row_step;
    const float limit = t->limit;
    const float *row_scale = t->row_scales + r0 * row_step;
    float *y = how & FINISH_LEVELS ? NULL : t->y + r0 * stride + n0;
    int8_t *levels = how & FINISH_LEVELS ? t->levels + r0 * stride + (n0 & t->column_mask) : NULL;
    const float *residual = how == FINISH_ADD ? t->residual + r0 * stride + n0 : NULL;
    for (size_t r = 0; r < rows; r++, row_scale += row_step, sums += 16) {
        const lanes sum = lanes_mul(lanes_from_i32(lanes_i32_load(sums)), scale);
        lanes value = lanes_add(lanes_mul(sum, lanes_set(*row_scale)), bias);
        if (activation == FINISH_RELU) {
            value = lanes_relu(value);
        } else if (activation == FINISH_GELU) {
            value = how & FINISH_LEVELS ? lanes_coarse_gelu(&LIL_GELU_LINES, value) : lanes_gelu(value);
        } else if (activation == FINISH_GELU_TANH) {
            value = how & FINISH_LEVELS ? lanes_coarse_gelu(&LIL_GELU_TANH_LINES, value) : lanes_gelu_tanh(value);
        } else if (activation == FINISH_TANH) {
            value = lanes_tanh(value);
        } else if (activation == FINISH_ADD) {
            value = lanes_add(value, lanes_load(residual));
            residual += stride;
        }
        if (how & FINISH_LEVELS) {
            lanes_i32_store_i8(levels, lanes_static_levels(value, multiplier, limit));
            levels += stride;
        } else {
            lanes_store(y, value);
            LIL_PREFETCH_WRITE(y + 16); /* the row's next outputs, which are next in time too */
            y += stride;
        }
    }
}

/* The same for any `how`. */
static void finish_whole(const finish_target *t, finish how, const int32_t *sums, size_t r0, size_t rows, size_t n0) {
    switch ((int)how) {
    case FINISH_NONE: finish_rows(t, FINISH_NONE, sums, r0, rows, n0); break;
    case FINISH_RELU: finish_rows(t, FINISH_RELU, sums, r0, rows, n0); break;
    case FINISH_GELU: finish_rows(t, FINISH_GELU, sums, r0, rows, n0); break;
    case FINISH_GELU_TANH: finish_rows(t, FINISH_GELU_TANH, sums, r0, rows, n0); break;
    case FINISH_TANH: finish_rows(t, FINISH_TANH, sums, r0, rows, n0); break;
    case FINISH_ADD: finish_rows(t, FINISH_ADD, sums, r0, rows, n0); break;
    case FINISH_LEVELS | FINISH_NONE: finish_rows(t, FINISH_LEVELS | FINISH_NONE, sums, r0, rows, n0); break;
    case FINISH_LEVELS | FINISH_RELU: finish_rows(t, FINISH_LEVELS | FINISH_RELU, sums, r0, rows, n0); break;
    case FINISH_LEVELS | FINISH_GELU: finish_rows(t, FINISH_LEVELS | FINISH_GELU, sums, r0, rows, n0); break;
    case FINISH_LEVELS | FINISH_GELU_TANH:
        finish_rows(t, FINISH_LEVELS | FINISH_GELU_TANH, sums, r0, rows, n0);
        break;
    }
}

/* A last tile of `count` outputs, fewer than 16, is finished in a copy of 16; what pads its levels becomes 0. */
static void finish_part(const finish_target *t, finish how, const int32_t *sums, size_t r0, size_t rows, size_t n0,
                        size_t count) {
    uint8_t vectors[3][32] = {{0}};
    float values[16][16] = {{0}};
    int8_t levels[16][16];
    memcpy(vectors[0], t->scale + 2 * n0, 2 * count);
    memcpy(vectors[1], t->bias + 2 * n0, 2 * count);
    if (how & FINISH_LEVELS) {
        memcpy(vectors[2], t->multiplier + 2 * n0, 2 * count);
    }
    finish_target copy = {.scale = vectors[0], .bias = vectors[1], .multiplier = vectors[2], .row_step = t->row_step,
                          .residual = values[0], .y = values[0], .levels = levels[0], .stride = 16,
                          .limit = t->limit};
    for (size_t done = 0, n; done < rows; done += n) {
        n = rows - done < 16 ? rows - done : 16;
        const size_t at = (r0 + done) * t->stride + n0, to = (r0 + done) * t->stride + (n0 & t->column_mask);
        for (size_t r = 0; r < n && how == FINISH_ADD; r++) {
            memcpy(values[r], t->residual + at + r * t->stride, count * sizeof values[0][0]);
        }
        copy.row_scales = t->row_scales + (r0 + done) * t->row_step;
        finish_whole(&copy, how, sums + 16 * done, 0, n, 0);
        for (size_t r = 0; r < n; r++) {
            if (how & FINISH_LEVELS) {
                memcpy(t->levels + to + r * t->stride, levels[r], count);
                memset(t->levels + to + r * t->stride + count, 0, t->padding);
            } else {
                memcpy(t->y + at + r * t->stride, values[r], count * sizeof values[0][0]);
            }
        }
    }
}

/* Outputs [n0, n0 + count) of rows [r0, r0 + rows); count is 16, or less for the last ones. */
static void finish_tile(const finish_target *t, finish how, const int32_t *sums, size_t r0, size_t rows, size_t n0,
                        size_t count) {
    if (count == 16) {
        finish_whole(t, how, sums, r0, rows, n0);
    } else {
        finish_part(t, how, sums, r0, rows, n0, count);
    }
}

#endif
