/* prepend_token, add_positions and embed_tokens: learned or fixed rows, stored as codes in the `rows` layout. */
#include "lil_kernels.h"

static size_t row_bytes(const lil_constant *codes) {
    return (codes->cols * lil_code_bits(codes->format) + 7) / 8;
}

/* Level of column `c` in the row of codes that starts at `row`; `levels`: lil_levels_of the format. */
static float level_at(const uint8_t *row, uint16_t format, const int8_t *levels, size_t c) {
    const uint8_t code = lil_row_code(row, format, c);
    return (float)(levels == NULL ? lil_level_8bit(code) : levels[code]);
}

void lil_op_prepend_token(const lil_call *call, const lil_part *part) {
    (void)part; /* not divided */
    const lil_constant *codes = &call->tensor[0];
    const int8_t *levels = lil_levels_of(codes->format);
    const float scale = lil_bf16_at(call->tensor[1].data, 0);
    const size_t cols = call->in[0].cols;
    float *y = call->out[0].data;
    for (size_t c = 0; c < cols; c++) {
        y[c] = level_at(codes->data, codes->format, levels, c) * scale;
    }
    memcpy(y + cols, call->in[0].data, call->in[0].rows * cols * sizeof *y);
}

void lil_op_add_positions(const lil_call *call, const lil_part *part) {
    const lil_constant *codes = &call->tensor[0];
    const int8_t *levels = lil_levels_of(codes->format);
    const size_t cols = call->in[0].cols, stride = row_bytes(codes);
    const float *restrict x = call->in[0].data;
    float *restrict y = call->out[0].data;
    for (size_t r = part->begin; r < part->end; r++) {
        const uint8_t *row = codes->data + r * stride;
        const float scale = lil_bf16_at(call->tensor[1].data, r);
        for (size_t c = 0; c < cols; c++) {
            y[r * cols + c] = x[r * cols + c] + level_at(row, codes->format, levels, c) * scale;
        }
    }
}

void lil_op_embed_tokens(const lil_call *call, const lil_part *part) {
    const lil_constant *codes = &call->tensor[0];
    const int8_t *levels = lil_levels_of(codes->format);
    const size_t cols = codes->cols, stride = row_bytes(codes);
    const uint32_t *ids = call->in[0].data;
    float *y = (float *)call->out[0].data + part->begin * cols;
    for (size_t r = part->begin; r < part->end; r++, y += cols) {
        const uint8_t *row = codes->data + ids[r] * stride;
        const float scale = lil_bf16_at(call->tensor[1].data, ids[r]);
        for (size_t c = 0; c < cols; c++) {
            y[c] = level_at(row, codes->format, levels, c) * scale;
        }
    }
}
