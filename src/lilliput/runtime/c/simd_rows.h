/* The kernels that go row by row over floats, on sixteen lanes: each the twin of the scalar one of its name. Internal;
 * included once by each simd_<isa>.c. */
#ifndef LIL_SIMD_ROWS_H
#define LIL_SIMD_ROWS_H

#include "simd_quantize.h"

/* The format's lanes of a sum of x[0..n). A tail's missing elements add +0, which changes no sum that began at +0. */
LIL_INLINE lanes simd_sum(const float *x, size_t n) {
    lanes sum = lanes_zero();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        sum = lanes_add(sum, lanes_load(x + i));
    }
    if (i < n) {
        sum = lanes_add(sum, lanes_load_part(x + i, n - i));
    }
    return sum;
}

enum { PATTERN = 16 }; /* images of up to so many channels are normalised across their pixels */

/* y[i] = x[i] * scale[i] + shift[i] over [0..n), n <= 16. */
LIL_INLINE void normalize_part(const uint8_t *x, const float *scale, const float *shift, float *y, size_t n) {
    uint8_t pixels[16] = {0};
    memcpy(pixels, x, n);
    const lanes scaled = lanes_mul(lanes_from_u8(pixels), lanes_load_part(scale, n));
    lanes_store_part(y, lanes_add(scaled, lanes_load_part(shift, n)), n);
}

/* Scales and shifts repeat after `channels` pixels of a row; so do vectors of 16, after `channels` of them. */
static void normalize_pixels(const uint8_t *x, const lil_call *call, float *y, size_t n) {
    const size_t channels = call->in[0].cols;
    float scale[16 * PATTERN], shift[16 * PATTERN];
    for (size_t i = 0; i < 16 * channels; i++) {
        scale[i] = lil_f32_at(call->tensor[0].data, i % channels);
        shift[i] = lil_f32_at(call->tensor[1].data, i % channels);
    }
    size_t i = 0;
    for (size_t at = 0; i + 16 <= n; i += 16, at = at + 16 < 16 * channels ? at + 16 : 0) {
        const lanes scaled = lanes_mul(lanes_from_u8(x + i), lanes_load(scale + at));
        lanes_store(y + i, lanes_add(scaled, lanes_load(shift + at)));
    }
    if (i < n) {
        const size_t at = i % (16 * channels);
        normalize_part(x + i, scale + at, shift + at, y + i, n - i);
    }
}

static void normalize(const lil_call *call, const lil_part *part) {
    const size_t cols = call->in[0].cols;
    const uint8_t *x = (const uint8_t *)call->in[0].data + part->begin * cols;
    float *y = (float *)call->out[0].data + part->begin * cols;
    if (cols <= PATTERN) {
        normalize_pixels(x, call, y, (part->end - part->begin) * cols);
        return;
    }
    for (size_t r = part->begin; r < part->end; r++, x += cols, y += cols) {
        for (size_t c = 0; c < cols; c += 16) {
            const size_t n = cols - c < 16 ? cols - c : 16;
            float scale[16], shift[16];
            memcpy(scale, call->tensor[0].data + 4 * c, 4 * n);
            memcpy(shift, call->tensor[1].data + 4 * c, 4 * n);
            normalize_part(x + c, scale, shift, y + c, n);
        }
    }
}

LIL_INLINE size_t at_most(size_t n, size_t limit) {
    return n < limit ? n : limit;
}

static void quantize(const lil_call *call, const lil_part *part) {
    const size_t cols = call->in[0].cols, padded = call->out[0].cols;
    float *scale = call->out[1].data;
    const float limit = lil_largest_level(call->a[0]);
    for (size_t r0 = part->begin; r0 < part->end; r0 += ROWS) {
        const size_t rows = at_most(part->end - r0, ROWS);
        const float *x = (const float *)call->in[0].data + r0 * cols;
        int8_t *q = (int8_t *)call->out[0].data + r0 * padded;
        row_scales s;
        simd_row_scales(x, cols, rows, cols, limit, &s);
        for (size_t r = 0; r < rows; r++) {
            simd_store_levels(x + r * cols, cols, &s, r, q + r * padded, padded);
        }
        memcpy(scale + r0, s.scale, rows * sizeof *scale);
    }
}

/* y = x - mean over [0..n); the lanes of the sum of the squares. */
LIL_INLINE lanes center(const float *x, float mean, float *y, size_t n) {
    const lanes m = lanes_set(mean);
    lanes sum = lanes_zero();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const lanes d = lanes_sub(lanes_load(x + i), m);
        lanes_store(y + i, d);
        sum = lanes_add(sum, lanes_mul(d, d));
    }
    if (i < n) {
        lanes_store_part(y + i, lanes_sub(lanes_load_part(x + i, n - i), m), n - i);
        const lanes d = lanes_load_part(y + i, n - i); /* 0, not -mean, in the missing lanes */
        sum = lanes_add(sum, lanes_mul(d, d));
    }
    return sum;
}

/* y = (y * inverse) * gamma + beta for n (1..16) columns of `rows` rows; `full`, a literal: n is 16. Column by column,
 * so that gamma and beta are converted once. */
LIL_INLINE void scale_columns(float *y, size_t stride, size_t rows, const float *inverse, const uint8_t *gamma,
                              const uint8_t *beta, size_t n, bool full) {
    const lanes g = full ? lanes_from_bf16(gamma) : lanes_from_bf16_part(gamma, n);
    const lanes b = full ? lanes_from_bf16(beta) : lanes_from_bf16_part(beta, n);
    for (size_t r = 0; r < rows; r++, y += stride) {
        const lanes d = full ? lanes_load(y) : lanes_load_part(y, n);
        const lanes value = lanes_add(lanes_mul(lanes_mul(d, lanes_set(inverse[r])), g), b);
        if (full) {
            lanes_store(y, value);
        } else {
            lanes_store_part(y, value, n);
        }
    }
}

static void layer_norm(const lil_call *call, const lil_part *part) {
    const size_t cols = call->in[0].cols;
    const uint8_t *gamma = call->tensor[0].data, *beta = call->tensor[1].data;
    const lanes count = lanes_set((float)cols), eps = lanes_set(lil_float_from_bits(call->a[0]));
    for (size_t r0 = part->begin; r0 < part->end; r0 += ROWS) {
        const size_t rows = at_most(part->end - r0, ROWS);
        const float *x = (const float *)call->in[0].data + r0 * cols;
        float *y = (float *)call->out[0].data + r0 * cols;
        _Alignas(64) float mean[ROWS], inverse[ROWS];
        lanes sums[ROWS];
        for (size_t r = 0; r < ROWS; r++) {
            sums[r] = r < rows ? simd_sum(x + r * cols, cols) : lanes_zero();
        }
        lanes_store(mean, lanes_div(lanes_tree16(sums), count));
        for (size_t r = 0; r < rows; r++) {
            sums[r] = center(x + r * cols, mean[r], y + r * cols, cols);
        }
        const lanes variance = lanes_div(lanes_tree16(sums), count);
        lanes_store(inverse, lanes_div(lanes_set(1.0f), lanes_sqrt(lanes_add(variance, eps))));
        size_t c = 0;
        for (; c + 16 <= cols; c += 16) {
            scale_columns(y + c, cols, rows, inverse, gamma + 2 * c, beta + 2 * c, 16, true);
        }
        if (c < cols) {
            scale_columns(y + c, cols, rows, inverse, gamma + 2 * c, beta + 2 * c, cols - c, false);
        }
    }
}

/* 16 levels of codes of 4 bits (or, where `levels` is NULL, of 8), of which n are there. */
LIL_INLINE lanes levels_of(const uint8_t *p, const int8_t *levels, size_t n) {
    uint8_t bytes[16] = {0};
    if (n < 16) { /* the codes may end where the file ends */
        memcpy(bytes, p, levels == NULL ? n : (n + 1) / 2);
        p = bytes;
    }
    return levels == NULL ? lanes_from_i8((const int8_t *)p) : lanes_from_codes4(p, levels);
}

/* y = (x, or where it is NULL nothing) + level * scale of a row of codes. Which pointers are NULL is a literal. */
LIL_INLINE void embed_row(const uint8_t *row, const int8_t *levels, float scale, const float *x, float *y, size_t n) {
    const lanes by = lanes_set(scale);
    const size_t per_byte = levels == NULL ? 1 : 2;
    size_t c = 0;
    for (; c + 16 <= n; c += 16) {
        const lanes value = lanes_mul(levels_of(row + c / per_byte, levels, 16), by);
        lanes_store(y + c, x == NULL ? value : lanes_add(lanes_load(x + c), value));
    }
    if (c < n) {
        const lanes value = lanes_mul(levels_of(row + c / per_byte, levels, n - c), by);
        lanes_store_part(y + c, x == NULL ? value : lanes_add(lanes_load_part(x + c, n - c), value), n - c);
    }
}

static void prepend_token(const lil_call *call, const lil_part *part) {
    const lil_constant *codes = &call->tensor[0];
    const float scale = lil_bf16_at(call->tensor[1].data, 0);
    const size_t cols = call->in[0].cols;
    float *y = call->out[0].data;
    if (codes->format == LIL_INT8) {
        embed_row(codes->data, NULL, scale, NULL, y, cols);
    } else if (lil_code_bits(codes->format) == 4) {
        embed_row(codes->data, lil_levels_of(codes->format), scale, NULL, y, cols);
    } else {
        lil_op_prepend_token(call, part);
        return;
    }
    memcpy(y + cols, call->in[0].data, call->in[0].rows * cols * sizeof *y);
}

static void add_positions(const lil_call *call, const lil_part *part) {
    const lil_constant *codes = &call->tensor[0];
    const size_t cols = call->in[0].cols, row_bytes = codes->format == LIL_INT8 ? cols : (cols + 1) / 2;
    const int8_t *levels = lil_levels_of(codes->format);
    const uint8_t *row = codes->data + part->begin * row_bytes;
    const float *x = (const float *)call->in[0].data + part->begin * cols;
    float *y = (float *)call->out[0].data + part->begin * cols;
    if (lil_code_bits(codes->format) == 6) {
        lil_op_add_positions(call, part);
        return;
    }
    for (size_t r = part->begin; r < part->end; r++, row += row_bytes, x += cols, y += cols) {
        const float scale = lil_bf16_at(call->tensor[1].data, r);
        if (codes->format == LIL_INT8) {
            embed_row(row, NULL, scale, x, y, cols);
        } else {
            embed_row(row, levels, scale, x, y, cols);
        }
    }
}

static void embed_tokens(const lil_call *call, const lil_part *part) {
    const lil_constant *codes = &call->tensor[0];
    const size_t cols = codes->cols, row_bytes = codes->format == LIL_INT8 ? cols : (cols + 1) / 2;
    const int8_t *levels = lil_levels_of(codes->format);
    const uint32_t *ids = call->in[0].data;
    float *y = (float *)call->out[0].data + part->begin * cols;
    if (lil_code_bits(codes->format) == 6) {
        lil_op_embed_tokens(call, part);
        return;
    }
    for (size_t r = part->begin; r < part->end; r++, y += cols) {
        const uint8_t *row = codes->data + ids[r] * row_bytes;
        const float scale = lil_bf16_at(call->tensor[1].data, ids[r]);
        if (codes->format == LIL_INT8) {
            embed_row(row, NULL, scale, NULL, y, cols);
        } else {
            embed_row(row, levels, scale, NULL, y, cols);
        }
    }
}

static void mean_rows(const lil_call *call, const lil_part *part) {
    (void)part; /* not divided */
    const size_t rows = call->in[0].rows, cols = call->in[0].cols;
    const float *x = call->in[0].data;
    float *y = call->out[0].data;
    for (size_t c = 0; c < cols; c += 16) {
        const size_t n = cols - c < 16 ? cols - c : 16;
        lanes sum = lanes_zero();
        for (size_t r = 0; r < rows; r++) {
            sum = lanes_add(sum, lanes_load_part(x + r * cols + c, n));
        }
        lanes_store_part(y + c, lanes_div(sum, lanes_set((float)rows)), n);
    }
}

/* Copy n floats; the missing ones of a last vector are neither read nor written. */
LIL_INLINE void copy_floats(const float *x, float *y, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        lanes_store(y + i, lanes_load(x + i));
    }
    if (i < n) {
        lanes_store_part(y + i, lanes_load_part(x + i, n - i), n - i);
    }
}

/* Windows that lie in the image as a whole are copied row by row; the others as the scalar kernel does. */
static void unfold(const lil_call *call, const lil_part *part) {
    const size_t width = call->a[1], kernel = call->a[2], stride = call->a[3], channels = call->in[0].cols;
    if (call->a[4] > 0) {
        lil_op_unfold(call, part);
        return;
    }
    const size_t across = (width - kernel) / stride + 1, run = kernel * channels;
    float *y = (float *)call->out[0].data + part->begin * call->out[0].cols;
    for (size_t window = part->begin; window < part->end; window++) {
        const size_t top = window / across * stride, left = window % across * stride;
        const float *x = (const float *)call->in[0].data + (top * width + left) * channels;
        for (size_t ky = 0; ky < kernel; ky++, x += width * channels, y += run) {
            copy_floats(x, y, run);
        }
    }
}

#endif
